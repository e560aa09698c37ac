/**
 * On rendered scenes, whose truth is exact: a candidate known to be better is promoted, one known to be worse is refused.
 * Everything is real but the candidates' origin: their calibration was spoiled on purpose, by a known amount.
 */
import { mkdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Worker } from '@temporalio/worker';
import { createActivities } from '../../src/activities/index.js';
import { makeDeps } from '../../src/cli/workerCommand.js';
import type { Bundle } from '../../src/domain/contracts/bundle.js';
import type { ImageRow } from '../../src/domain/contracts/common.js';
import { JobResult, type JobKind } from '../../src/domain/contracts/jobs.js';
import { runMiner } from '../../src/miner/index.js';
import { loadOrCreateHotkey, type Hotkey } from '../../src/platform/bittensor/keys.js';
import { openCatalog } from '../../src/platform/catalog/index.js';
import { fileMetagraph } from '../../src/platform/metagraph/index.js';
import { loadConfig } from '../../src/platform/config.js';
import { jobDir, LocalGpu } from '../../src/platform/gpu/local.js';
import { homePaths, writeServices } from '../../src/platform/home.js';
import { writeJsonAtomic } from '../../src/platform/fsutil.js';
import { createLogger } from '../../src/platform/log.js';
import { freePort } from '../../src/platform/process.js';
import { FileObjectStore } from '../../src/platform/objects/index.js';
import type { Catalog } from '../../src/platform/ports.js';
import { ensurePython } from '../../src/platform/python/env.js';
import { lifecycle } from '../../src/workflows/index.js';
import { candidateReady, lifecycleStatus } from '../../src/workflows/messages.js';
import { TASK_QUEUE, type LifecycleState, type ModelRef } from '../../src/workflows/types.js';
import { createLocalEnv, type LocalEnv } from '../support/temporal.js';
import { workflowBundle } from '../workflows/support.js';
import { temporaryHome } from './support.js';

const SCENES = 280;
/** Groups a class that the verdict asks for at least, as in the demo preset. */
const GROUPS = 40;

describe('verdicts on rendered scenes', () => {
  const place = temporaryHome();
  const paths = homePaths(place.home);
  const objects = new FileObjectStore(paths.objects);
  const log = createLogger(paths.logs, 'test');
  const config = loadConfig({ file: place.config });
  config.gate = { ...config.gate, resamples: 2000 };
  config.trial = { ...config.trial, simulatedChallenges: 260 };
  let temporal: LocalEnv;
  let catalog: Catalog;
  let hotkey: Hotkey;
  let miner: Awaited<ReturnType<typeof runMiner>>;
  let worker: Worker;
  let serving: Promise<void>;
  let configDigest: string;
  let good: ModelRef;

  async function job(gpu: LocalGpu, kind: JobKind, name: string, input: Record<string, unknown>): Promise<Record<string, unknown>> {
    const workDir = jobDir(paths.jobs, name);
    await gpu.launchOrAdopt(
      { version: 1, job: kind, name, objects: { kind: 'file', root: paths.objects }, cacheDir: paths.cache, workDir, threads: 2, input },
      { maxSeconds: 600, nice: 5 },
    );
    let status = await gpu.status(name);
    while (status.state === 'running') {
      await sleep(200);
      status = await gpu.status(name);
    }
    await gpu.end(name, 1000);
    const result = JobResult.parse(JSON.parse(readFileSync(path.join(workDir, 'result.json'), 'utf8')));
    if (!result.ok) throw new Error(`${kind}: ${result.error.message}`);
    return result.output;
  }

  /** The good bundle with another calibration: the same networks, other answers. */
  async function spoiled(name: string, calibration: Bundle['calibration']): Promise<ModelRef> {
    const bundle = JSON.parse((await objects.get(good.bundle)).toString()) as Bundle;
    const digest = await objects.put(Buffer.from(`${JSON.stringify({ ...bundle, name, calibration }, null, 2)}\n`));
    return createActivities(deps()).registerModel({
      turn: 'test',
      bundle: digest,
      trained: good.trained,
      parent: null,
      name,
      training: null,
    });
  }
  const deps = () => makeDeps({ home: paths, catalog, gpu, config, log, hotkey: hotkey.address });
  let gpu: LocalGpu;

  beforeAll(async () => {
    const { python } = await ensurePython();
    gpu = new LocalGpu({ jobs: paths.jobs, command: [python, '-m', 'flywheel_jobs.cli'] });
    catalog = await openCatalog(paths.catalog);
    hotkey = await loadOrCreateHotkey(paths.minerKey);
    const validator = await loadOrCreateHotkey(paths.validatorKey);
    await writeJsonAtomic(paths.metagraph, [
      { uid: 0, hotkey: validator.address, validatorPermit: true, stake: 1000 },
      { uid: 1, hotkey: hotkey.address, validatorPermit: false, stake: 0 },
    ]);
    configDigest = await objects.put(Buffer.from(JSON.stringify(config)));

    const rendered = await job(gpu, 'render', 'render', { count: SCENES, seed: 5, perGroup: 1, width: 320, height: 240 });
    const scenes = await objects.getJsonl(
      String(rendered['images']),
      (r) => r as Pick<ImageRow, 'digest' | 'label' | 'group' | 'source' | 'width' | 'height'>,
    );
    // Half of the scenes are held out, so that there are enough groups for a verdict.
    const held: Record<number, number> = { 0: 0, 1: 0 };
    const rows = scenes.map((s): ImageRow => {
      const label = s.label ?? 0;
      held[label] = (held[label] ?? 0) + 1;
      const nth = held[label] ?? 0;
      const rest = (['calibrate', 'validate', 'traffic', 'train', 'train', 'train'] as const)[nth % 6] ?? 'train';
      const pool = nth <= SCENES / 4 ? 'test' : rest;
      return { ...s, label, truth: 'truth', pool, parents: [], provider: null, intent: null, weight: 1 };
    });
    await catalog.addImages(rows, Date.now());
    const activities = createActivities(deps());
    const { snapshot } = await activities.buildSnapshot({ turn: 'test', config: configDigest, synthetic: null });
    const trained = await job(
      gpu,
      'train',
      'train',
      await activities.trainInput({ config: configDigest, snapshot, initFrom: null, seed: 1 }),
    );
    const manifests = await activities.buildManifests({ turn: 'test' });
    const order = await activities.exportInput({
      turn: 'test',
      trained: String(trained['trained']),
      snapshot,
      parent: null,
      parity: manifests.train,
      first: true,
      seed: 1,
    });
    const exported = await job(gpu, 'export', 'export', order);
    good = await activities.registerModel({
      turn: 'test',
      bundle: String(exported['bundle']),
      trained: String(trained['trained']),
      parent: null,
      name: 'good',
      training: null,
    });

    temporal = await createLocalEnv();
    miner = await runMiner({
      home: place.home,
      host: '127.0.0.1',
      port: await freePort(),
      controlPort: await freePort(),
      hotkey,
      metagraph: await fileMetagraph(paths.metagraph),
      open: false,
      processes: 1,
      threads: 1,
      journalMaxBytes: 1e9,
      logger: log,
    });
    await writeServices(paths, {
      up: null,
      temporal: null,
      miner: { url: miner.url, controlUrl: miner.controlUrl, hotkey: hotkey.address },
      children: {},
    });
    worker = await Worker.create({
      connection: temporal.env.nativeConnection,
      taskQueue: TASK_QUEUE,
      workflowBundle: await workflowBundle(),
      activities: createActivities(deps()),
    });
    serving = worker.run();
    mkdirSync(paths.published, { recursive: true });
  });

  afterAll(async () => {
    worker?.shutdown();
    await serving;
    await miner?.stop();
    await temporal?.teardown();
    await catalog?.close();
    place.remove();
  });

  async function stateAfterTrial(
    handle: { query: (q: typeof lifecycleStatus) => Promise<{ state: LifecycleState }> },
    model: string,
  ): Promise<LifecycleState> {
    for (;;) {
      const { state } = await handle.query(lifecycleStatus);
      if (
        state.decided.some((d) => d.model === model) ||
        (state.trial?.message.model.id === model && state.trial.last?.decision === 'continue')
      )
        return state;
      await sleep(300);
    }
  }

  it('promotes the candidate that is better, serves it, and refuses the one that is worse', async () => {
    // A champion that says roadwork far too readily: right on about half of the challenges.
    const poor = await spoiled('poor', { kind: 'platt', a: 0.2, b: 3, n: 1 });
    const owner = await temporal.env.client.workflow.start(lifecycle, {
      taskQueue: TASK_QUEUE,
      workflowId: `lifecycle-${hotkey.address}`,
      args: [
        {
          hotkey: hotkey.address,
          decay: config.decay,
          trial: { lookEverySeconds: 3600, maxSeconds: 86_400, maxJobSeconds: 600 },
          state: null,
        },
      ],
    });
    const offer = (model: ModelRef, first: boolean) =>
      owner.signal(candidateReady, { model, turn: 'test', first, simulated: true, config: configDigest, seed: 3 });
    await offer(poor, true);
    await expect.poll(() => miner.status().serving?.digest, { timeout: 60_000 }).toBe(poor.bundle);

    await offer(good, false);
    const promoted = await stateAfterTrial(owner, 'good');
    expect(promoted.decided[0], JSON.stringify([promoted.decided[0], promoted.trial?.last])).toMatchObject({
      model: 'good',
      decision: 'promote',
    });
    expect(promoted.champion?.model.id).toBe('good');
    await expect.poll(() => miner.status().serving?.digest, { timeout: 60_000 }).toBe(good.bundle);
    const trial = (await catalog.trials(hotkey.address)).find((t) => t.candidate === good.bundle);
    const { verdict } = trial?.evidence as { verdict: { groups: { positive: number; negative: number } } };
    expect(Math.min(verdict.groups.positive, verdict.groups.negative)).toBeGreaterThanOrEqual(GROUPS);

    // The opposite mistake, against the good champion.
    const worse = await spoiled('worse', { kind: 'platt', a: 0.2, b: -3, n: 1 });
    await offer(worse, false);
    const kept = await stateAfterTrial(owner, 'worse');
    expect(kept.decided[0], JSON.stringify([kept.decided[0], kept.trial?.last])).toMatchObject({ model: 'worse', decision: 'keep' });
    expect(kept.champion?.model.id).toBe('good');
    expect(miner.status().serving?.digest).toBe(good.bundle);
    expect((await catalog.model('worse'))?.status).toBe('rejected');
    await owner.terminate('the test is over');
  });
});
