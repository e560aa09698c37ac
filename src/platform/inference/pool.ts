/**
 * The pool: inference processes of one bundle behind one bounded queue. A crashed process is started again with
 * back-off and what it had in hand is tried once more; a stuck one is killed. Refuses at once what it cannot answer in time.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Digest } from '../../domain/contracts/common.js';
import { Interarrival } from './batching.js';
import { peekBundle } from './bundle.js';
import { InferenceChild } from './child.js';
import { residentBytes } from './memory.js';
import { monotonicMs, type LeftOut, type ModelInput, type OneResult } from './messages.js';
import { allowedCpus, bindProcess, placement } from './placement.js';
import { DEFAULT_IMAGE_LIMITS, ImageError, type ImageLimits } from './preprocess.js';
import { chooseProviders, machineProbe, PROVIDERS, type Provider } from './providers.js';
import { deriveSizes, largestGraphBytes } from './sizing.js';

/** What the pool writes about its processes. A pino logger fits. */
export interface PoolLogger {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

export interface PoolOptions {
  bundleDir: string;
  /** digest of bundle.json; null: as the folder's name says */
  digest: Digest | null;
  /** inference processes; 0: derived from the cores */
  processes: number;
  /** threads a process; 0: derived */
  threads: number;
  logger: PoolLogger;
  /** images a batch at most; default 8. Less where the warm-up finds that batches do not pay, as on most CPUs */
  maxBatch?: number;
  /** images that wait at most, whatever their deadline; default 256 */
  maxQueue?: number;
  /** bytes that wait at most; default 256 MiB */
  maxQueueBytes?: number;
  /** niceness added to the processes, 0 to 19; default 0 */
  nice?: number;
  limits?: ImageLimits;
  /** a process that has not answered for this long is killed, ms; default 30 s */
  stallMs?: number;
  /** execution providers in the order of preference; default TensorRT, CUDA, CPU. What is not there is passed over, with a log line */
  providers?: readonly Provider[];
  /** folder for TensorRT's engines, which take minutes to build; default: the system's temporary folder */
  engineCache?: string;
  /** augmentation and waiting for company in a batch may make an answer take so long, and no longer, ms; default 300 */
  latencyBudgetMs?: number;
  /** every member must answer, or the image has failed; default false: see `vote` */
  strict?: boolean;
  /** told for every image and member that the vote had to do without */
  onLeftOut?(leftOut: LeftOut): void;
}

export interface Prediction {
  prediction: number;
  votes: Record<string, number>;
  /** members that the vote had to do without, and why; empty: none */
  leftOut: LeftOut[];
  /** whether the mirrored view was run as well */
  augmented: boolean;
  /** decoding plus the image's share of its batch, without waiting, ms */
  ms: number;
}

/** The answer would come too late, or the queue is full: nothing was begun. */
export class OverloadedError extends Error {
  override name = 'OverloadedError';
}
/** The deadline passed while the image waited. */
export class DeadlineError extends Error {
  override name = 'DeadlineError';
}
/** The model failed on this image, or its process died on it twice. */
export class InferenceError extends Error {
  override name = 'InferenceError';
}

interface Job {
  input: ModelInput;
  bytes: number;
  /** performance.now() when an answer is of no use any more */
  deadline: number;
  /** the queue is in falling order of it, and in order of arrival among equals */
  priority: number;
  attempts: number;
  settled: boolean;
  resolve(prediction: Prediction): void;
  reject(error: Error): void;
}
interface Slot {
  index: number;
  /** GPU of this process */
  deviceId: number;
  child: InferenceChild | null;
  inflight: Map<number, Job>;
  /** performance.now() of the last answer, or of the first job after a rest */
  active: number;
  failures: number;
  startedAt: number;
}

const FIRST_BACKOFF_MS = 100;
const MAX_BACKOFF_MS = 30_000;
/** A process that lived this long starts again without back-off. */
const STABLE_MS = 60_000;
const SWEEP_MS = 50;
/** Each new measurement's weight in the moving average of the time an image takes. */
const SMOOTHING = 0.1;

/** What an answer may take for the sake of quality, ms: the field's own "never over 500 ms", less the network. */
const LATENCY_BUDGET_MS = 300;

/** What the miner needs of a pool; whoever hands in another has these. */
export type Pool = Pick<
  InferencePool,
  'predict' | 'estimateMs' | 'whenIdle' | 'stop' | 'depth' | 'pids' | 'restarts' | 'sizes' | 'batchLimit' | 'provider'
>;

export class InferencePool {
  readonly sizes: { processes: number; threads: number };
  private readonly slots: Slot[] = [];
  private readonly queue: Job[] = [];
  private queueBytes = 0;
  private perImageMs = 0;
  private nextId = 1;
  private stopping = false;
  private readonly idle: (() => void)[] = [];
  private readonly timer: NodeJS.Timeout;
  private readonly abort = new AbortController();
  /** processes started again after a crash */
  restarts = 0;
  /** images a batch at most, as the last started process found */
  batchLimit = 1;
  /** what runs the sessions, as the last started process found */
  provider: Provider = 'cpu';
  private readonly arrivals = new Interarrival();
  private readonly gpus: number;
  /** of the processes when they were ready, where the system does not tell */
  private readonly rssAtStart = new Map<number, number>();

  /** CPUs of each process, where they are kept apart */
  private readonly cpus: number[][] | null;

  private constructor(
    private readonly options: PoolOptions,
    largestBytes: number,
  ) {
    const { order, gpus } = chooseProviders(options.providers ?? PROVIDERS, machineProbe());
    this.gpus = order[0] === 'cpu' ? 0 : gpus;
    this.sizes = deriveSizes(options.processes, options.threads, { gpus: this.gpus, graphBytes: largestBytes });
    this.cpus = this.gpus > 0 ? null : placement(allowedCpus(), this.sizes.processes, this.sizes.threads);
    this.timer = setInterval(() => this.sweep(), SWEEP_MS);
    this.timer.unref();
  }

  /**
   * Starts all processes, loads the bundle in each and warms them up.
   * @throws BadInputError, ObjectCorruptError when the bundle is refused; nothing is left running then
   */
  static async start(options: PoolOptions): Promise<InferencePool> {
    const pool = new InferencePool(options, largestGraphBytes(await peekBundle(options.bundleDir)));
    const slots = Array.from({ length: pool.sizes.processes }, (_, i): Slot => ({
      index: i,
      deviceId: pool.gpus > 0 ? i % pool.gpus : 0,
      child: null,
      inflight: new Map(),
      active: 0,
      failures: 0,
      startedAt: 0,
    }));
    const outcomes = await Promise.allSettled(slots.map((slot) => pool.launch(slot)));
    pool.slots.push(...slots);
    const failed = outcomes.find((outcome) => outcome.status === 'rejected');
    if (failed !== undefined) {
      await pool.stop(0);
      throw failed.reason;
    }
    return pool;
  }

  /** Process ids, for an operator's eyes and for tests that kill one. */
  get pids(): number[] {
    return this.slots.flatMap((slot) => (slot.child ? [slot.child.pid] : []));
  }

  /** Resident memory of the processes, bytes. */
  get rssBytes(): number {
    const { pids } = this;
    const now = residentBytes(pids);
    return now > 0 ? now : pids.reduce((sum, pid) => sum + (this.rssAtStart.get(pid) ?? 0), 0);
  }

  /** Images waiting or being answered. */
  get depth(): number {
    return this.queue.length + this.slots.reduce((sum, slot) => sum + slot.inflight.size, 0);
  }

  /** Resolves when no image waits or is being answered; at once when that is so, or when the pool has stopped. */
  whenIdle(): Promise<void> {
    if (this.depth === 0 || this.stopping) return Promise.resolve();
    return new Promise((resolve) => this.idle.push(resolve));
  }

  /** How long an image of this priority that came now would wait and take, ms. */
  estimateMs(priority = 0): number {
    let ahead = this.queue.length;
    while (ahead > 0 && (this.queue[ahead - 1] as Job).priority < priority) ahead -= 1;
    return this.waitMs(ahead);
  }

  /** @param ahead images of the queue that come first, beside those in the processes' hands */
  private waitMs(ahead: number): number {
    let inHand = 0;
    let up = 0;
    for (const slot of this.slots) {
      inHand += slot.inflight.size;
      if (slot.child !== null) up += 1;
    }
    // While no process is up the restart takes about as long as it always does: seconds; the deadline decides.
    return ((inHand + ahead + 1) * this.perImageMs) / Math.max(1, up);
  }

  /**
   * @param deadlineMs how long an answer is of use, from now
   * @param priority greater comes first (a validator's stake); who then cannot be answered in time any more is refused at once
   * @throws OverloadedError at once when the wait would exceed the deadline or the queue is full, DeadlineError when it
   * passed, ImageError for an image that cannot be read, InferenceError when the model failed
   */
  predict(input: ModelInput, deadlineMs = Number.POSITIVE_INFINITY, priority = 0): Promise<Prediction> {
    const bytes = input instanceof Uint8Array ? input.byteLength : input.tensor.byteLength;
    if (this.stopping) return Promise.reject(new OverloadedError('the model is being replaced'));
    const wait = this.estimateMs(priority);
    if (wait > deadlineMs)
      return Promise.reject(
        new OverloadedError(`the wait of about ${Math.round(wait)} ms would exceed the deadline of ${Math.round(deadlineMs)} ms`),
      );
    if (!this.makeRoom(bytes, priority)) return Promise.reject(new OverloadedError(`the queue is full (${this.queue.length} images)`));
    this.arrivals.arrived(performance.now());
    return new Promise((resolve, reject) => {
      let at = this.queue.length;
      while (at > 0 && (this.queue[at - 1] as Job).priority < priority) at -= 1;
      this.queue.splice(at, 0, {
        input,
        bytes,
        deadline: performance.now() + deadlineMs,
        priority,
        attempts: 0,
        settled: false,
        resolve,
        reject,
      });
      this.queueBytes += bytes;
      this.refuseLate(at + 1);
      this.pump();
    });
  }

  /** Lets the least important, youngest jobs go until there is room. @returns false, and lets none go, when there can be none */
  private makeRoom(bytes: number, priority: number): boolean {
    const many = this.options.maxQueue ?? 256;
    const most = this.options.maxQueueBytes ?? 256 * 1024 * 1024;
    let keep = this.queue.length;
    let kept = this.queueBytes;
    while (keep > 0 && (keep >= many || kept + bytes > most) && (this.queue[keep - 1] as Job).priority < priority) {
      keep -= 1;
      kept -= (this.queue[keep] as Job).bytes;
    }
    if (keep >= many || kept + bytes > most) return false;
    for (const job of this.queue.splice(keep)) this.fail(job, new OverloadedError('a request of higher priority took its place'));
    this.queueBytes = kept;
    return true;
  }

  /** Refuses the jobs from `from` on that cannot be answered in time any more, since another went before them. */
  private refuseLate(from: number): void {
    const now = performance.now();
    for (let at = from; at < this.queue.length;) {
      const job = this.queue[at] as Job;
      if (now + this.waitMs(at) <= job.deadline) {
        at += 1;
        continue;
      }
      this.queue.splice(at, 1);
      this.queueBytes -= job.bytes;
      this.fail(job, new OverloadedError('requests of higher priority came before it, and it could not be answered in time'));
    }
  }

  /**
   * Takes no more, answers what is there, ends the processes. Resolves when they are gone.
   * @param graceMs how long what is there may take; what is left is then rejected
   */
  async stop(graceMs = 15_000): Promise<void> {
    this.stopping = true;
    if (this.depth > 0 && graceMs > 0) {
      await Promise.race([new Promise<void>((resolve) => this.idle.push(resolve)), sleep(graceMs, undefined, { ref: false })]);
    }
    this.abort.abort();
    clearInterval(this.timer);
    for (const job of this.queue.splice(0)) this.fail(job, new OverloadedError('the miner is stopping'));
    this.queueBytes = 0;
    for (const slot of this.slots) {
      for (const job of slot.inflight.values()) this.fail(job, new OverloadedError('the miner is stopping'));
      slot.inflight.clear();
    }
    this.tellIdle();
    await Promise.all(this.slots.map(async (slot) => slot.child?.end()));
  }

  private async launch(slot: Slot): Promise<void> {
    const { options } = this;
    let mine: InferenceChild | null = null;
    const child = await InferenceChild.start(
      {
        bundleDir: options.bundleDir,
        digest: options.digest,
        threads: this.sizes.threads,
        maxBatch: options.maxBatch ?? 8,
        nice: options.nice ?? 0,
        limits: options.limits ?? DEFAULT_IMAGE_LIMITS,
        providers: [...(options.providers ?? PROVIDERS)],
        deviceId: slot.deviceId,
        budgetMs: options.latencyBudgetMs ?? LATENCY_BUDGET_MS,
        strict: options.strict ?? false,
      },
      {
        onResult: (id, results, batchMs, batchSize) => this.onResult(slot, id, results, batchMs, batchSize),
        onExit: (reason) => {
          if (slot.child === mine) this.onExit(slot, reason);
        },
      },
      options.engineCache,
    );
    mine = child;
    if (this.abort.signal.aborted) {
      await child.end();
      return;
    }
    slot.child = child;
    slot.startedAt = performance.now();
    this.batchLimit = child.batchLimit;
    this.provider = child.provider;
    this.rssAtStart.set(child.pid, child.rssBytes);
    if (child.passedOver.length > 0)
      options.logger.info({ provider: child.provider, passedOver: child.passedOver }, 'execution provider chosen');
    if (this.perImageMs === 0) this.perImageMs = child.perImageMs;
    // Only now that its end would be told: it may die while it is bound.
    await this.place(slot, child);
    this.pump();
  }

  /** A machine without `taskset` serves as well, only less evenly. */
  private async place(slot: Slot, child: InferenceChild): Promise<void> {
    const cpus = this.cpus?.[slot.index];
    if (cpus === undefined) return;
    try {
      await bindProcess(child.pid, cpus);
    } catch (error) {
      this.options.logger.info({ error: (error as Error).message, cpus }, 'inference process is not kept on cores of its own');
    }
  }

  private pump(): void {
    // Enough in a process's hands to fill the next batch while one runs; the rest waits here, where it can be retried or expire.
    const hold = 2 * (this.options.maxBatch ?? 8);
    while (this.queue.length > 0) {
      let best: Slot | null = null;
      for (const slot of this.slots)
        if (slot.child !== null && slot.inflight.size < hold && (best === null || slot.inflight.size < best.inflight.size)) best = slot;
      if (best === null) return;
      const job = this.queue.shift() as Job;
      this.queueBytes -= job.bytes;
      if (job.settled) continue;
      const id = this.nextId++;
      if (best.inflight.size === 0) best.active = performance.now();
      best.inflight.set(id, job);
      job.attempts += 1;
      const now = performance.now();
      const interarrivalMs = this.arrivals.value(now);
      best.child?.predict(id, [job.input], {
        deadline: Number.isFinite(job.deadline) ? monotonicMs() + job.deadline - now : null,
        behind: this.queue.length,
        interarrivalMs: Number.isFinite(interarrivalMs) ? interarrivalMs : null,
      });
    }
  }

  private onResult(slot: Slot, id: number, results: OneResult[], batchMs: number, batchSize: number): void {
    slot.active = performance.now();
    // A batch of images that could not be decoded took no time, and says nothing of the next.
    if (batchMs > 0) this.perImageMs = this.perImageMs * (1 - SMOOTHING) + (batchMs / Math.max(1, batchSize)) * SMOOTHING;
    const job = slot.inflight.get(id);
    slot.inflight.delete(id);
    const [result] = results;
    if (job !== undefined && !job.settled && result !== undefined) {
      if (result.ok) {
        job.settled = true;
        const { prediction, votes, leftOut, augmented, ms } = result;
        for (const one of leftOut) this.options.onLeftOut?.(one);
        job.resolve({ prediction, votes, leftOut, augmented, ms });
      } else {
        this.fail(job, result.kind === 'model' ? new InferenceError(result.message) : new ImageError(result.kind, result.message));
      }
    }
    this.pump();
    this.tellIdle();
  }

  private onExit(slot: Slot, reason: string): void {
    if (slot.child !== null) this.rssAtStart.delete(slot.child.pid);
    slot.child = null;
    if (this.abort.signal.aborted) return;
    const again: Job[] = [];
    for (const job of slot.inflight.values()) {
      if (job.settled) continue;
      if (job.attempts < 2) again.push(job);
      else this.fail(job, new InferenceError('the inference process died twice while it had this image'));
    }
    slot.inflight.clear();
    this.queue.unshift(...again);
    this.queueBytes += again.reduce((sum, job) => sum + job.bytes, 0);
    this.options.logger.warn({ reason, retried: again.length }, 'inference process ended; starting another');
    this.pump();
    this.tellIdle();
    void this.relaunch(slot);
  }

  private async relaunch(slot: Slot): Promise<void> {
    if (performance.now() - slot.startedAt > STABLE_MS) slot.failures = 0;
    while (!this.abort.signal.aborted) {
      const backoff = slot.failures === 0 ? 0 : Math.min(MAX_BACKOFF_MS, FIRST_BACKOFF_MS * 2 ** slot.failures);
      slot.failures += 1;
      try {
        if (backoff > 0) await sleep(backoff, undefined, { signal: this.abort.signal, ref: false });
        await this.launch(slot);
        this.restarts += 1;
        return;
      } catch (error) {
        if (this.abort.signal.aborted) return;
        this.options.logger.error(
          { error: (error as Error).message, attempt: slot.failures },
          'inference process could not be started again',
        );
      }
    }
  }

  private sweep(): void {
    const now = performance.now();
    if (this.queue.length > 0) {
      const kept = this.queue.filter((job) => job.deadline > now);
      for (const job of this.queue)
        if (job.deadline <= now) this.fail(job, new DeadlineError('the deadline passed while the image waited'));
      if (kept.length !== this.queue.length) {
        this.queue.splice(0, this.queue.length, ...kept);
        this.queueBytes = kept.reduce((sum, job) => sum + job.bytes, 0);
      }
    }
    for (const slot of this.slots) {
      for (const job of slot.inflight.values())
        if (job.deadline <= now) this.fail(job, new DeadlineError('the deadline passed before the model answered'));
      if (slot.child !== null && slot.inflight.size > 0 && now - slot.active > (this.options.stallMs ?? 30_000)) {
        this.options.logger.error({ pid: slot.child.pid, inflight: slot.inflight.size }, 'inference process does not answer; it is killed');
        slot.active = now;
        void slot.child.kill();
      }
    }
    this.tellIdle();
  }

  private fail(job: Job, error: Error): void {
    if (job.settled) return;
    job.settled = true;
    job.reject(error);
  }

  private tellIdle(): void {
    if (this.idle.length > 0 && this.depth === 0) for (const resolve of this.idle.splice(0)) resolve();
  }
}
