/**
 * Replays the committed histories on the code as it is, and on a twin of each workflow with one line broken, which the
 * replay must reject. A change that fits no old history needs `patched`, or new histories and a word in the changelog:
 * `npm run histories` records them anew.
 */
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { DeterminismViolationError } from '@temporalio/workflow';
import { bundleWorkflowCode, Worker, type WorkflowBundleWithSourceMap } from '@temporalio/worker';
import { resolveTypeScript, workflowBundle } from './support.js';

const root = fileURLToPath(new URL('../../', import.meta.url));
const folder = fileURLToPath(new URL('./histories/', import.meta.url));
const histories = readdirSync(folder).filter((f) => f.endsWith('.json'));
const workflowOf = (file: string): string => file.split('.')[0] ?? '';
const read = (file: string): unknown => JSON.parse(readFileSync(path.join(folder, file), 'utf8'));

/** One line of each workflow, broken as a careless change would break it. */
const TWINS: { workflow: string; file: string; find: string; replace: string; what: string }[] = [
  {
    workflow: 'gpuJob',
    file: 'gpuJob.ts',
    find: 'await quick.reserveJob({ name, kind: job.kind, maxSeconds: job.maxSeconds });',
    replace: '',
    what: 'launches without a reservation',
  },
  {
    workflow: 'dailyTurn',
    file: 'dailyTurn.ts',
    find: "await quick.registerChallenges({ set: set.set, turn, purpose: 'traffic', seed: order.seed });",
    replace: '',
    what: 'sends challenges that nobody registered',
  },
  {
    workflow: 'shadowTrial',
    file: 'shadowTrial.ts',
    find: 'await quick.openShadow({ trial, bundle: input.candidate.bundle, config: input.config });',
    replace: '',
    what: 'looks before the shadow is open',
  },
  {
    workflow: 'lifecycle',
    file: 'lifecycle.ts',
    find: 'await quick.writePointer({ hotkey: input.hotkey });',
    replace: '',
    what: 'promotes without moving the pointer',
  },
  {
    workflow: 'importImages',
    file: 'importImages.ts',
    find: 'return heavy.importDataset',
    replace: 'await heavy.importDataset(input as never); return heavy.importDataset',
    what: 'imports twice',
  },
  {
    workflow: 'answerReviews',
    file: 'answerReviews.ts',
    find: 'await getExternalWorkflowHandle(turn).signal(reviewsAnswered);',
    replace: '',
    what: 'tells no turn of the answers',
  },
];

describe('committed histories', () => {
  let bundle: WorkflowBundleWithSourceMap;
  beforeAll(async () => {
    bundle = await workflowBundle();
  });

  it.each(TWINS.map((t) => t.workflow))('there is one of %s', (workflow) => {
    expect(histories.map(workflowOf)).toContain(workflow);
  });

  it.each(histories)('%s fits the code', async (file) => {
    await expect(Worker.runReplayHistory({ workflowBundle: bundle }, read(file), workflowIdOf(read(file)))).resolves.toBeUndefined();
  });
});

describe('broken twins', () => {
  const places: string[] = [];
  afterAll(() => places.forEach((p) => rmSync(p, { recursive: true, force: true })));

  it.each(TWINS)('$workflow: a twin that $what is rejected', async ({ workflow, file, find, replace }) => {
    mkdirSync(path.join(root, '.cache'), { recursive: true });
    const place = mkdtempSync(path.join(root, '.cache', 'twin-'));
    places.push(place);
    for (const part of ['workflows', 'domain']) cpSync(path.join(root, 'src', part), path.join(place, part), { recursive: true });
    const source = path.join(place, 'workflows', file);
    const text = readFileSync(source, 'utf8');
    expect(text.split(find).length, `the line to break stands once in ${file}`).toBe(2);
    writeFileSync(source, text.replace(find, replace));
    const twin = await bundleWorkflowCode({
      workflowsPath: path.join(place, 'workflows', 'index.ts'),
      webpackConfigHook: resolveTypeScript,
    });

    const own = histories.filter((h) => workflowOf(h) === workflow);
    const rejected = await Promise.all(
      own.map((h) =>
        Worker.runReplayHistory({ workflowBundle: twin }, read(h), workflowIdOf(read(h))).then(
          () => null,
          (error: unknown) => error,
        ),
      ),
    );
    expect(rejected.some((error) => error instanceof DeterminismViolationError)).toBe(true);
  });
});

function workflowIdOf(history: unknown): string {
  const first = (history as { events: { workflowExecutionStartedEventAttributes?: { workflowId?: string } }[] }).events[0];
  return first?.workflowExecutionStartedEventAttributes?.workflowId ?? 'replayed';
}
