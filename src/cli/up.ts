/**
 * `flywheel up`: sets up what is missing, starts everything, runs a first turn, keeps running. Ctrl-C at any moment ends
 * all of it in order; the next `up` goes on where the turn was.
 */
import path from 'node:path';
import { packageRoot } from '../platform/entry.js';
import { takeLock } from '../platform/lock.js';
import { ownIdentity } from '../platform/process.js';
import { ensurePython } from '../platform/python/env.js';
import {
  connectTemporal,
  ensureTemporal,
  type TemporalAddress,
  temporalCommand,
  temporalFromEnvironment,
  waitHealthy,
} from '../platform/temporal/server.js';
import { HEALTHY_WITHIN_MS } from '../platform/temporal/server.js';
import { licenceWarnings } from '../domain/backbones.js';
import { BadInputError } from '../domain/errors.js';
import { renderSummary } from '../domain/turnSummary.js';
import { type CommandContext, createContext } from './context.js';
import { describeError, errorJson, EXIT, exitCodeOf, InterruptedError } from './exit.js';
import { ensureIdentity } from './identity.js';
import type { UpOptions } from './main.js';
import { minerPorts } from './minerCommand.js';
import { Supervisor } from './supervisor.js';
import { existsSync, statSync } from 'node:fs';

/** npm and the terminal both pass one Ctrl-C on: two signals within this time are one. */
const SAME_KEYSTROKE_MS = 700;

/**
 * @throws BadInputError, ServiceUnavailableError, HomeLockedError, StageFailedError, InterruptedError; in every case all
 * that was started has been ended
 */
export async function up(options: UpOptions): Promise<void> {
  if (options.data !== undefined && (!existsSync(options.data) || !statSync(options.data).isDirectory())) {
    throw new BadInputError(
      `--data: ${options.data} is not a folder. Nothing was started. Give a folder of images with labels.csv, or one with a folder a class.`,
    );
  }
  // A folder that is no data set is refused before minutes of installing and starting.
  if (options.data !== undefined) await (await import('../platform/dataset/index.js')).scanDataset(options.data);
  const context = createContext(options, 'up');
  const lock = await takeLock(context.paths.lock, `The home ${context.paths.root}`);
  const supervisor = new Supervisor(context.paths);
  const signals = new Signals(context, supervisor);
  // A fault anywhere in this process must not leave its children running without it.
  const onFault = (error: unknown): void => {
    context.logger.fatal({ error: errorJson(error) }, 'fault in the supervisor');
    if (signals.aborted) return;
    context.progress.line(`flywheel: ${describeError(error)}`);
    signals.fault(error);
  };
  process.on('uncaughtException', onFault).on('unhandledRejection', onFault);
  try {
    await Promise.race([run(context, options, supervisor, signals), signals.interrupted]);
  } finally {
    context.progress.close();
    await supervisor.stopAll();
    signals.close();
    lock.release();
    process.off('uncaughtException', onFault).off('unhandledRejection', onFault);
  }
}

async function run(context: CommandContext, options: UpOptions, supervisor: Supervisor, signals: Signals): Promise<void> {
  const { paths, progress, logger } = context;
  const seconds: Record<string, number> = {};
  const timed = async <T>(name: string, work: () => Promise<T>): Promise<T> => {
    const began = performance.now();
    const stage = progress.stage(name);
    try {
      const value = await work();
      stage.done();
      return value;
    } catch (error) {
      stage.fail(signals.aborted ? 'interrupted' : ((error as Error).message.split('\n')[0] ?? ''));
      throw error;
    } finally {
      seconds[name] = (performance.now() - began) / 1000;
    }
  };
  const onProgress =
    (name: string) =>
    (message: string, elapsed?: number): void => {
      progress.stage(name).update({ message: elapsed === undefined || elapsed < 5 ? message : `${message} (${elapsed} s)` });
    };
  supervisor.on('child', (event) => {
    logger.warn({ child: event.name, kind: event.kind }, event.detail);
    if (!signals.aborted)
      progress.line(
        `flywheel: ${event.name} ${event.kind === 'ended' ? `${event.detail}; it is started again` : `runs again ${event.detail}`}`,
      );
  });

  for (const warning of licenceWarnings(context.config.training.members)) {
    logger.warn(warning);
    progress.line(`flywheel: warning: ${warning}`);
  }

  const leftovers = await supervisor.endLeftovers();
  if (leftovers.length > 0) progress.line(`flywheel: ended what a killed instance had left running: ${leftovers.join(', ')}`);
  await supervisor.note({ up: await ownIdentity() });
  // Asked for by name and taken: said before minutes of installing.
  const ports = await minerPorts(context, options);

  const external = temporalFromEnvironment();
  const given = { signal: signals.signal };
  const [python, binary] = await settle([
    timed('python', () => ensurePython(onProgress('python'), given)),
    timed('temporal program', async () =>
      external === null ? (await ensureTemporal(onProgress('temporal program'), signals.signal)).path : null,
    ),
  ]);
  logger.info({ python, binary }, 'prerequisites are there');

  const temporal = await timed('temporal', () => startTemporal(context, supervisor, external, binary));
  const identity = await ensureIdentity(paths);
  const script = path.join(packageRoot, 'bin', 'flywheel.js');
  const common = ['--home', paths.root, ...(context.configFile === null ? [] : ['--config', context.configFile])];
  // The miner first: it needs nothing of the others, and validators are not to wait for a worker.
  const miner = await timed('miner', async () => {
    const { port, controlPort, validatorPort } = ports;
    const args = [script, 'miner', ...common, ...['--port', String(port), '--control-port', String(controlPort)]];
    args.push('--validator-port', String(validatorPort));
    const info = await supervisor.start({ name: 'miner', command: process.execPath, args, ipc: true });
    const own = typeof info.validatorUrl === 'string' ? { validatorUrl: info.validatorUrl } : {};
    return { url: String(info.url), controlUrl: String(info.controlUrl), hotkey: identity.hotkey.address, ...own };
  });
  await supervisor.note({ miner });
  await timed('worker', () =>
    supervisor.start({ name: 'worker', command: process.execPath, args: [script, 'worker', ...common], ipc: true, graceMs: 30_000 }),
  );

  progress.line(
    `Temporal  ${temporal.ui ?? temporal.address}\nMiner     ${miner.url}  hotkey ${miner.hotkey}${identity.development ? ' (made for development)' : ''}\nHome      ${paths.root}`,
  );

  const { runTurnAndWait } = await import('./turnClient.js');
  const client = await connectTemporal(temporal);
  let shown: string | null = null;
  try {
    const { result, extra } = await runTurnAndWait({
      client,
      home: paths,
      temporal,
      hotkey: identity.hotkey.address,
      data: options.data ?? null,
      signal: signals.signal,
      onProgress: (view) => {
        if (shown !== null && shown !== view.stage) progress.stage(shown).done();
        shown = view.stage;
        progress.stage(view.stage).update({
          done: view.done,
          total: view.total > 0 ? view.total : null,
          message: [view.what, view.total > 0 ? `${view.done}/${view.total} ${view.unit}` : ''].join(' ').trim(),
        });
      },
    });
    if (shown !== null) progress.stage(shown).done();
    progress.close();
    await context.print(renderSummary(result, extra));
    await context.result({ ...result, seconds: { ...seconds, ...result.seconds } });
  } catch (error) {
    if (shown !== null) progress.stage(shown).fail(signals.aborted ? 'interrupted' : 'failed');
    // A miner that serves is worth more than a tidy end: without --once a failed turn is reported, and the rest goes on.
    if (options.once === true || signals.aborted || exitCodeOf(error) !== EXIT.stageFailed) throw error;
    progress.close();
    logger.error({ error: errorJson(error) }, 'the first turn failed');
    progress.line(
      `flywheel: ${describeError(error)}\nThe miner goes on serving. Mend the cause, then start a turn with \`flywheel turn --home ${paths.root}\`.`,
    );
    await context.result(errorJson(error));
  } finally {
    // A call that is being repeated throws out of its timer once its channel is closed. When interrupted, calls are
    // still open; the process is about to end anyway.
    if (!signals.aborted) await client.connection.close();
  }
  if (options.once === true) return;
  await context.print('\nEverything keeps running; the next turn comes by its schedule. Ctrl-C stops it.');
  signals.idle();
  await signals.interrupted;
}

/** Waits for all, so that nothing goes on in the background after the first failure, which is then thrown. */
async function settle<A, B>(works: [Promise<A>, Promise<B>]): Promise<[A, B]> {
  await Promise.allSettled(works);
  return Promise.all(works);
}

async function startTemporal(
  context: CommandContext,
  supervisor: Supervisor,
  external: TemporalAddress | null,
  binary: string | null,
): Promise<TemporalAddress> {
  if (external !== null || binary === null) {
    const address = external ?? { address: '', namespace: '', ui: null };
    await waitHealthy(address, 15_000);
    await supervisor.note({ temporal: { ...address, external: true } });
    return address;
  }
  const command = await temporalCommand({ binary, dbFile: context.paths.temporalDb });
  const { address, namespace, ui } = command;
  await supervisor.start({
    name: 'temporal',
    command: command.command,
    args: command.args,
    ready: (alive) => waitHealthy({ address, namespace, ui }, HEALTHY_WITHIN_MS, alive),
    readyWithinMs: HEALTHY_WITHIN_MS + 5_000,
  });
  await supervisor.note({ temporal: { address, namespace, ui, external: false } });
  return { address, namespace, ui };
}

/** SIGINT and SIGTERM: the first stops in order, the second by force. */
class Signals {
  private readonly controller = new AbortController();
  private firstAt: number | null = null;
  private working = true;
  private settleInterrupted: { resolve(): void; reject(error: Error): void } = { resolve: () => undefined, reject: () => undefined };
  /** resolves when told to stop while idle, rejects with InterruptedError when work was cut short */
  readonly interrupted: Promise<void>;

  constructor(
    private readonly context: CommandContext,
    private readonly supervisor: Supervisor,
  ) {
    this.interrupted = new Promise<void>((resolve, reject) => {
      this.settleInterrupted = { resolve, reject };
    });
    this.interrupted.catch(() => undefined);
    process.on('SIGINT', this.onInterrupt).on('SIGTERM', this.onTerminate).on('SIGHUP', this.onTerminate);
  }

  get signal(): AbortSignal {
    return this.controller.signal;
  }

  get aborted(): boolean {
    return this.controller.signal.aborted;
  }

  /** Ends everything in order because of an error that nobody caught. */
  fault(error: unknown): void {
    this.settleInterrupted.reject(error instanceof Error ? error : new Error(String(error)));
    this.controller.abort();
  }

  /** Nothing is under way any more: being stopped is then how it ends well. */
  idle(): void {
    this.working = false;
  }

  close(): void {
    process.off('SIGINT', this.onInterrupt).off('SIGTERM', this.onTerminate).off('SIGHUP', this.onTerminate);
  }

  private readonly onInterrupt = (): void => {
    this.receive('SIGINT');
  };
  private readonly onTerminate = (): void => {
    this.receive('SIGTERM');
  };

  private receive(name: 'SIGINT' | 'SIGTERM'): void {
    const now = performance.now();
    if (this.firstAt !== null) {
      if (now - this.firstAt < SAME_KEYSTROKE_MS) return;
      this.context.progress.line('flywheel: stopping by force');
      this.supervisor.killAll();
      process.exit(name === 'SIGINT' ? 130 : 143);
    }
    this.firstAt = now;
    this.context.progress.line('flywheel: stopping (press Ctrl-C again to force)');
    if (this.working) this.settleInterrupted.reject(new InterruptedError(name));
    else this.settleInterrupted.resolve();
    this.controller.abort();
  }
}
