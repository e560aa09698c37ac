/**
 * How far validators' clocks are from this machine's, from the nonces they signed: the median over validators of each
 * one's median, so that neither a slow request nor one validator with a wrong clock decides. Network time is in it, so a
 * good clock shows some tens to hundreds of milliseconds behind the validators.
 */

/** Requests remembered of one hotkey, and hotkeys at most. */
const SAMPLES = 15;
const MAX_HOTKEYS = 256;
/** What is older says nothing of the clock now, ms. */
const FRESH_MS = 30 * 60_000;
/** Beyond this a clock is in need of mending, ms: the window is 13 s past and 5 s future. */
export const SKEW_LIMIT_MS = 2000;

interface Sample {
  at: number;
  aheadMs: number;
}

export class SkewMeter {
  private readonly accepted = new Map<string, Sample[]>();
  private readonly refused = new Map<string, Sample[]>();

  /** @param clock ms, monotonic */
  constructor(private readonly clock: () => number) {}

  /**
   * Notes a request with a genuine signature of a permitted validator.
   * @param aheadMs nonce minus our clock
   * @param accepted false: refused for its nonce alone, which tells of a clock so wrong that nothing is accepted
   */
  note(hotkey: string, aheadMs: number, accepted: boolean): void {
    const table = accepted ? this.accepted : this.refused;
    const samples = table.get(hotkey) ?? [];
    table.delete(hotkey);
    samples.push({ at: this.clock(), aheadMs });
    if (samples.length > SAMPLES) samples.shift();
    table.set(hotkey, samples);
    if (table.size > MAX_HOTKEYS) table.delete(table.keys().next().value as string);
  }

  /** How far validators' clocks are ahead of ours, ms; null without a genuine request of late. */
  get aheadMs(): number | null {
    return this.of(this.accepted);
  }

  /** What the operator should do about the clock, or null. */
  get problem(): string | null {
    const seen = this.of(this.accepted);
    const value = seen ?? this.of(this.refused);
    if (value === null || Math.abs(value) <= SKEW_LIMIT_MS) return null;
    const what = `This machine's clock is about ${(Math.abs(value) / 1000).toFixed(1)} s ${value > 0 ? 'behind' : 'ahead of'} the validators'`;
    return seen === null
      ? `${what}, or old requests are being replayed: genuinely signed requests are refused for their nonce, and none is accepted. Set the clock (NTP).`
      : `${what}. Requests are refused when it is 13 s ahead, or 5 s behind. Set the clock (NTP).`;
  }

  private of(table: ReadonlyMap<string, readonly Sample[]>): number | null {
    const since = this.clock() - FRESH_MS;
    const each: number[] = [];
    for (const samples of table.values()) {
      const fresh = samples.filter((sample) => sample.at >= since).map((sample) => sample.aheadMs);
      if (fresh.length > 0) each.push(median(fresh));
    }
    return each.length > 0 ? median(each) : null;
  }
}

/** @param values at least one */
function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? (sorted[middle] as number) : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
}
