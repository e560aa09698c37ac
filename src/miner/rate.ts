/** How much one hotkey may ask: a token bucket each. Time is handed in. */

export interface Rate {
  /** requests a second, for ever */
  perSecond: number;
  /** requests at once after a rest */
  burst: number;
}

interface Bucket {
  tokens: number;
  at: number;
}

/** Hotkeys remembered at most: a subnet has 256 neurons. */
const MAX_KEYS = 4096;

export class RateLimiter {
  /** least lately used first */
  private readonly buckets = new Map<string, Bucket>();

  /** @param clock ms, monotonic; one that goes back gives nothing and takes nothing */
  constructor(
    private readonly rate: Rate,
    private readonly clock: () => number,
    private readonly maxKeys: number = MAX_KEYS,
  ) {}

  get size(): number {
    return this.buckets.size;
  }

  /** Takes one token. @returns whether there was one; a refused request costs nothing */
  take(key: string): boolean {
    const { perSecond, burst } = this.rate;
    const now = this.clock();
    const known = this.buckets.get(key);
    const since = known === undefined ? 0 : Math.max(0, now - known.at);
    const tokens = known === undefined ? burst : Math.min(burst, known.tokens + (since / 1000) * perSecond);
    const allowed = tokens >= 1;
    this.buckets.delete(key);
    this.buckets.set(key, { tokens: allowed ? tokens - 1 : tokens, at: known === undefined ? now : Math.max(now, known.at) });
    // The one that rested longest: it has filled up again, or nearly so.
    if (this.buckets.size > this.maxKeys) this.buckets.delete(this.buckets.keys().next().value as string);
    return allowed;
  }
}
