/**
 * `flywheel worker`: serves workflows and activities. It is the one process that writes the catalog. Before it takes work
 * it replays all open histories on this code, and refuses when one does not fit.
 */
import { existsSync, readFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { WorkflowIdConflictPolicy, ScheduleOverlapPolicy, ScheduleAlreadyRunning, type Client } from '@temporalio/client';
import { DefaultLogger, Runtime, Worker } from '@temporalio/worker';
import type { Logger } from 'pino';
import { createActivities, type ActivityDeps } from '../activities/index.js';
import type { FlywheelConfig } from '../domain/config.js';
import { MinerStatus } from '../domain/contracts/miner.js';
import { BadInputError } from '../domain/errors.js';
import { connectDendrite } from '../platform/bittensor/dendrite.js';
import { loadHotkey } from '../platform/bittensor/keys.js';
import { openCatalog } from '../platform/catalog/index.js';
import { packageRoot } from '../platform/entry.js';
import { LocalGpu } from '../platform/gpu/local.js';
import { homePaths, readServices, type HomePaths } from '../platform/home.js';
import { localHub } from '../platform/hub/local.js';
import { createLogger } from '../platform/log.js';
import { localRegistry } from '../platform/natix/local.js';
import { fileNotifier } from '../platform/notify.js';
import { FileObjectStore } from '../platform/objects/index.js';
import type { Catalog } from '../platform/ports.js';
import { connectTemporal, connectWorker, type TemporalAddress } from '../platform/temporal/connect.js';
import { lifecycleId, scheduleId } from '../workflows/ids.js';
import { lifecycleSettings } from '../workflows/messages.js';
import { TASK_QUEUE, type LifecycleSettings, type LifecycleState, type ModelRef } from '../workflows/types.js';
import { replayOpenHistories } from './replayOpen.js';

export interface WorkerOptions {
  home: string;
  config: FlywheelConfig;
  temporal: TemporalAddress;
  /** Python of the jobs' environment */
  python: string;
  /** hotkey whose champion this flywheel owns, SS58 */
  hotkey: string;
}

export interface RunningWorker {
  /** resolves when the worker stopped, rejects when it failed */
  done: Promise<void>;
  /** stops taking work, ends the jobs that run here with a checkpoint, closes the catalog */
  stop(): Promise<void>;
}

/** Grace of activities under way when the worker stops; what is cut off is done again at the next start. */
const SHUTDOWN_GRACE = '3s';
/** Shortest time between two heartbeats of an activity on their way to the server. */
const HEARTBEAT_AT_MOST_EVERY = '1s';
/** From SIGTERM to SIGKILL of a job when the flywheel stops: a checkpoint is written in it. */
const JOB_GRACE_MS = 10_000;

/** @throws ServiceUnavailableError, CatalogLockedError, OpenHistoryMismatchError */
export async function startWorker(options: WorkerOptions): Promise<RunningWorker> {
  const home = homePaths(options.home);
  const log = createLogger(home.logs, 'worker');
  Runtime.install({
    logger: new DefaultLogger('WARN', ({ level, message, meta }) => {
      log[level === 'ERROR' ? 'error' : level === 'WARN' ? 'warn' : 'info']({ meta: meta ?? {} }, message);
    }),
    shutdownSignals: [],
  });
  const bundleFile = path.join(packageRoot, 'dist', 'workflow-bundle.js');
  if (!existsSync(bundleFile)) throw new BadInputError(`${bundleFile} is missing: run "npm run build". Nothing was started.`);
  const workflowBundle = { codePath: bundleFile };

  const client = await connectTemporal(options.temporal);
  await replayOpenHistories(client, { code: readFileSync(bundleFile, 'utf8') });

  const catalog = await openCatalog(home.catalog);
  // What a killed process left half-written goes; objects themselves are only ever whole.
  await new FileObjectStore(home.objects).sweep();
  const gpu = new LocalGpu({ jobs: home.jobs, command: [options.python, '-m', 'flywheel_jobs.cli'] });
  const deps = makeDeps({ home, catalog, gpu, config: options.config, log, hotkey: options.hotkey });
  const connection = await connectWorker(options.temporal);
  const worker = await Worker.create({
    connection,
    namespace: options.temporal.namespace,
    taskQueue: TASK_QUEUE,
    workflowBundle,
    activities: createActivities(deps),
    shutdownGraceTime: SHUTDOWN_GRACE,
    // Many activities only wait and watch; the heavy ones are ordered by their workflows.
    maxConcurrentActivityTaskExecutions: 50,
    // Heartbeats carry the progress that `up` and the Temporal UI show; held back (80% of the time-out) it would stand still.
    maxHeartbeatThrottleInterval: HEARTBEAT_AT_MOST_EVERY,
    interceptors: {
      activity: [
        (context) => ({
          inbound: {
            // What took how long, for the operator's log and for the benchmarks.
            async execute(input, next) {
              const began = performance.now();
              try {
                return await next(input);
              } finally {
                log.info(
                  {
                    activity: context.info.activityType,
                    workflow: context.info.workflowExecution?.workflowId,
                    attempt: context.info.attempt,
                    ms: Math.round(performance.now() - began),
                  },
                  'activity finished',
                );
              }
            },
          },
        }),
      ],
    },
  });
  const running = worker.run();
  await ensureLifecycle(client, catalog, options);
  await ensureSchedule(client, options);
  log.info({ temporal: options.temporal.address, hotkey: options.hotkey }, 'worker takes work');

  let stopping: Promise<void> | null = null;
  const stop = () => {
    stopping ??= (async () => {
      // Jobs first: their checkpoint is what the next start goes on from.
      const endJobs = async () => {
        for (const job of await gpu.listOwned()) await gpu.end(job, JOB_GRACE_MS);
      };
      const ending = endJobs();
      if (worker.getState() === 'RUNNING') worker.shutdown();
      await Promise.allSettled([running, ending]);
      // An activity that was launching one meanwhile has ended by now.
      await endJobs();
      await connection.close();
      await client.connection.close();
      await catalog.close();
    })();
    return stopping;
  };
  return { done: running, stop };
}

/** Real adapters for the activities of this home. */
export function makeDeps(world: {
  home: HomePaths;
  catalog: Catalog;
  gpu: LocalGpu;
  config: FlywheelConfig;
  log: Logger;
  hotkey: string;
}): ActivityDeps {
  const { home, log } = world;
  return {
    home,
    catalog: world.catalog,
    objects: new FileObjectStore(home.objects),
    gpu: world.gpu,
    hub: localHub(),
    registry: localRegistry(home.published),
    notifier: fileNotifier(path.join(home.root, 'notifications.jsonl'), log),
    config: world.config,
    clock: Date.now,
    log,
    threads: Math.max(1, os.availableParallelism()),
    minerStatus: async () => {
      const miner = readServices(home).miner;
      if (!miner) return null;
      try {
        const answer = await fetch(`${miner.controlUrl}/readyz`, { signal: AbortSignal.timeout(2000) });
        return MinerStatus.parse(await answer.json());
      } catch (error) {
        log.debug({ error: String(error) }, 'the miner does not answer on its control port');
        return null;
      }
    },
    validator: async () => {
      const key = await loadHotkey(home.validatorKey);
      const dendrite = connectDendrite({ hotkey: key });
      return {
        ask: async (image, timeoutSeconds) => {
          // Read at every request: a restarted miner may have another port.
          const miner = readServices(home).miner;
          if (!miner) return { prediction: null, status: null, error: 'no miner runs' };
          const answer = await dendrite.ask({ url: miner.validatorUrl ?? miner.url, axonHotkey: miner.hotkey, image, timeoutSeconds });
          return { prediction: answer.prediction, status: answer.status, error: answer.error };
        },
        close: () => dendrite.close(),
      };
    },
  };
}

/** The lifecycle's state as the catalog knows it: what a lost Temporal database is rebuilt from. */
export async function lifecycleStateFrom(
  catalog: Pick<Catalog, 'champion' | 'model' | 'models' | 'trials' | 'reminders' | 'turn'>,
  hotkey: string,
): Promise<LifecycleState | null> {
  const champion = await catalog.champion(hotkey);
  if (!champion) return null;
  const ref = async (bundle: string): Promise<ModelRef | null> => {
    const model = await catalog.model(bundle);
    return model ? { id: model.id, bundle: model.bundle, trained: model.trained } : null;
  };
  const model = await ref(champion.pointer.digest);
  if (!model) return null;
  const reminded = (await catalog.reminders(hotkey)).filter((r) => r.submittedAt === champion.submittedAt).map((r) => r.day);
  let trial: LifecycleState['trial'] = null;
  const open = (await catalog.trials(hotkey)).filter((t) => t.closedAt === null).at(-1);
  if (open) {
    const candidate = await catalog.model(open.candidate);
    const plan = candidate
      ? ((await catalog.turn(candidate.turn))?.summary['plan'] as { config: string; seed: number } | undefined)
      : undefined;
    if (candidate && plan) {
      trial = {
        id: open.id,
        message: {
          model: { id: candidate.id, bundle: candidate.bundle, trained: candidate.trained },
          turn: candidate.turn,
          first: false,
          simulated: open.simulated,
          config: plan.config,
          seed: plan.seed,
        },
        looks: 0,
        openedAt: open.openedAt,
        last: null,
      };
    }
  }
  return {
    hotkey,
    champion: {
      pointer: champion.pointer,
      model,
      previous: champion.pointer.previous ? await ref(champion.pointer.previous) : null,
      submittedAt: champion.submittedAt,
    },
    trial,
    waiting: null,
    reminded,
    decided: [],
  };
}

/** Starts the lifecycle from the catalog, or tells the one that runs the configuration as it is now. */
export async function ensureLifecycle(
  client: Client,
  catalog: Parameters<typeof lifecycleStateFrom>[0],
  options: Pick<WorkerOptions, 'config' | 'hotkey'>,
): Promise<void> {
  const { config, hotkey } = options;
  const settings: LifecycleSettings = {
    decay: config.decay,
    trial: {
      lookEverySeconds: config.trial.lookEverySeconds,
      maxSeconds: config.trial.maxDays * 86_400,
      maxJobSeconds: config.gpu.maxJobSeconds,
    },
  };
  await client.workflow.signalWithStart('lifecycle', {
    taskQueue: TASK_QUEUE,
    workflowId: lifecycleId(hotkey),
    workflowIdConflictPolicy: WorkflowIdConflictPolicy.USE_EXISTING,
    staticSummary: `champion, trials and decay clock of ${hotkey}`,
    args: [{ hotkey, ...settings, state: await lifecycleStateFrom(catalog, hotkey) }],
    signal: lifecycleSettings,
    signalArgs: [settings],
  });
}

/** The daily turn as a Schedule; one at a time: a turn that runs long is not overtaken. */
export async function ensureSchedule(client: Client, options: Pick<WorkerOptions, 'config' | 'hotkey'>): Promise<void> {
  const { config, hotkey } = options;
  const spec = {
    cronExpressions: [config.schedule.cron],
    timezone: config.schedule.timezone || Intl.DateTimeFormat().resolvedOptions().timeZone,
  };
  const action = {
    type: 'startWorkflow' as const,
    workflowType: 'dailyTurn',
    workflowId: `turn-${hotkey.slice(0, 8)}`,
    taskQueue: TASK_QUEUE,
    args: [{ hotkey, data: null, simulated: true }],
  };
  const policies = { overlap: ScheduleOverlapPolicy.SKIP, catchupWindow: '1 hour' as const };
  const scheduleId_ = scheduleId(hotkey);
  try {
    await client.schedule.create({ scheduleId: scheduleId_, spec, action, policies });
  } catch (error) {
    if (!(error instanceof ScheduleAlreadyRunning)) throw error;
    // The cron may have been changed in the configuration; a pause set by the operator stays.
    await client.schedule.getHandle(scheduleId_).update((previous) => ({ ...previous, spec, policies, action: previous.action }));
  }
}
