/** `flywheel import-check`, `evaluate`, `embed` and `report` as a user runs them: real jobs in Python, a bundle of known behaviour, drawn images. */
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { EXIT } from '../../src/cli/exit.js';
import { main } from '../../src/cli/main.js';
import { openCatalog } from '../../src/platform/catalog/index.js';
import { homePaths } from '../../src/platform/home.js';
import { FileObjectStore } from '../../src/platform/objects/index.js';
import { writeBundle } from '../support/bundle.js';
import { greyJpeg } from '../support/images.js';
import { caughtTerminal } from '../support/terminal.js';

let folder: string;
let data: string;
const IMAGES = 12;

beforeAll(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), 'flywheel-jobs-'));
  data = path.join(folder, 'data');
  await mkdir(data);
  const lines = ['file,label,group,source'];
  for (let i = 0; i < IMAGES; i++) {
    // Bright is roadwork, but for two of each class.
    const bright = (i % 2 === 1) !== i < 4;
    await writeFile(path.join(data, `${i}.jpg`), await greyJpeg(bright ? 200 : 60, i + 1));
    lines.push(`${i}.jpg,${i % 2},clip-${i},camera-${i % 2}`);
  }
  await writeFile(path.join(data, 'labels.csv'), lines.join('\n'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const terminal = caughtTerminal();

async function flywheel(...args: string[]): Promise<{ code: number; result: Record<string, unknown> }> {
  const code = await main([...args, '--home', path.join(folder, 'home'), '--json']);
  return { code, result: JSON.parse(terminal.out.trimEnd().split('\n').at(-1) ?? '') as Record<string, unknown> };
}

describe('flywheel import-check', () => {
  it('tells what an import would stumble over, and changes nothing', async () => {
    const broken = path.join(folder, 'broken');
    await mkdir(broken);
    const good = await greyJpeg(120, 3);
    await writeFile(path.join(broken, 'good.jpg'), good);
    await writeFile(path.join(broken, 'again.jpg'), good);
    await writeFile(path.join(broken, 'cut.jpg'), good.subarray(0, good.length / 2));
    await writeFile(path.join(broken, 'labels.csv'), 'file,label\ngood.jpg,1\nagain.jpg,0\nnowhere.jpg,1\ncut.jpg,maybe\n');
    const { code, result } = await flywheel('import-check', broken);
    expect(code).toBe(EXIT.ok);
    expect(result).toMatchObject({ checked: 3, usable: 1, byKind: { corrupt: 1, duplicate: 1 } });
    expect((result['findings'] as { image: string; kind: string }[]).find((f) => f.kind === 'corrupt')?.image).toBe('cut.jpg');
    expect(terminal.err).toMatch(/1 of 3 images of .* can be used/);
    expect(terminal.err).toMatch(/row skipped.*nowhere\.jpg|row skipped.*cut\.jpg/);
  });

  it('refuses a folder that is none', async () => {
    const { code, result } = await flywheel('import-check', path.join(folder, 'nowhere'));
    expect(code).toBe(EXIT.badInput);
    expect(JSON.stringify(result)).toMatch(/is no folder/);
  });
});

describe('flywheel evaluate', () => {
  it("judges a bundle in Python, by source, and agrees with the miner's own code", async () => {
    const { dir } = await writeBundle(path.join(folder, 'bundles'), { name: 'bright' });
    const { code, result } = await flywheel('evaluate', '--bundle', dir, '--data', data, '--out', path.join(folder, 'judged'));
    expect(code, terminal.err).toBe(EXIT.ok);
    const report = JSON.parse(await readFile(path.join(folder, 'judged', 'report.json'), 'utf8')) as typeof result;
    expect(report).toEqual(result);
    expect(result).toMatchObject({
      model: 'bright',
      n: IMAGES,
      failed: [],
      metrics: { accuracy: 8 / 12, n: IMAGES },
      production: { n: IMAGES, decisions: 0 },
    });
    expect((result['production'] as { maxAbsDp: number }).maxAbsDp).toBeLessThan(1e-3);
    expect((result['figures'] as { of: string }[]).map((f) => f.of)).toEqual(['overall', 'camera-0', 'camera-1']);
    const lines = (await readFile(path.join(folder, 'judged', 'predictions.jsonl'), 'utf8')).trimEnd().split('\n');
    expect(lines).toHaveLength(IMAGES);
  });

  it('says what to name where there is no champion', async () => {
    const { code, result } = await flywheel('evaluate', '--data', data);
    expect(code).toBe(EXIT.badInput);
    expect(JSON.stringify(result)).toMatch(/no champion yet\. Name a model/);
  });
});

describe('flywheel embed', () => {
  it('writes one row an image, named by its file', async () => {
    const config = path.join(folder, 'config.json');
    const member = { backbone: 'test_efficientnet', weights: 'none', features: 'final', resolution: 64 };
    await writeFile(
      config,
      JSON.stringify({
        preset: 'demo',
        training: {
          members: [
            { name: 'tiny', ...member },
            { name: 'other', ...member },
          ],
        },
      }),
    );
    const into = path.join(folder, 'features');
    const { code, result } = await flywheel('embed', '--data', data, '--out', into, '--config', config);
    expect(code, terminal.err).toBe(EXIT.ok);
    expect(result).toMatchObject({ count: IMAGES, member: 'tiny' });
    const index = (await readFile(path.join(into, 'index.jsonl'), 'utf8')).trimEnd().split('\n');
    expect(index.map((line) => (JSON.parse(line) as { file: string }).file).sort()).toEqual(
      Array.from({ length: IMAGES }, (_, i) => `${i}.jpg`).sort(),
    );
    const bytes = await readFile(path.join(into, 'embeddings.safetensors'));
    const header = JSON.parse(bytes.subarray(8, 8 + Number(bytes.readBigUInt64LE(0))).toString()) as Record<string, { shape: number[] }>;
    expect(header['embeddings']?.shape).toEqual([IMAGES, 1, result['dimensions']]);
  });

  it('refuses a member that the configuration does not have', async () => {
    const { code, result } = await flywheel('embed', '--data', data, '--out', path.join(folder, 'x'), '--member', 'nobody');
    expect(code).toBe(EXIT.badInput);
    expect(JSON.stringify(result)).toMatch(/lite0-both, lite0-mid/);
  });
});

describe('flywheel report', () => {
  const metrics = { accuracy: 0.9, mcc: 0.8, brier: 0.1, n: 20 };

  /** A home with one model, and the result of its training beside that of another job. */
  async function home(report: boolean): Promise<string> {
    const root = await mkdtemp(path.join(folder, 'report-'));
    const paths = homePaths(root);
    const objects = new FileObjectStore(paths.objects);
    const put = (text: string) => objects.put(Buffer.from(text));
    const trained = await put('trained');
    const catalog = await openCatalog(paths.catalog);
    const model = {
      bundle: await put('bundle'),
      parent: null,
      turn: 'turn-0001',
      status: 'candidate',
      createdAt: 1,
      evidence: {},
    } as const;
    await catalog.addModel({ id: 'turn-0001', trained, ...model });
    await catalog.close();
    const pictures = { learningCurves: 'curves', confusion: 'confusion', reliability: 'reliability', worst: 'worst', history: '{}' };
    const kept = await Promise.all(Object.entries(pictures).map(async ([kind, text]) => [kind, await put(text)] as const));
    const output = {
      trained,
      members: [{ name: 'lite0', stage: 'probe', note: 'fine-tune thrown away', weight: 1, validate: metrics }],
      validate: metrics,
      errorCorrelation: 0,
      ensemble: {
        compared: [
          { kind: 'equal', weights: [0.5, 0.5], metrics },
          { kind: 'single', weights: [1, 0], metrics: { ...metrics, brier: 0.09 } },
        ],
        chosen: 'equal',
        pairs: [],
      },
      ablation: [],
      counts: { real: 30, synthetic: 6, leftOut: 2 },
      report: report
        ? {
            ...Object.fromEntries(kept),
            tensorboard: [
              { member: 'lite0', events: await put('first') },
              { member: 'lite0', events: await put('second') },
            ],
          }
        : null,
    };
    const result = { version: 1, name: 'x', ok: true, seconds: 1, environment: {} };
    const of = (job: string, more: object) => JSON.stringify({ ...result, job, output: more });
    for (const [name, text] of [
      ['a-torn', '{'],
      ['b-export', of('export', { bundle: trained })],
      ['c-train', of('train', output)],
    ] as const) {
      await mkdir(path.join(paths.jobs, name), { recursive: true });
      await writeFile(path.join(paths.jobs, name, 'result.json'), text);
    }
    return root;
  }
  const report = async (root: string, ...args: string[]) => {
    const code = await main(['report', ...args, '--home', root, '--json']);
    return { code, result: JSON.parse(terminal.out.trimEnd().split('\n').at(-1) ?? '') as Record<string, unknown> };
  };

  it('writes the pictures and event files of the newest model under names that their readers take', async () => {
    const root = await home(true);
    const { code, result } = await report(root);
    expect(code, terminal.err).toBe(EXIT.ok);
    const dir = path.join(root, 'reports', 'turn-0001');
    expect(result).toMatchObject({ model: 'turn-0001', out: dir });
    const read = (name: string) => readFile(path.join(dir, name), 'utf8');
    expect(await read('learning-curves.png')).toBe('curves');
    expect(await read('worst-errors.png')).toBe('worst');
    expect(await read('tensorboard/lite0/events.out.tfevents.0001')).toBe('second');
    expect(JSON.parse(await read('training.json'))).toMatchObject({ model: 'turn-0001', counts: { real: 30 } });
    expect(terminal.err).toMatch(/90\.0% of 20 validation images.*30 photographs and 6 synthetic images \(2 left out\)/);
    expect(terminal.err).toMatch(/lite0 .*fine-tune thrown away/);
    expect(terminal.err).toMatch(/note: lite0 alone has the lower Brier score/);
  });

  it('says so where no pictures were drawn, and where the training is not in this home', async () => {
    const root = await home(false);
    expect((await report(root, 'turn-0001')).result['files']).toEqual(['training.json']);
    expect(terminal.err).toMatch(/no pictures were drawn/);
    await rm(path.join(root, 'jobs'), { recursive: true });
    const { code, result } = await report(root);
    expect(code).toBe(EXIT.badInput);
    expect(JSON.stringify(result)).toMatch(/training of turn-0001 is not among the jobs.*backups leave jobs out/);
    expect((await report(root, 'nobody')).code).toBe(EXIT.badInput);
  });
});
