/**
 * Which bundle answers, and which runs in its shadow. Watches the pointer and the shadow order, and swaps: processes with
 * the new bundle are started and warmed up, then new requests go there, then the old ones answer what they have. The
 * previous champion stays loaded where memory allows, so that a rollback to it is immediate. Memory goes to the champion
 * first: before a swap the shadow, then the previous champion make room, and a bundle that still does not fit is refused.
 * Whatever is wrong with the new one, the old one goes on serving.
 */
import { watch, promises as fs, type FSWatcher } from 'node:fs';
import path from 'node:path';
import type { Bundle } from '../domain/contracts/bundle.js';
import type { Digest } from '../domain/contracts/common.js';
import { ChampionPointer, ShadowOrder } from '../domain/contracts/miner.js';
import { parseJson } from '../platform/fsutil.js';
import { peekBundle } from '../platform/inference/bundle.js';
import { availableBytes, bundleNeedsBytes, RESERVE_BYTES } from '../platform/inference/memory.js';
import type { LeftOut } from '../platform/inference/messages.js';
import { InferencePool, type Pool, type PoolLogger, type PoolOptions } from '../platform/inference/pool.js';
import type { Provider } from '../platform/inference/providers.js';
import { deriveSizes, largestGraphBytes } from '../platform/inference/sizing.js';
import { ShadowLane } from './shadow.js';
import type { z } from 'zod';

export interface ModelHostOptions {
  home: string;
  /** inference processes and threads of the champion; 0: derived from the cores */
  processes: number;
  threads: number;
  logger: PoolLogger;
  onSwap(result: 'done' | 'refused'): void;
  /** execution providers in the order of preference; default TensorRT, CUDA, CPU */
  providers?: readonly Provider[];
  /** see `PoolOptions.latencyBudgetMs` */
  latencyBudgetMs?: number;
  /** keep the previous champion loaded when memory allows; default true */
  keepPrevious?: boolean;
  /** bytes of memory that can still be taken; default: the system's, or what a container leaves */
  available?: () => number;
  /** a member that the champion's vote had to do without */
  onLeftOut?: (leftOut: LeftOut) => void;
  /** called at every look at the files: for what else is watched in the same rhythm */
  onLook?(): Promise<void>;
  /** time between two looks, ms */
  pollMs?: number;
  /** starts what answers for a bundle; default `InferencePool.start`. The benchmark of the protocol hands in a model that does nothing */
  startPool?: (options: PoolOptions) => Promise<Pool>;
}

/** A bundle outside the flywheel: no pointer names it. */
export interface FixedBundle {
  dir: string;
  digest: Digest;
}

export interface Serving {
  pointer: ChampionPointer;
  pool: Pool;
}
export interface Shadow {
  order: ShadowOrder;
  pool: Pool;
  lane: ShadowLane;
}

const POLL_MS = 300;
/** A refused bundle that the pointer still names is tried again: it may have been laid out anew. */
const RETRY_MS = [2000, 5000, 10_000, 30_000];
/** The candidate must never slow the champion down: the lowest priority, one process, one thread. */
const SHADOW_NICE = 19;
/** Time between two looks at whether memory still allows the previous champion, ms. */
const MEMORY_LOOK_MS = 5000;

/** The bundle does not fit beside what serves. */
class NoRoomError extends Error {}

interface Refusal {
  /** what was refused: the file's text */
  text: string;
  reason: string;
  attempts: number;
  retryAt: number;
}

export class ModelHost {
  /** null until the first champion is loaded */
  serving: Serving | null = null;
  shadow: Shadow | null = null;
  /** the champion before this one, still loaded; it answers nothing */
  previous: Serving | null = null;
  private memoryLooked = 0;
  private pointerRefusal: Refusal | null = null;
  private shadowRefusal: Refusal | null = null;
  private order: ShadowOrder | null = null;
  private watcher: FSWatcher | null = null;
  private timer: NodeJS.Timeout | null = null;
  private looking: Promise<void> | null = null;
  private again = false;
  private stopped = false;
  private shadowWork: Promise<void> | null = null;
  private readonly retiring = new Set<Promise<void>>();

  constructor(private readonly options: ModelHostOptions) {}

  /** Last reason why a pointer or a shadow order is refused; null when what the files say is what runs. */
  get refused(): string | null {
    const reasons = [
      this.pointerRefusal && `champion: ${this.pointerRefusal.reason}`,
      this.shadowRefusal && `shadow: ${this.shadowRefusal.reason}`,
    ].filter(Boolean);
    return reasons.length > 0 ? reasons.join('; ') : null;
  }

  /** The order in force, whether or not the candidate is loaded yet. */
  get shadowOrder(): ShadowOrder | null {
    return this.order;
  }

  get restarts(): number {
    return [this.serving, this.shadow, this.previous].reduce((sum, one) => sum + (one?.pool.restarts ?? 0), 0);
  }

  /**
   * Loads the fixed bundle and serves it as generation 1.
   * @throws BadInputError, ObjectCorruptError when it is refused
   */
  async serveBundle({ dir, digest }: FixedBundle): Promise<void> {
    const { processes, threads, logger, onLeftOut } = this.options;
    const pool = await this.startPool({
      bundleDir: dir,
      digest,
      processes,
      threads,
      ...this.poolOptions(),
      ...(onLeftOut === undefined ? {} : { onLeftOut }),
    });
    if (this.stopped) return pool.stop(0);
    this.serving = { pointer: { generation: 1, digest, previous: null }, pool };
    this.options.onSwap('done');
    logger.info({ dir, digest, pids: pool.pids, sizes: pool.sizes, batchLimit: pool.batchLimit }, 'bundle serves');
  }

  /** Begins to watch; the first look is already under way when it returns. */
  start(): void {
    try {
      this.watcher = watch(this.options.home, (_event, file) => {
        if (file === null || file === 'champion.json' || file === 'shadow.json') this.look();
      });
      this.watcher.on('error', (error) =>
        this.options.logger.warn({ error: error.message }, 'the home folder cannot be watched; it is polled'),
      );
    } catch (error) {
      this.options.logger.warn({ error: (error as Error).message }, 'the home folder cannot be watched; it is polled');
    }
    this.timer = setInterval(() => this.look(), this.options.pollMs ?? POLL_MS);
    this.look();
  }

  /** Looks at the files, one look at a time; what changed meanwhile is seen by the next. */
  private look(): void {
    if (this.stopped) return;
    if (this.looking !== null) {
      this.again = true;
      return;
    }
    this.looking = (async () => {
      do {
        this.again = false;
        await this.options.onLook?.();
        await this.lookAtShadow();
        await this.lookAtPointer();
        this.lookAtMemory();
      } while (this.again && !this.stopped);
    })()
      .catch((error: Error) => this.options.logger.error({ error: error.message }, 'looking at champion.json and shadow.json failed'))
      .finally(() => {
        this.looking = null;
      });
  }

  private async lookAtPointer(): Promise<void> {
    const text = await readText(path.join(this.options.home, 'champion.json'));
    // No pointer: none was ever written, or it was taken away. A champion that serves goes on.
    if (text === null || this.stopped) return;
    if (this.pointerRefusal !== null && this.pointerRefusal.text === text && performance.now() < this.pointerRefusal.retryAt) return;
    try {
      const pointer = parse(text, ChampionPointer, 'champion.json');
      const current = this.serving;
      if (current !== null) {
        const { generation, digest } = current.pointer;
        if (pointer.generation === generation && pointer.digest === digest) {
          this.pointerRefusal = null;
          return;
        }
        if (pointer.generation <= generation) {
          throw new Error(
            `generation ${pointer.generation} (bundle ${pointer.digest.slice(0, 12)}) is not newer than generation ${generation}, which serves; it goes on`,
          );
        }
        if (pointer.digest === digest) {
          this.serving = { pointer, pool: current.pool };
          this.pointerRefusal = null;
          this.options.logger.info({ pointer }, 'the champion has a new generation; the bundle is the same');
          return;
        }
      }
      const warm = this.takeWarm(pointer.digest);
      const pool = warm ?? (await this.load(pointer.digest));
      if (this.stopped) {
        await pool.stop(0);
        return;
      }
      this.serving = { pointer, pool };
      this.pointerRefusal = null;
      this.options.onSwap('done');
      const { pids, sizes, batchLimit, provider } = pool;
      this.options.logger.info({ pointer, pids, sizes, batchLimit, provider, warm: warm !== null }, 'champion serves');
      if (current !== null) this.keep(current);
    } catch (error) {
      this.pointerRefusal = this.refuse(this.pointerRefusal, text, error as Error, 'champion');
      this.options.onSwap('refused');
    }
  }

  private async lookAtShadow(): Promise<void> {
    const text = await readText(path.join(this.options.home, 'shadow.json'));
    if (this.stopped) return;
    if (text === null) {
      this.order = null;
      this.shadowRefusal = null;
      this.dropShadow();
      return;
    }
    if (this.shadowRefusal !== null && this.shadowRefusal.text === text && performance.now() < this.shadowRefusal.retryAt) return;
    try {
      const order = parse(text, ShadowOrder, 'shadow.json');
      this.order = order;
      if (this.shadow !== null && (this.shadow.order.digest !== order.digest || this.shadow.order.trial !== order.trial)) this.dropShadow();
      if (this.shadow !== null) {
        this.shadow.order = order;
        return;
      }
      // Loaded beside the champion's watch: a slow candidate must not keep a promotion waiting.
      this.shadowWork ??= this.loadShadow(order, text).finally(() => {
        this.shadowWork = null;
      });
    } catch (error) {
      this.order = null;
      this.dropShadow();
      this.shadowRefusal = this.refuse(this.shadowRefusal, text, error as Error, 'shadow');
    }
  }

  /** @returns the processes of the previous champion, when it is this one and they are up */
  private takeWarm(digest: string): Pool | null {
    const { previous } = this;
    if (previous?.pointer.digest !== digest || previous.pool.pids.length === 0) return null;
    this.previous = null;
    return previous.pool;
  }

  /** The champion that was becomes the previous one, if memory allows; who was previous before ends. */
  private keep(was: Serving): void {
    this.evictPrevious('another champion came after it');
    const room = this.room();
    if (this.options.keepPrevious === false || room < 0) {
      if (room < 0)
        this.options.logger.info({ digest: was.pointer.digest, missingBytes: -room }, 'no memory to keep the previous champion');
      this.retire(was.pool);
      return;
    }
    // Requests it has in hand are answered; new ones go elsewhere.
    this.previous = was;
  }

  private evictPrevious(why: string): void {
    if (this.previous === null) return;
    const { pointer, pool } = this.previous;
    this.previous = null;
    this.options.logger.info({ digest: pointer.digest, why }, 'previous champion ends');
    this.retire(pool);
  }

  /** Bytes that can be taken beyond the reserve; below 0: memory is short. */
  private room(): number {
    return (this.options.available ?? availableBytes)() - RESERVE_BYTES;
  }

  private lookAtMemory(): void {
    const now = performance.now();
    if (this.previous === null || now - this.memoryLooked < MEMORY_LOOK_MS) return;
    this.memoryLooked = now;
    if (this.room() < 0) this.evictPrevious('memory is short');
  }

  /**
   * Frees memory for a bundle until it fits: the shadow goes first, then the previous champion.
   * @throws NoRoomError when it does not fit beside the champion even then
   */
  private async makeRoom(digest: string, processesOf: (bundle: Bundle) => number, what: 'champion' | 'shadow'): Promise<void> {
    const bundle = await peekBundle(path.join(this.options.home, 'bundles', digest));
    // What is wrong with the bundle itself is told by the process that verifies it.
    if (bundle === null) return;
    const processes = processesOf(bundle);
    const need = bundleNeedsBytes(bundle, processes);
    const fits = async (): Promise<boolean> => {
      // Memory of what was evicted is only free when its processes are gone.
      if (need > this.room()) await Promise.all(this.retiring);
      return need <= this.room();
    };
    if (await fits()) return;
    if (what === 'champion') {
      await this.shadowWork;
      this.dropShadow();
      if (await fits()) return;
    }
    this.evictPrevious(`its memory is needed for ${what === 'champion' ? 'the next one' : 'the shadow'}`);
    if ((await fits()) || (what === 'champion' && this.serving === null)) return;
    throw new NoRoomError(
      `bundle ${digest.slice(0, 12)} needs about ${mib(need)} in ${processes} ${processes === 1 ? 'process' : 'processes'} beside the champion, and ${mib(Math.max(0, this.room()))} can be taken. The champion goes on. Free memory, or let the miner run fewer processes`,
    );
  }

  private async loadShadow(order: ShadowOrder, text: string): Promise<void> {
    try {
      await this.makeRoom(order.digest, () => 1, 'shadow');
      const pool = await this.startPool({
        bundleDir: path.join(this.options.home, 'bundles', order.digest),
        digest: order.digest,
        processes: 1,
        threads: 1,
        nice: SHADOW_NICE,
        ...this.poolOptions(),
        // A candidate that fails with one member shows it: its figures are those of the whole bundle.
        strict: true,
      });
      if (this.stopped || this.order?.digest !== order.digest || this.order.trial !== order.trial) {
        await pool.stop(0);
        return;
      }
      const lane = new ShadowLane({
        pool,
        trial: order.trial,
        model: order.digest,
        idle: async () => this.serving?.pool.whenIdle(),
      });
      this.shadow = { order: this.order, pool, lane };
      this.shadowRefusal = null;
      this.options.logger.info({ order, pids: pool.pids }, 'shadow candidate runs');
    } catch (error) {
      this.shadowRefusal = this.refuse(this.shadowRefusal, text, error as Error, 'shadow');
    }
  }

  private dropShadow(): void {
    if (this.shadow === null) return;
    const { order, pool, lane } = this.shadow;
    this.shadow = null;
    lane.close();
    this.options.logger.info({ order }, 'shadow candidate ends');
    this.retire(pool);
  }

  private async load(digest: string): Promise<Pool> {
    const { home, processes, threads, onLeftOut } = this.options;
    await this.makeRoom(
      digest,
      (bundle) => deriveSizes(processes, threads, { graphBytes: largestGraphBytes(bundle) }).processes,
      'champion',
    );
    return this.startPool({
      bundleDir: path.join(home, 'bundles', digest),
      digest,
      processes,
      threads,
      ...this.poolOptions(),
      ...(onLeftOut === undefined ? {} : { onLeftOut }),
    });
  }

  private startPool(options: PoolOptions): Promise<Pool> {
    return (this.options.startPool ?? ((of: PoolOptions) => InferencePool.start(of)))(options);
  }

  private poolOptions(): Pick<PoolOptions, 'logger' | 'engineCache' | 'providers' | 'latencyBudgetMs'> {
    const { home, logger, providers, latencyBudgetMs } = this.options;
    return {
      logger,
      engineCache: path.join(home, 'cache', 'tensorrt'),
      ...(providers === undefined ? {} : { providers }),
      ...(latencyBudgetMs === undefined ? {} : { latencyBudgetMs }),
    };
  }

  private retire(pool: Pool): void {
    const gone = pool
      .stop()
      .catch((error: Error) => this.options.logger.error({ error: error.message }, 'retired inference processes could not be ended'))
      .finally(() => this.retiring.delete(gone));
    this.retiring.add(gone);
  }

  private refuse(before: Refusal | null, text: string, error: Error, what: string): Refusal {
    const attempts = before?.text === text ? before.attempts + 1 : 1;
    const wait = RETRY_MS[Math.min(attempts, RETRY_MS.length) - 1] as number;
    if (attempts === 1) this.options.logger.error({ error: error.message, text }, `${what} refused; what served goes on`);
    return { text, reason: error.message, attempts, retryAt: performance.now() + wait };
  }

  /** Ends the watch and all processes, those on their way out too. @param graceMs for what is being answered */
  async stop(graceMs: number): Promise<void> {
    this.stopped = true;
    this.watcher?.close();
    if (this.timer !== null) clearInterval(this.timer);
    await this.looking;
    await this.shadowWork;
    const { serving, shadow, previous } = this;
    this.serving = null;
    this.shadow = null;
    this.previous = null;
    shadow?.lane.close();
    await Promise.all([
      serving?.pool.stop(graceMs),
      shadow?.pool.stop(Math.min(graceMs, 2000)),
      previous?.pool.stop(graceMs),
      ...this.retiring,
    ]);
  }
}

function mib(bytes: number): string {
  return `${Math.round(bytes / 2 ** 20)} MiB`;
}

async function readText(file: string): Promise<string | null> {
  try {
    return await fs.readFile(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}

function parse<T>(text: string, schema: z.ZodType<T>, name: string): T {
  return parseJson(text, schema, name);
}
