import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { holdMs, Interarrival, MAX_HOLD_MS } from '../../src/platform/inference/batching.js';

const busy = { waiting: 2, limit: 8, savingMs: 20, interarrivalMs: 2, slackMs: 1000 };

describe('micro-batching', () => {
  it('never delays a request that waits alone, whatever the load', () => {
    fc.assert(
      fc.property(
        fc.double({ min: 0, max: 1e4, noNaN: true }),
        fc.double({ min: 0, max: 1e4, noNaN: true }),
        (savingMs, interarrivalMs) => {
          expect(holdMs({ ...busy, waiting: 1, savingMs, interarrivalMs })).toBe(0);
        },
      ),
    );
  });

  it('begins at once when the batch is full, or batches do not pay', () => {
    expect(holdMs({ ...busy, waiting: 8 })).toBe(0);
    expect(holdMs({ ...busy, limit: 1 })).toBe(0);
    expect(holdMs({ ...busy, savingMs: 0 })).toBe(0);
  });

  it('holds a batch open while company is to be expected within what it saves', () => {
    expect(holdMs(busy)).toBe(10);
    expect(holdMs({ ...busy, waiting: 4 })).toBe(5);
    expect(holdMs({ ...busy, interarrivalMs: 15 })).toBe(0);
    expect(holdMs({ ...busy, interarrivalMs: Number.POSITIVE_INFINITY })).toBe(0);
  });

  it('never holds longer than the most urgent request can wait, nor than the limit', () => {
    expect(holdMs({ ...busy, slackMs: 3 })).toBe(3);
    expect(holdMs({ ...busy, slackMs: -5 })).toBe(0);
    expect(holdMs({ ...busy, savingMs: 1e6 })).toBe(MAX_HOLD_MS);
  });

  it('measures the time between arrivals, and forgets it after a pause', () => {
    const arrivals = new Interarrival();
    expect(arrivals.value(0)).toBe(Number.POSITIVE_INFINITY);
    arrivals.arrived(1000);
    expect(arrivals.value(1000)).toBe(Number.POSITIVE_INFINITY);
    for (let i = 1; i <= 50; i++) arrivals.arrived(1000 + 10 * i);
    expect(arrivals.value(1500)).toBeCloseTo(10, 6);
    for (let i = 1; i <= 50; i++) arrivals.arrived(1500 + 2 * i);
    expect(arrivals.value(1600)).toBeCloseTo(2, 3);
    expect(arrivals.value(9000)).toBe(Number.POSITIVE_INFINITY);
    arrivals.arrived(9000);
    expect(arrivals.value(9000)).toBe(Number.POSITIVE_INFINITY);
  });
});
