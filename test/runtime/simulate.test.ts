/** `flywheel simulate` as a user runs it: bundles and miners of known behaviour, drawn images, no Temporal. */
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { EXIT } from '../../src/cli/exit.js';
import { main } from '../../src/cli/main.js';
import { createHotkey } from '../../src/platform/bittensor/keys.js';
import { writeBundle } from '../support/bundle.js';
import { greyJpeg } from '../support/images.js';
import { startMiner, type TestMiner } from '../support/miner.js';
import { caughtTerminal } from '../support/terminal.js';

let folder: string;
let data: string;
let bright: string;
let dark: string;
const IMAGES = 24;
/** bright images are of roadwork, but for every sixth */
const isBright = (i: number): boolean => (i % 2 === 1) !== (i % 6 === 5);

beforeAll(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), 'flywheel-simulate-'));
  data = path.join(folder, 'data');
  await mkdir(data);
  const lines = ['file,label,group,source'];
  for (let i = 0; i < IMAGES; i++) {
    await writeFile(path.join(data, `${i}.jpg`), await greyJpeg(isBright(i) ? 200 : 60, i + 1));
    lines.push(`${i}.jpg,${i % 2},clip-${((i >> 1) << 1) | (i % 2)},camera-${i % 3}`);
  }
  await writeFile(path.join(data, 'labels.csv'), lines.join('\n'));
  ({ dir: bright } = await writeBundle(path.join(folder, 'bundles'), { name: 'bright' }));
  ({ dir: dark } = await writeBundle(path.join(folder, 'bundles'), { name: 'dark', members: [{ model: 'dark', weight: 1 }] }));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const terminal = caughtTerminal();

interface Result {
  set: string;
  subject: string;
  files: string[];
  asked: number;
  answered: number;
  errors: Record<string, number>;
  report: import('../../src/domain/simulation.js').SimulationReport;
  earnings: import('../../src/domain/simulation.js').Earnings | null;
  against: { verdict: import('../../src/domain/verdict.js').Verdict; planned: { groups: number; have: number } } | null;
}
async function simulate(...args: string[]): Promise<Result> {
  const code = await main(['simulate', '--home', path.join(folder, 'home'), '--data', data, '--seed', '7', '--json', ...args]);
  expect(code, terminal.err).toBe(EXIT.ok);
  return JSON.parse(terminal.out.trimEnd().split('\n').at(-1) ?? '') as Result;
}

// A job's Python takes seconds to start, on a busy machine many.
const SLOW = 180_000;

describe('simulate on bundles', { timeout: SLOW }, () => {
  it('needs no running instance, tells every figure, draws its pictures, and judges a pair on the same challenges', async () => {
    const result = await simulate(
      ...['--bundle', bright, '--against', dark, '--challenges', '90'],
      ...['--alpha-price', '2', '--emission', '100', '--field-reward', '0.5', '--miners', '10'],
    );
    const { report } = result;
    expect(result).toMatchObject({ asked: 90, answered: 90, subject: 'bright', errors: {} });
    expect(report.overall.accuracy).toBeGreaterThan(0.6);
    expect(report.byLevel.length).toBe(4);
    expect(report.bySource.map((p) => p.of)).toEqual(['camera-0', 'camera-1', 'camera-2']);
    expect(report.byTruth.map((p) => p.of)).toEqual(['truth']);
    expect(result.earnings?.perDay).toBeGreaterThan(0);
    for (const file of result.files.filter((f) => f.endsWith('.svg'))) expect(await readFile(file, 'utf8')).toMatch(/^<svg/);
    // Twelve groups a class: however good it looks, that is no evidence to promote on.
    expect(result.against?.verdict).toMatchObject({ decision: 'continue', scope: 'real only' });
    expect(result.against?.verdict.needGroups).toBeGreaterThanOrEqual(56);
    expect(terminal.err).toMatch(/about \d+ more are needed/);
    expect(terminal.err).toMatch(/verdict +CONTINUE: Candidate is better/);
  });

  it('asks the same for the same seed, and other profiles otherwise', async () => {
    const one = await simulate('--bundle', bright, '--challenges', '12');
    const two = await simulate('--bundle', bright, '--challenges', '12');
    expect(two.set).toBe(one.set);
    expect(two.report).toEqual(one.report);
    const other = await simulate('--bundle', bright, '--challenges', '12', '--profile', '2026-05');
    expect(other.set).not.toBe(one.set);
    expect(other.report.byLevel.map((p) => p.of)).toEqual(['level 0']);
  });

  it.each([
    ['a folder that is no bundle', async () => path.join(folder, 'nowhere'), /The bundle .*nowhere cannot be read/],
    [
      'a corrupt member',
      async () => {
        const { dir, bundle } = await writeBundle(path.join(folder, 'corrupt'), { name: 'corrupt' });
        const file = path.join(dir, bundle.members[0]?.onnx.path ?? '');
        const bytes = await readFile(file);
        bytes[20] = (bytes[20] ?? 0) ^ 255;
        await writeFile(file, bytes);
        return dir;
      },
      /is damaged/,
    ],
    [
      'a missing member',
      async () => {
        const { dir, bundle } = await writeBundle(path.join(folder, 'missing'), { name: 'missing' });
        await rm(path.join(dir, bundle.members[0]?.onnx.path ?? ''));
        return dir;
      },
      /lacks bright-0\/model.onnx/,
    ],
    [
      'a bundle.json that was changed',
      async () => {
        const { dir } = await writeBundle(path.join(folder, 'changed'), { name: 'changed' });
        await writeFile(
          path.join(dir, 'bundle.json'),
          (await readFile(path.join(dir, 'bundle.json'), 'utf8')).replace('changed', 'chanced'),
        );
        return dir;
      },
      /hashes to .* not .*changed after it was made/,
    ],
  ])('refuses %s with a reason, before anything is drawn', async (_, make, reason) => {
    const args = ['simulate', '--home', path.join(folder, 'home'), '--data', data, '--bundle', await make()];
    expect(await main(args)).toBe(EXIT.badInput);
    expect(terminal.err).toMatch(reason);
  });

  it('refuses two subjects, an unknown profile, and a folder with one class only', async () => {
    const home = ['--home', path.join(folder, 'home')];
    expect(await main(['simulate', ...home, '--bundle', bright, '--url', 'http://127.0.0.1:1'])).toBe(EXIT.badInput);
    expect(terminal.err).toMatch(/not several/);
    expect(await main(['simulate', ...home, '--bundle', bright, '--profile', '1999-01'])).toBe(EXIT.badInput);
    expect(terminal.err).toMatch(/2026-01, 2026-05/);
    const one = path.join(folder, 'one-class');
    await mkdir(path.join(one, 'roadwork'), { recursive: true });
    await writeFile(path.join(one, 'roadwork', 'a.jpg'), await greyJpeg(200, 3));
    expect(await main(['simulate', ...home, '--bundle', bright, '--data', one])).toBe(EXIT.badInput);
    expect(terminal.err).toMatch(/Class 0 \(no roadwork\) is empty/);
  });
});

describe('simulate as a validator', { timeout: SLOW }, () => {
  let t: TestMiner;
  let key: string;
  const servers: http.Server[] = [];
  beforeAll(async () => {
    t = await startMiner({ open: true });
    await t.promote(1, { name: 'says bright' });
    await t.until('serving', () => t.miner.status().ready);
    key = path.join(folder, 'validator.json');
    await createHotkey(key);
  });
  afterAll(async () => {
    await t.end();
    for (const server of servers) {
      server.closeAllConnections();
      server.close();
    }
  });
  async function stub(answer: (request: http.IncomingMessage, response: http.ServerResponse) => void): Promise<string> {
    const server = http.createServer((request, response) => {
      request.resume().on('end', () => answer(request, response));
    });
    servers.push(server);
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  }
  const ask = (url: string, ...more: string[]) => [
    '--url',
    url,
    '--axon-hotkey',
    t.hotkey.address,
    '--hotkey-file',
    key,
    '--challenges',
    '12',
    ...more,
  ];

  it('scores a miner by signed requests as its bundle would be scored', async () => {
    const wire = await simulate(...ask(t.miner.url));
    expect(wire).toMatchObject({ asked: 12, answered: 12 });
    const here = await simulate('--bundle', bright, '--challenges', '12');
    expect(wire.set).toBe(here.set);
    expect(wire.report.overall.accuracy).toBe(here.report.overall.accuracy);
  });

  it('counts what is garbage, no number, not a number or out of range, and goes on', async () => {
    let n = 0;
    const bodies = ['<html>', '{"prediction": NaN}', '{"prediction": "0.9"}', '{"prediction": 7.5}', '{"prediction": 0.2}', '{}'];
    const url = await stub((_, response) => {
      response.setHeader('content-type', 'application/json');
      response.end(bodies[n++ % bodies.length]);
    });
    const { report, errors } = await simulate(...ask(url));
    expect(report).toMatchObject({ asked: 12, answered: 2, outOfRange: 2, missing: 8 });
    expect(Object.values(errors).reduce((a, b) => a + b, 0)).toBe(8);
    expect(Object.keys(errors).join()).toMatch(/not JSON.*no numeric prediction|no numeric prediction.*not JSON/s);
  });

  it('counts a miner that closes the connection now and then as silent then', async () => {
    let n = 0;
    const url = await stub((request, response) => {
      if (n++ % 2 === 1) request.socket.destroy();
      else response.setHeader('content-type', 'application/json').end('{"prediction": 0.7}');
    });
    expect((await simulate(...ask(url))).report).toMatchObject({ asked: 12, answered: 6, missing: 6 });
  });

  it('ends with a clear error when a URL hangs or nobody listens', async () => {
    const hanging = await stub(() => undefined);
    const home = ['simulate', '--home', path.join(folder, 'home'), '--data', data, '--seed', '7'];
    expect(await main([...home, ...ask(hanging, '--timeout', '0.2')])).toBe(EXIT.unavailable);
    expect(terminal.err).toMatch(/gave no answer to any of the first 8 challenges: 8 x no answer within 0.2 s/);
    expect(await main([...home, ...ask('http://127.0.0.1:1')])).toBe(EXIT.unavailable);
    expect(terminal.err).toMatch(/ECONNREFUSED/);
  });

  it('asks for the hotkey that it signs for, and for an address that is one', async () => {
    const home = ['simulate', '--home', path.join(folder, 'home'), '--data', data];
    expect(await main([...home, '--url', t.miner.url])).toBe(EXIT.badInput);
    expect(terminal.err).toMatch(/give it with --axon-hotkey/);
    expect(await main([...home, '--url', 'miner.example', '--axon-hotkey', 'x'])).toBe(EXIT.badInput);
    expect(terminal.err).toMatch(/must be http:\/\/HOST:PORT/);
  });
});
