/**
 * The shadow's lane: requests that also run on the candidate wait here, off the answer's path, and run one at a time and only
 * while the champion has nothing to do, so that on few cores the candidate takes time that nobody wants. What waits is
 * bounded in number, bytes and age; what does not fit is dropped and counted, never held against the candidate.
 */
import type { JournalRecord } from '../domain/contracts/miner.js';
import { OverloadedError, type InferencePool } from '../platform/inference/pool.js';

/** Requests that wait at most. */
const MAX_WAITING = 64;
const MAX_WAITING_BYTES = 64 * 1024 * 1024;
/** How long a request may wait for the champion to rest, ms: the journal's record waits with it. */
const MAX_AGE_MS = 30_000;
/** A candidate that needs longer for one image has failed on it, ms. */
const DEADLINE_MS = 30_000;

export type ShadowResult = NonNullable<JournalRecord['shadow']>;

export interface ShadowLaneOptions {
  pool: Pick<InferencePool, 'predict'>;
  trial: string;
  model: string;
  /** resolves when the champion has nothing waiting or running; at once when that is so */
  idle(): Promise<void>;
  maxAgeMs?: number;
}

interface Waiting {
  image: Buffer;
  since: number;
  done(result: ShadowResult | null): void;
}

export class ShadowLane {
  private readonly queue: Waiting[] = [];
  private bytes = 0;
  private running = false;
  private closed = false;

  constructor(private readonly options: ShadowLaneOptions) {}

  /** Requests waiting or running. */
  get depth(): number {
    return this.queue.length + (this.running ? 1 : 0);
  }

  /** Never rejects. @returns null when the request was dropped, for which the candidate is not to blame */
  run(image: Buffer): Promise<ShadowResult | null> {
    if (this.closed || this.queue.length >= MAX_WAITING || this.bytes + image.length > MAX_WAITING_BYTES) return Promise.resolve(null);
    return new Promise((done) => {
      this.queue.push({ image, since: performance.now(), done });
      this.bytes += image.length;
      void this.work();
    });
  }

  /** Drops what waits; what runs is answered or dropped with its pool. */
  close(): void {
    this.closed = true;
    for (const waiting of this.queue.splice(0)) waiting.done(null);
    this.bytes = 0;
  }

  private async work(): Promise<void> {
    if (this.running) return;
    this.running = true;
    while (this.queue.length > 0) {
      await this.options.idle();
      const next = this.queue.shift();
      // Closed while it waited for the champion.
      if (next === undefined) break;
      this.bytes -= next.image.length;
      if (performance.now() - next.since > (this.options.maxAgeMs ?? MAX_AGE_MS)) next.done(null);
      else next.done(await this.one(next.image));
    }
    this.running = false;
  }

  private async one(image: Buffer): Promise<ShadowResult | null> {
    const base = { trial: this.options.trial, model: this.options.model };
    const began = performance.now();
    try {
      const { prediction, votes, ms } = await this.options.pool.predict(image, DEADLINE_MS);
      return { ...base, prediction, votes, latencyMs: ms, error: null };
    } catch (error) {
      // The trial or the miner ended before it could answer.
      if (error instanceof OverloadedError) return null;
      const text = error instanceof Error ? error.message : String(error);
      return { ...base, prediction: null, votes: {}, latencyMs: performance.now() - began, error: text };
    }
  }
}
