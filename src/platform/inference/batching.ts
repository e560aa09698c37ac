/** When a batch begins. Pure. */

/** A batch is never held open for longer, ms. */
export const MAX_HOLD_MS = 25;

/** What is known when a batch could begin. */
export interface HoldInput {
  /** images that are ready */
  waiting: number;
  /** images a batch at most; 1 where batches do not pay */
  limit: number;
  /** what one more image saves by joining instead of running alone, ms */
  savingMs: number;
  /** mean time between two requests lately, ms; Infinity when there is none to speak of */
  interarrivalMs: number;
  /** how long the most urgent image can wait, ms */
  slackMs: number;
}

/**
 * How long a batch that could begin now is held open for company, ms. Holding costs every waiting image the hold, and
 * saves the one that joins `savingMs`: so no longer than savingMs / waiting, and only when a request is to be expected
 * within that. A lone image is never held, and a full batch begins at once: the window follows the load by itself.
 */
export function holdMs({ waiting, limit, savingMs, interarrivalMs, slackMs }: HoldInput): number {
  if (waiting <= 1 || waiting >= limit) return 0;
  const pays = savingMs / waiting;
  if (!(interarrivalMs < pays)) return 0;
  return Math.max(0, Math.min(pays, slackMs, MAX_HOLD_MS));
}

/** Running mean of the time between arrivals, which forgets: after a pause the load counts as gone. */
export class Interarrival {
  private last = Number.NEGATIVE_INFINITY;
  private mean = Number.POSITIVE_INFINITY;

  /** @param now ms of a monotonic clock */
  arrived(now: number): void {
    const gap = now - this.last;
    this.last = now;
    // The first gap, and the first after a pause, say nothing of the load to come.
    if (gap > FORGET_MS) this.mean = Number.POSITIVE_INFINITY;
    else this.mean = Number.isFinite(this.mean) ? this.mean * (1 - WEIGHT) + gap * WEIGHT : gap;
  }

  /** ms; Infinity when nothing is known */
  value(now: number): number {
    return now - this.last > FORGET_MS ? Number.POSITIVE_INFINITY : this.mean;
  }
}

const FORGET_MS = 2000;
const WEIGHT = 0.2;
