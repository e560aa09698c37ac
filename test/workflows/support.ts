/**
 * Activities played in memory, for tests of the order of things. Every call is counted; a test overrides what it is about.
 * The real activities are proven by test/activities and by the end-to-end turn.
 */
import { ApplicationFailure, Context } from '@temporalio/activity';
import type { Client } from '@temporalio/client';
import { IllegalStateError } from '@temporalio/common';
import { bundleWorkflowCode, DefaultLogger, Runtime, Worker, type WorkflowBundleWithSourceMap } from '@temporalio/worker';
import { fileURLToPath } from 'node:url';
import type { Activities } from '../../src/activities/index.js';
import type { VerdictNumbers } from '../../src/workflows/types.js';

// Failures are what many of these tests provoke: only what nobody expected is printed.
try {
  Runtime.install({ logger: new DefaultLogger('ERROR'), shutdownSignals: [] });
} catch (error) {
  // One runtime a process: another test file of this process was first.
  if (!(error instanceof IllegalStateError)) throw error;
}

export const hex = (n: number): string => n.toString(16).padStart(64, '0');

export function verdict(decision: VerdictNumbers['decision'], over: Partial<VerdictNumbers> = {}): VerdictNumbers {
  return {
    decision,
    reason: `played: ${decision}`,
    predictedReward: { champion: 0.5, candidate: 0.6, ci95: [0, 0.2] },
    accuracy: { champion: 0.9, candidate: 0.93, difference: 0.03, ci95: [0.01, 0.05] },
    groups: { positive: 50, negative: 50 },
    needGroups: null,
    n: 100,
    ...over,
  };
}

export interface Played {
  calls: { name: string; args: unknown }[];
  count(name: keyof Activities): number;
  activities: Activities;
}

/** Outputs of the jobs, by kind, as the contract has them. */
const outputs: Record<string, Record<string, unknown>> = {
  render: { images: hex(1), count: 10 },
  challenges: { set: hex(2), count: 10, byLevel: { '0': 10 } },
  neighbours: { neighbours: hex(3), queries: 1, corpus: 2 },
  synthesize: { manifest: hex(4), count: 8, byProvider: { composite: 8 }, byIntent: { '1': 8 }, skipped: [] },
  label: { votes: hex(5), count: 8, outOfFold: [], errorCorrelation: 0.2 },
  train: {
    trained: hex(6),
    members: [],
    validate: { accuracy: 1, mcc: 1, brier: 0, n: 1 },
    errorCorrelation: 0,
    ablation: [],
    counts: { real: 1, synthetic: 1, leftOut: 0 },
  },
  export: { bundle: hex(7), bytes: 10, parity: { n: 1, maxAbsDp: 0 } },
};

export function play(overrides: Partial<Activities> = {}): Played {
  const calls: Played['calls'] = [];
  let models = 0;
  const evaluation = {
    predictions: hex(20),
    metrics: { accuracy: 0.9, mcc: 0.8, brier: 0.1, n: 10 },
    n: 10,
    failed: 0,
    p99Ms: 10,
    figures: [],
  };
  const summary = {
    train: 6,
    calibrate: 1,
    validate: 1,
    test: 1,
    traffic: 1,
    val: 1,
    duplicates: 0,
    skipped: 0,
    problems: [],
    warnings: [],
    positives: 5,
    negatives: 5,
    groups: 10,
    from: 'played',
  };
  const base: Activities = {
    planTurn: async ({ turn }) => ({
      turn,
      index: 0,
      seed: 1,
      config: hex(9),
      champion: null,
      hasImages: true,
      retrainAbove: 5,
      reviewTimeoutSeconds: 0,
      maxJobSeconds: 60,
    }),
    recordTurn: async () => undefined,
    importDataset: async () => summary,
    registerRendered: async () => summary,
    describeDataset: async () => summary,
    buildManifests: async () => ({ train: hex(10), test: hex(11), traffic: hex(12) }),
    buildSnapshot: async () => ({
      snapshot: hex(13),
      real: 8,
      derived: 8,
      byTruth: { truth: 8, consensus: 8 },
      fresh: null,
      freshCount: 0,
    }),
    reserveJob: async () => undefined,
    launchJob: async () => ({ adopted: false }),
    watchJob: async () => ({ outcome: 'done' as const, message: '' }),
    collectJob: async ({ kind }) => ({ output: outputs[kind] ?? {}, seconds: 1 }),
    endJob: async () => undefined,
    renderInput: async ({ seed }) => ({ count: 10, perGroup: 1, seed, width: 400, height: 300 }),
    challengesInput: async ({ manifest, seed }) => ({
      manifest,
      profile: '2026-01' as const,
      mode: 'draw' as const,
      count: 10,
      seed,
      flips: false,
    }),
    labelInput: async ({ candidates, train, seed }) => ({ candidates, train, members: [], folds: 2, seed }),
    neighboursInput: async ({ queries, corpus }) => ({
      queries,
      corpus,
      k: 50,
      member: { name: 'a', backbone: 'b', weights: 'none', features: 'final' as const, resolution: 224 },
    }),
    synthesizeInput: async (i) => ({
      failures: i.failures,
      corpus: i.corpus,
      neighbours: i.neighbours,
      perFailure: 8,
      maxImages: 100,
      providers: ['composite' as const],
      seed: i.seed,
    }),
    trainInput: async (i) => ({
      snapshot: i.snapshot,
      members: [],
      initFrom: i.initFrom,
      views: 0,
      fineTune: { mode: 'never' as const, gate: 0, epochs: 1, batch: 1, backboneLr: 1, headLr: 1, maxSeconds: 1 },
      maxSyntheticShare: 0.5,
      ablation: true,
      folds: 2,
      seed: i.seed,
    }),
    exportInput: async (i) => ({
      trained: i.trained,
      name: i.turn,
      snapshot: i.snapshot,
      parent: i.parent,
      parity: i.parity,
      parityImages: 1,
      parityTolerance: 0.001,
      seed: i.seed,
    }),
    registerChallenges: async () => undefined,
    sendTraffic: async () => ({ asked: 10, answered: 10, failed: 0, missing: 0 }),
    awaitServing: async () => undefined,
    openShadow: async () => undefined,
    closeShadow: async () => undefined,
    awaitShadow: async () => undefined,
    shadowStatistics: async () => ({ answers: 20, errors: 0, p99Ms: 12 }),
    ingestJournal: async () => ({ added: 0 }),
    viewsInput: async ({ seed }) => ({
      manifest: hex(14),
      profile: '2026-01' as const,
      mode: 'variants' as const,
      count: 3,
      seed,
      flips: false,
    }),
    mineHardCases: async () => ({
      count: 10,
      failures: hex(15),
      corpus: hex(16),
      fromTruth: 4,
      fromTraffic: 6,
      hardest: [],
      considered: { truth: 6, traffic: 10 },
      unseen: [],
    }),
    registerSynthetic: async () => ({ added: 8, known: 0 }),
    labelCandidates: async () => ({ manifest: hex(17), count: 8 }),
    decideLabels: async () => ({ consensus: 6, rejected: 1, toVerify: 1 }),
    registerModel: async ({ trained }) => {
      models += 1;
      return { id: `model-${models}`, bundle: hex(100 + models), trained };
    },
    findModel: async ({ model }) => ({ id: model, bundle: hex(200), trained: hex(201) }),
    rejectModel: async () => undefined,
    evaluateModel: async () => evaluation,
    replayTraffic: async () => ({ n: 10, disagreement: 0.1 }),
    judgePair: async () => verdict('promote'),
    moveChampion: async ({ model, expected }) => ({ generation: expected + 1, digest: model.bundle, previous: null }),
    writePointer: async () => undefined,
    publishModel: async ({ at }) => ({ version: '1.0.0', folder: 'published/1.0.0', repo: 'local', submittedAt: at }),
    openTrial: async () => undefined,
    closeTrial: async () => undefined,
    remind: async () => undefined,
    answerReviews: async () => ({ taken: 2, known: 0, notAsked: 0, notAskedFirst: [], open: 0, finished: ['turn-1'], turns: ['turn-1'] }),
    ...overrides,
  };
  const activities = Object.fromEntries(
    Object.entries(base).map(([name, run]) => [
      name,
      (args: unknown) => {
        calls.push({ name, args });
        return (run as (a: unknown) => Promise<unknown>)(args);
      },
    ]),
  ) as unknown as Activities;
  return { calls, activities, count: (name) => calls.filter((c) => c.name === name).length };
}

let bundle: Promise<WorkflowBundleWithSourceMap> | undefined;
/** The real workflows, bundled once a test process. */
export function workflowBundle(): Promise<WorkflowBundleWithSourceMap> {
  bundle ??= bundleWorkflowCode({
    workflowsPath: fileURLToPath(new URL('../../src/workflows/index.ts', import.meta.url)),
    webpackConfigHook: resolveTypeScript,
  });
  return bundle;
}

/** Sources import `./x.js` as Node wants it; the bundler finds `./x.ts`. */
export function resolveTypeScript<C extends { resolve?: object }>(config: C): C {
  config.resolve = { ...config.resolve, extensionAlias: { '.js': ['.ts', '.js'] } };
  return config;
}

let queues = 0;
/** Runs `body` while a worker serves the given activities on a queue of its own. */
export async function withWorker<T>(
  env: { nativeConnection: import('@temporalio/worker').NativeConnection; client: Client; namespace?: string },
  played: Played,
  body: (taskQueue: string) => Promise<T>,
): Promise<T> {
  const taskQueue = `test-${process.pid}-${++queues}`;
  const worker = await Worker.create({
    connection: env.nativeConnection,
    namespace: env.namespace ?? 'default',
    taskQueue,
    workflowBundle: await workflowBundle(),
    activities: played.activities,
    maxConcurrentActivityTaskExecutions: 20,
  });
  return worker.runUntil(body(taskQueue));
}

export { ApplicationFailure, Context };
