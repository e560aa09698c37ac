/**
 * Which bundle answers, and which runs in its shadow. Watches the pointer and the shadow order, and swaps: processes with
 * the new bundle are started and warmed up, then new requests go there, then the old ones answer what they have and end.
 * Whatever is wrong with the new one, the old one goes on serving.
 */
import { watch, promises as fs, type FSWatcher } from 'node:fs';
import path from 'node:path';
import { ChampionPointer, ShadowOrder } from '../domain/contracts/miner.js';
import { parseJson } from '../platform/fsutil.js';
import { InferencePool, type PoolLogger } from '../platform/inference/pool.js';
import type { z } from 'zod';

export interface ModelHostOptions {
  home: string;
  /** inference processes and threads of the champion; 0: derived from the cores */
  processes: number;
  threads: number;
  logger: PoolLogger;
  onSwap(result: 'done' | 'refused'): void;
  /** called at every look at the files: for what else is watched in the same rhythm */
  onLook?(): Promise<void>;
  /** time between two looks, ms */
  pollMs?: number;
}

export interface Serving {
  pointer: ChampionPointer;
  pool: InferencePool;
}
export interface Shadow {
  order: ShadowOrder;
  pool: InferencePool;
}

const POLL_MS = 300;
/** A refused bundle that the pointer still names is tried again: it may have been laid out anew. */
const RETRY_MS = [2000, 5000, 10_000, 30_000];
/** The candidate must never slow the champion down: the lowest priority, one process, one thread. */
const SHADOW_NICE = 15;

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
    return (this.serving?.pool.restarts ?? 0) + (this.shadow?.pool.restarts ?? 0);
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
      const pool = await this.load(pointer.digest);
      if (this.stopped) {
        await pool.stop(0);
        return;
      }
      this.serving = { pointer, pool };
      this.pointerRefusal = null;
      this.options.onSwap('done');
      this.options.logger.info({ pointer, pids: pool.pids, sizes: pool.sizes, batchLimit: pool.batchLimit }, 'champion serves');
      if (current !== null) this.retire(current.pool);
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
      if (this.shadow !== null && this.shadow.order.digest !== order.digest) this.dropShadow();
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

  private async loadShadow(order: ShadowOrder, text: string): Promise<void> {
    try {
      const pool = await InferencePool.start({
        bundleDir: path.join(this.options.home, 'bundles', order.digest),
        digest: order.digest,
        processes: 1,
        threads: 1,
        nice: SHADOW_NICE,
        logger: this.options.logger,
      });
      if (this.stopped || this.order?.digest !== order.digest) {
        await pool.stop(0);
        return;
      }
      this.shadow = { order: this.order, pool };
      this.shadowRefusal = null;
      this.options.logger.info({ order, pids: pool.pids }, 'shadow candidate runs');
    } catch (error) {
      this.shadowRefusal = this.refuse(this.shadowRefusal, text, error as Error, 'shadow');
    }
  }

  private dropShadow(): void {
    if (this.shadow === null) return;
    const { order, pool } = this.shadow;
    this.shadow = null;
    this.options.logger.info({ order }, 'shadow candidate ends');
    this.retire(pool);
  }

  private load(digest: string): Promise<InferencePool> {
    const { home, processes, threads, logger } = this.options;
    return InferencePool.start({ bundleDir: path.join(home, 'bundles', digest), digest, processes, threads, logger });
  }

  private retire(pool: InferencePool): void {
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
    const { serving, shadow } = this;
    this.serving = null;
    this.shadow = null;
    await Promise.all([serving?.pool.stop(graceMs), shadow?.pool.stop(Math.min(graceMs, 2000)), ...this.retiring]);
  }
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
