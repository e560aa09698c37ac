/** What gate and trial keep between looks: evidence adds up, the error probability is spent once, and the quarter's candidates are counted. */
import { mkdtemp, rm } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { MockActivityEnvironment } from '@temporalio/testing';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { ActivityDeps } from '../../src/activities/deps.js';
import { modelActivities } from '../../src/activities/models.js';
import { seededRng } from '../../src/domain/rng.js';
import type { Verdict } from '../../src/domain/verdict.js';
import { loadConfig } from '../../src/platform/config.js';
import { homePaths } from '../../src/platform/home.js';
import { materialise } from '../../src/platform/inference/bundle.js';
import { FileObjectStore } from '../../src/platform/objects/index.js';
import type { ModelRecord } from '../../src/platform/ports.js';
import type { Evaluation } from '../../src/workflows/types.js';
import { putBundle } from '../support/bundle.js';

const DAY = 86_400_000;
const now = Date.UTC(2026, 5, 1);
let root: string;
let objects: FileObjectStore;
let config: string;
let candidate: string;
let champion: string;
const models: ModelRecord[] = [];
let judgePair: ReturnType<typeof modelActivities>['judgePair'];

beforeAll(async () => {
  root = await mkdtemp(path.join(os.tmpdir(), 'flywheel-judge-'));
  const home = homePaths(path.join(root, 'home'));
  objects = new FileObjectStore(home.objects);
  const loaded = loadConfig({});
  config = await objects.put(Buffer.from(JSON.stringify({ ...loaded, gate: { ...loaded.gate, resamples: 200 } })));
  ({ digest: candidate } = await putBundle(objects, { name: 'candidate' }));
  ({ digest: champion } = await putBundle(objects, { name: 'champion' }));
  for (const digest of [candidate, champion]) await materialise(objects, digest, path.join(home.bundles, digest));
  const catalog = {
    model: async (bundle: string) => models.find((m) => m.bundle === bundle) ?? null,
    turn: async () => null,
    models: async () => models,
    setModelStatus: async (id: string, _status: string, evidence: object) => {
      const model = models.find((m) => m.id === id);
      if (model) model.evidence = { ...(model.evidence as object), ...evidence };
    },
  };
  ({ judgePair } = modelActivities({ catalog, objects, home, config: loaded, threads: 1, clock: () => now } as unknown as ActivityDeps));
});
afterAll(() => rm(root, { recursive: true, force: true }));

const model = (id: string, daysAgo: number, evidence: object): ModelRecord => ({
  id,
  bundle: id === 'candidate' ? candidate : id,
  trained: '0'.repeat(64),
  parent: null,
  turn: 't',
  status: 'trial',
  createdAt: now - daysAgo * DAY,
  evidence,
});

/** A challenge set of so many groups with the answers of two models, the candidate's better by `lead`. */
async function set(name: string, groups: number, lead: number) {
  const rng = seededRng(name);
  const rows = [];
  const answers: [object[], object[]] = [[], []];
  for (let g = 0; g < groups; g++) {
    const digest = await objects.put(Buffer.from(`${name} ${g}`));
    const label = (g % 2) as 0 | 1;
    rows.push({
      digest,
      label,
      parent: digest,
      group: `${name} ${g}`,
      source: 's',
      pool: 'test',
      truth: 'truth',
      level: 0,
      synthetic: false,
    });
    const u = rng.next();
    [0.8, 0.8 + lead].forEach((share, i) =>
      (answers[i] as object[]).push({ digest, prediction: u < share === (label === 1) ? 0.9 : 0.1, votes: {}, ms: 5 }),
    );
  }
  const evaluation = async (of: object[]): Promise<Evaluation> => ({
    predictions: await objects.putJsonl(of),
    metrics: null,
    figures: [],
    n: of.length,
    failed: 0,
    p99Ms: 5,
  });
  return { set: await objects.putJsonl(rows), champion: await evaluation(answers[0]), candidate: await evaluation(answers[1]) };
}
const shadow = { answers: 50, errors: 0, p99Ms: 5, disagreement: 0, replayed: 0 };
const look = async (number: number, sets: Awaited<ReturnType<typeof set>>[], trial = 'trial-1', live: object = {}) =>
  new MockActivityEnvironment().run<[Parameters<typeof judgePair>[0]], Awaited<ReturnType<typeof judgePair>>, typeof judgePair>(judgePair, {
    turn: 't',
    config,
    sets,
    candidate,
    shadow: { ...shadow, ...live },
    look: number,
    seed: 1,
    champion,
    trial: { id: trial, last: false, late: false },
  });
const kept = (number: number) =>
  (models.find((m) => m.id === 'candidate')?.evidence as Record<string, Verdict & { sets: unknown[] }>)[`trial look ${number}`] as Verdict;

describe('looks of a trial', () => {
  it('add their evidence up, spend once, and a repeated look changes nothing', async () => {
    models.splice(0, models.length, model('candidate', 1, {}));
    const [one, two] = [await set('one', 120, 0.02), await set('two', 120, 0.02)];
    expect((await look(1, [one])).groups).toEqual({ positive: 60, negative: 60 });
    const first = structuredClone(kept(1));
    expect(first.spending).toMatchObject({ tests: true, candidate: 1 });
    expect((await look(2, [two])).groups).toEqual({ positive: 120, negative: 120 });
    const second = structuredClone(kept(2));
    expect(second.spending?.fraction).toBeGreaterThan(first.spending?.fraction ?? 1);
    expect(second.spending?.spent).toBeGreaterThanOrEqual(first.spending?.spent ?? 1);
    await look(2, [two]);
    expect(kept(2)).toEqual(second);
  });

  it('of another trial start anew, but do not get the spent part back', async () => {
    const spent = kept(2).spending?.spent ?? 0;
    expect(spent).toBeGreaterThan(0);
    const verdict = await look(3, [await set('three', 120, 0.02)], 'trial-2');
    expect(verdict.groups).toEqual({ positive: 60, negative: 60 });
    expect(kept(3).spending?.tests).toBe(false);
    expect(kept(3).spending?.spent).toBe(spent);
  });

  it('count the candidates that were judged in the 90 days before', async () => {
    models.splice(
      0,
      models.length,
      model('a', 120, { gate: {} }),
      model('b', 60, { gate: {} }),
      model('c', 30, { training: {} }),
      model('d', 10, { 'trial look 1': {} }),
      model('candidate', 1, {}),
      model('later', 0, { gate: {} }),
    );
    await look(1, [await set('four', 120, 0.02)]);
    expect(kept(1).spending?.candidate).toBe(3);
  });

  it('refuse a slow candidate, but not for a machine on which the champion was as slow at the same requests', async () => {
    models.splice(0, models.length, model('candidate', 1, {}));
    const sets = [await set('six', 200, 0.19)];
    expect((await look(1, sets, 'trial-1', { p99Ms: 60_000, championP99Ms: 55_000 })).decision).toBe('promote');
    const slow = await look(1, sets, 'trial-1', { p99Ms: 60_000, championP99Ms: 20 });
    expect(slow).toMatchObject({ decision: 'keep' });
    expect(slow.reason).toMatch(/its p99 latency is 60000 ms/);
  });

  it('never promote what missed an enforced gate, however much better it is', async () => {
    const missed = { gate: 'heldOut', threshold: 0.94, value: 0.9, n: 159, passed: false };
    models.splice(0, models.length, model('candidate', 1, { gates: [missed] }));
    const sets = [await set('seven', 200, 0.19)];
    expect((await look(1, sets)).decision).toBe('promote'); // the demo's gates only tell
    const told = config;
    const settings = loadConfig({});
    config = await objects.put(
      Buffer.from(JSON.stringify({ ...settings, gate: { ...settings.gate, resamples: 200 }, gates: { ...settings.gates, enforce: true } })),
    );
    const refused = await look(1, sets);
    config = told;
    expect(refused.decision).toBe('keep');
    expect(refused.reason).toMatch(/^Refused by the gates.*90\.0% of 159/);
  });

  it('promote what is far better, and the gate alone never spends', async () => {
    models.splice(0, models.length, model('candidate', 1, {}));
    const sets = [await set('five', 200, 0.19)];
    const gate = await new MockActivityEnvironment().run(judgePair, {
      turn: 't',
      config,
      sets,
      candidate,
      shadow: null,
      look: 1,
      seed: 1,
      champion,
    });
    expect((gate as { decision: string }).decision).toBe('promote');
    expect((models[0]?.evidence as { gate: Verdict }).gate.spending).toBeNull();
    expect((await look(1, sets)).decision).toBe('promote');
  });
});
