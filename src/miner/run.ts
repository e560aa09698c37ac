/** Puts the miner together: axon, models, shadow, journal, control port. */
import { createHash } from 'node:crypto';
import { promises as fs } from 'node:fs';
import path from 'node:path';
import { isIP } from 'node:net';
import type { JournalRecord, MinerStatus } from '../domain/contracts/miner.js';
import { BadInputError } from '../domain/errors.js';
import type { Hotkey } from '../platform/bittensor/keys.js';
import { protocolReady } from '../platform/bittensor/protocol.js';
import { BUNDLE_FILE } from '../platform/inference/bundle.js';
import { OverloadedError, type Prediction } from '../platform/inference/pool.js';
import { ImageError } from '../platform/inference/preprocess.js';
import type { Provider } from '../platform/inference/providers.js';
import { sha256File } from '../platform/objects/file.js';
import type { MetagraphSource } from '../platform/ports.js';
import { openAxon, type Axon, type AxonAnswer, type AxonOptions } from './axon.js';
import { ModelHost, type FixedBundle, type ModelHostOptions } from './champion.js';
import { CONTROL_HOST, openControl, type Control } from './control.js';
import { Journal, type JournalSync } from './journal.js';
import { Permits } from './metagraph.js';
import { createMetrics } from './metrics.js';
import { NonceLog, NonceTable } from './nonces.js';
import { RateLimiter, type Rate } from './rate.js';
import { SkewMeter } from './skew.js';
import { Verifier } from './verify.js';

/** A pino logger fits. */
export interface MinerLogger {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

export interface MinerOptions {
  /** folder with champion.json, shadow.json and bundles/; the journal is written to journal/ in it */
  home: string;
  /** address the axon listens on */
  host: string;
  /** port of the axon; 0: any free one */
  port: number;
  /** port of the control server, always on 127.0.0.1; 0: any free one */
  controlPort: number;
  /** this miner's key: validators must have signed for its address */
  hotkey: Pick<Hotkey, 'address'>;
  /** a bundle folder to serve, whatever champion.json says: without Temporal, catalog and store; null: the champion */
  bundle?: string | null;
  /** who may ask; closed when the miner stops. null with `open` */
  metagraph: MetagraphSource | null;
  /** validators with less stake are refused, in the metagraph's unit; default 0 */
  minStake?: number;
  /**
   * The built-in validator, where the metagraph does not know it: it may ask on a port of its own, on loopback, and comes after
   * every other. Port 0: any free one. Absent: there is no such port
   */
  ownValidator?: { hotkey: string; port: number };
  /** let in whoever signs correctly, permit or not: for development, on a loopback host only */
  open: boolean;
  /** inference processes and threads a process; 0: derived from the cores */
  processes: number;
  threads: number;
  /** execution providers in the order of preference; default TensorRT, CUDA, CPU */
  providers?: readonly Provider[];
  /** augmentation and waiting for company in a batch may make an answer take so long, ms; default 300 */
  latencyBudgetMs?: number;
  /** keep the previous champion loaded when memory allows; default true */
  keepPrevious?: boolean;
  /** connections of the axon at most; default 2000 */
  maxConnections?: number;
  /** how much one hotkey may ask; default 500 a second, 2000 at once */
  rate?: Rate;
  /** bound of the journal's segments and images together, bytes */
  journalMaxBytes: number;
  /** closed segments of the journal older than this are deleted, ms; default: never for their age */
  journalMaxAgeMs?: number;
  /** when the journal is forced to the disk; default `interval`: once a second */
  journalSync?: JournalSync;
  logger: MinerLogger;
  /** ms since the epoch; default: the machine's clock */
  clock?: () => number;
  /** time between two looks at champion.json, shadow.json and the metagraph, ms; default 300 */
  pollMs?: number;
  /** see `ModelHostOptions.startPool` */
  startPool?: ModelHostOptions['startPool'];
}

export interface Miner {
  /** `http://host:port` of the axon; a wildcard host is given as loopback */
  readonly url: string;
  readonly controlUrl: string;
  /** `http://127.0.0.1:port` where the built-in validator asks; null: at `url`, as any other */
  readonly validatorUrl: string | null;
  status(): MinerStatus;
  /** Process ids of the champion's inference processes. */
  pids(): number[];
  /** Takes no more requests, answers those under way, writes the journal out, ends every process. Safe to call twice. */
  stop(): Promise<void>;
}

/** A port is taken or may not be opened; `code` is the system's (EADDRINUSE, EACCES, EADDRNOTAVAIL). */
export class PortError extends Error {
  override name = 'PortError';
  constructor(
    message: string,
    readonly code: string,
    options: { cause: unknown },
  ) {
    super(message, options);
  }
}

/** Answers under way get this long when the miner stops: more than any caller waits. */
const STOP_GRACE_MS = 12_000;
/** Share of the time left that a canary may take before the champion answers instead. */
const CANARY_SHARE = 0.5;
/** The built-in validator's place in the queue: behind every stake there can be. */
const LAST = -1;

/** A genuine validator asks some times a minute; this bounds one that ran wild, and leaves room for a load test. */
const DEFAULT_RATE: Rate = { perSecond: 500, burst: 2000 };
/** Pings of all those without a permit together. */
const STRANGERS_RATE: Rate = { perSecond: 5, burst: 20 };
/** A wrong clock is told of this often, ms. */
const SKEW_EVERY_MS = 10 * 60_000;

/**
 * Starts the miner. It listens when this resolves, and answers 503 until a champion is loaded (`status().ready`).
 * @throws PortError when a port is taken; BadInputError for options that cannot be; HomeLockedError when another miner
 * writes the same journal. Nothing is left running then
 */
export async function runMiner(options: MinerOptions): Promise<Miner> {
  const { home, logger } = options;
  const clock = options.clock ?? Date.now;
  if (options.open && !isLoopback(options.host)) {
    throw new BadInputError(
      `Without permits (open) the miner listens on loopback only, not on ${options.host}: anybody could use it. Give a metagraph file, or host 127.0.0.1. Nothing was started.`,
    );
  }
  const source = options.open ? null : options.metagraph;
  if (!options.open && source === null) {
    throw new BadInputError(
      'The miner needs a metagraph to know who may ask (or `open`, for development on loopback). Nothing was started.',
    );
  }
  if (!(await isFolder(home))) throw new BadInputError(`The home folder ${home} does not exist. Nothing was started.`);
  const bundle = options.bundle === undefined || options.bundle === null ? null : await fixedBundle(options.bundle);
  const permits = new Permits(source, options.minStake ?? 0);
  await protocolReady();
  const journal = await Journal.open({
    dir: path.join(home, 'journal'),
    maxBytes: options.journalMaxBytes,
    ...(options.journalMaxAgeMs === undefined ? {} : { maxAgeMs: options.journalMaxAgeMs }),
    ...(options.journalSync === undefined ? {} : { sync: options.journalSync }),
    logger,
    clock,
  });

  let answered = 0;
  let listening = false;
  let stopping: Promise<void> | null = null;
  const shadowWork = new Set<Promise<void>>();
  let axon: Axon | null = null;
  let ownAxon: Axon | null = null;
  let control: Control | null = null;

  const metrics = createMetrics({
    queue: () => host.serving?.pool.depth ?? 0,
    journalled: () => journal.written,
    journalDropped: () => journal.dropped,
    journalBytes: () => journal.bytes,
    restarts: () => host.restarts,
    model: () => host.serving?.pointer ?? null,
    ready: () => status().ready,
    journalPaused: () => journal.paused !== null,
    nonces: () => nonces.size,
    noncesUnwritten: () => nonceLog.failed,
    clockSkewMs: () => skew.aheadMs,
    metagraph: () => ({ neurons: permits.size, asOf: source?.asOf ?? 0 }),
  });
  const host = new ModelHost({
    home,
    processes: options.processes,
    threads: options.threads,
    logger,
    onSwap: (result) => {
      metrics.swaps.inc({ result });
      // Other members, or the same names with other weights.
      if (result === 'done') metrics.votes.reset();
    },
    onLeftOut: ({ member, reason }) => metrics.leftOut.inc({ member, reason }),
    ...(options.providers === undefined ? {} : { providers: options.providers }),
    ...(options.latencyBudgetMs === undefined ? {} : { latencyBudgetMs: options.latencyBudgetMs }),
    ...(options.keepPrevious === undefined ? {} : { keepPrevious: options.keepPrevious }),
    ...(options.pollMs === undefined ? {} : { pollMs: options.pollMs }),
    ...(options.startPool === undefined ? {} : { startPool: options.startPool }),
  });

  /** What the axon hands back to us beside the answer; the axon itself sees the prediction only. */
  interface Answered extends AxonAnswer {
    full: Prediction;
    model: string;
    generation: number;
  }

  const nanoseconds = (): bigint => BigInt(Math.floor(clock() * 1000)) * 1000n;
  const { log: nonceLog, recent } = NonceLog.open(path.join(home, 'journal', 'nonces'), logger);
  const nonces = new NonceTable(undefined, nonceLog);
  nonces.restore(recent, nanoseconds());
  const verifier = new Verifier(options.hotkey.address, nanoseconds, nonces);
  const rates = new RateLimiter(options.rate ?? DEFAULT_RATE, () => performance.now());
  const strangers = new RateLimiter(STRANGERS_RATE, () => performance.now());
  const skew = new SkewMeter(() => performance.now());
  let skewTold = Number.NEGATIVE_INFINITY;
  function clockSeen(hotkey: string, aheadMs: number, accepted: boolean): void {
    skew.note(hotkey, aheadMs, accepted);
    if (performance.now() - skewTold < SKEW_EVERY_MS) return;
    const { problem } = skew;
    if (problem === null) return;
    skewTold = performance.now();
    logger.warn({ aheadMs: skew.aheadMs }, problem);
  }

  function record(request: { id: string; hotkey: string; uuid: string }, image: Buffer, answer: Answered, latencyMs: number): void {
    answered += 1;
    const base: JournalRecord = {
      v: 1,
      id: request.id,
      at: clock(),
      image: createHash('sha256').update(image).digest('hex'),
      bytes: image.length,
      prediction: answer.prediction,
      votes: answer.full.votes,
      latencyMs,
      validator: request.hotkey,
      uuidHash: createHash('sha256').update(request.uuid).digest('hex'),
      model: answer.model,
      generation: answer.generation,
      shadow: null,
    };
    const { shadow } = host;
    if (shadow === null || !chosen(shadow.order.trial, request.id, shadow.order.share)) {
      journal.append(base, image);
      return;
    }
    const work = shadow.lane.run(image).then((result) => {
      metrics.shadow.inc({ result: result === null ? 'skipped' : result.error === null ? 'answered' : 'failed' });
      journal.append({ ...base, shadow: result }, image);
    });
    shadowWork.add(work);
    void work.finally(() => shadowWork.delete(work));
  }

  /** @returns null unless the request is one that the candidate answers, and it did, in half of the time */
  async function askCanary(id: string, image: Buffer, deadlineMs: number): Promise<Omit<Answered, 'generation'> | null> {
    const { shadow } = host;
    if (shadow === null || !chosen(`${shadow.order.trial}:canary`, id, shadow.order.canary ?? 0)) return null;
    try {
      const full = await shadow.pool.predict(image, deadlineMs * CANARY_SHARE);
      metrics.canary.inc({ result: 'answered' });
      return { prediction: full.prediction, full, model: shadow.order.digest };
    } catch (error) {
      // An image that cannot be read is the caller's fault, whoever looks at it; all else the champion makes good.
      if (error instanceof ImageError) throw error;
      metrics.canary.inc({ result: 'failed' });
      logger.warn({ error: (error as Error).message, trial: shadow.order.trial }, 'the canary did not answer; the champion does');
      return null;
    }
  }

  const unwatch = source?.onChange(() => {
    if (source.problem === null) logger.info({ neurons: permits.size, metagraph: source.name }, 'metagraph read anew');
    else logger.error({ error: source.problem, metagraph: source.name }, 'the metagraph cannot be read; the last good one holds');
  });

  function status(): MinerStatus {
    const { serving, shadow } = host;
    return {
      ready: listening && stopping === null && serving !== null && serving.pool.pids.length > 0,
      hotkey: options.hotkey.address,
      url: axon === null ? '' : urlOf(options.host, axon.port),
      pid: process.pid,
      serving: serving?.pointer ?? null,
      shadow: host.shadowOrder,
      shadowReady: shadow !== null && shadow.pool.pids.length > 0,
      warm: host.previous?.pointer.digest ?? null,
      refused: host.refused,
      answered,
      journalled: journal.written,
      journalDropped: journal.dropped,
      journalPaused: journal.paused,
      metagraphProblem: source?.problem ?? null,
      chainAddress: source?.address ?? null,
      clockSkewMs: skew.aheadMs,
    };
  }

  /** What an axon asks of the rest. @param who may ask there, and who comes first @param seen told of clocks */
  function axonOptions(who: Pick<Permits, 'refusal' | 'priority'>, seen: AxonOptions['clockSeen']): AxonOptions {
    return {
      verifier,
      permit: (hotkey) => who.refusal(hotkey),
      rate: (key) => (who.refusal(key) === null ? rates : strangers).take(key),
      clockSeen: seen,
      ...(options.maxConnections === undefined ? {} : { maxConnections: options.maxConnections }),
      stage: (stage, ms) => metrics.stages.observe({ stage }, ms / 1000),
      unavailable: (hotkey, deadlineMs) => {
        if (host.serving === null) return 'no model yet';
        const wait = host.serving.pool.estimateMs(who.priority(hotkey));
        return wait > deadlineMs ? `busy: the wait of about ${Math.round(wait)} ms would exceed the deadline` : null;
      },
      answer: async (image, deadlineMs, { id, hotkey }): Promise<Answered> => {
        const { serving } = host;
        if (serving === null) throw new OverloadedError('no model serves');
        const canary = await askCanary(id, image, deadlineMs);
        if (canary !== null) return { ...canary, generation: serving.pointer.generation };
        const began = performance.now();
        const full = await serving.pool.predict(image, deadlineMs, who.priority(hotkey));
        metrics.stages.observe({ stage: 'inference' }, full.ms / 1000);
        metrics.stages.observe({ stage: 'wait' }, Math.max(0, performance.now() - began - full.ms) / 1000);
        return { prediction: full.prediction, full, model: serving.pointer.digest, generation: serving.pointer.generation };
      },
      answered: (request, image, answer, latencyMs) => {
        const { full, model } = answer as Answered;
        metrics.predictions.observe(answer.prediction);
        if (model === host.serving?.pointer.digest)
          for (const [member, vote] of Object.entries(full.votes)) metrics.votes.observe({ member }, vote);
        record(request, image, answer as Answered, latencyMs);
      },
      ended: (outcome, latencyMs) => {
        metrics.outcomes.inc({ outcome });
        if (outcome === 'answered') metrics.latency.observe(latencyMs / 1000);
      },
      logger,
    };
  }

  async function stop(): Promise<void> {
    await Promise.all([axon?.stop(STOP_GRACE_MS), ownAxon?.stop(STOP_GRACE_MS)]);
    // The shadow's results belong to records that are already answered for: a moment for them, then without.
    await Promise.race([Promise.allSettled(shadowWork), new Promise((resolve) => setTimeout(resolve, 1000).unref())]);
    await host.stop(STOP_GRACE_MS);
    await Promise.allSettled(shadowWork);
    await journal.close();
    nonceLog.close();
    await control?.stop();
    metrics.close();
    unwatch?.();
    await source?.close();
    listening = false;
  }

  try {
    axon = await openPort('axon', options.host, options.port, () => openAxon(options.host, options.port, axonOptions(permits, clockSeen)));
    const { ownValidator } = options;
    if (ownValidator !== undefined) {
      const who = { refusal: (key: string) => (key === ownValidator.hotkey ? null : 'Unrecognized hotkey'), priority: () => LAST };
      // Its clock is ours: it says nothing of how wrong that is.
      ownAxon = await openPort('port of the built-in validator', CONTROL_HOST, ownValidator.port, () =>
        openAxon(
          CONTROL_HOST,
          ownValidator.port,
          axonOptions(who, () => undefined),
        ),
      );
    }
    control = await openPort('control server', CONTROL_HOST, options.controlPort, () =>
      openControl(options.controlPort, status, metrics.registry),
    );
    if (bundle === null) host.start();
    else await host.serveBundle(bundle);
  } catch (error) {
    await stop();
    throw error;
  }
  listening = true;
  const url = urlOf(options.host, axon.port);
  const controlUrl = urlOf(CONTROL_HOST, control.port);
  const validatorUrl = ownAxon === null ? null : urlOf(CONTROL_HOST, ownAxon.port);
  logger.info(
    { url, controlUrl, validatorUrl, hotkey: options.hotkey.address, permits: options.open ? 'open' : permits.size },
    'miner listens',
  );
  return {
    url,
    controlUrl,
    validatorUrl,
    status,
    pids: () => host.serving?.pool.pids ?? [],
    stop: () => (stopping ??= stop()),
  };
}

/** @throws BadInputError when the folder holds no bundle.json */
async function fixedBundle(dir: string): Promise<FixedBundle> {
  try {
    return { dir: path.resolve(dir), digest: await sha256File(path.join(dir, BUNDLE_FILE)) };
  } catch (error) {
    throw new BadInputError(
      `${dir} is no bundle: ${(error as Error).message}. Nothing was started. Give the folder that holds ${BUNDLE_FILE}.`,
    );
  }
}

/** Whether a request also runs on the candidate: by hash, so that it is the same whoever asks again. */
export function chosen(trial: string, id: string, share: number): boolean {
  return createHash('sha256').update(`${trial}:${id}`).digest().readUInt32BE(0) / 2 ** 32 < share;
}

async function openPort<T>(what: string, host: string, port: number, open: () => Promise<T>): Promise<T> {
  try {
    return await open();
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === undefined) throw error;
    const why =
      code === 'EADDRINUSE'
        ? 'another process listens there. Choose another port, or end that process'
        : code === 'EACCES'
          ? 'it may not be opened by this user. Choose a port above 1023'
          : code === 'EADDRNOTAVAIL'
            ? 'the address does not belong to this machine. Choose another host'
            : (error as Error).message;
    throw new PortError(`The ${what} cannot listen on ${host}:${port}: ${why}. Nothing was started.`, code, { cause: error });
  }
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'));
}

function urlOf(host: string, port: number): string {
  const reachable = host === '0.0.0.0' ? '127.0.0.1' : host === '::' ? '::1' : host;
  return `http://${isIP(reachable) === 6 ? `[${reachable}]` : reachable}:${port}`;
}

async function isFolder(dir: string): Promise<boolean> {
  try {
    return (await fs.stat(dir)).isDirectory();
  } catch {
    return false;
  }
}
