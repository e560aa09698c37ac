import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { seededRng } from '../../src/domain/rng.js';

describe('seeded random numbers', () => {
  it('gives the same numbers for the same seed', () => {
    fc.assert(
      fc.property(fc.oneof(fc.integer(), fc.string()), (seed) => {
        const [a, b] = [seededRng(seed), seededRng(seed)];
        expect(Array.from({ length: 20 }, () => a.next())).toEqual(Array.from({ length: 20 }, () => b.next()));
      }),
    );
  });

  it('keeps giving the numbers it gave when it was written', () => {
    const rng = seededRng(72);
    expect(Array.from({ length: 4 }, () => rng.int(1_000_000))).toMatchInlineSnapshot(`
      [
        560681,
        766266,
        833154,
        128066,
      ]
    `);
  });

  it('tells a number from the same number as text, and neighbouring seeds apart', () => {
    const first = (seed: number | string) => seededRng(seed).next();
    expect(new Set([first(7), first('7'), first(8), first(-7), first(7.5)]).size).toBe(5);
  });

  it('fills [0, 1) evenly', () => {
    const rng = seededRng('even');
    const bins = new Array<number>(10).fill(0);
    for (let i = 0; i < 20_000; i++) {
      const bin = Math.floor(rng.next() * 10);
      bins[bin] = (bins[bin] ?? 0) + 1;
    }
    expect(bins).toHaveLength(10); // none below 0, none at 1 or above
    const chi = bins.reduce((sum, n) => sum + (n - 2000) ** 2 / 2000, 0);
    expect(chi).toBeLessThan(27.9); // 0.1% of a chi-square of 9 degrees of freedom
  });

  it('draws whole numbers below n, every one of them', () => {
    const rng = seededRng(1);
    const seen = new Set(Array.from({ length: 500 }, () => rng.int(7)));
    expect([...seen].sort()).toEqual([0, 1, 2, 3, 4, 5, 6]);
  });

  it('refuses a range that is no whole number above 0', () => {
    for (const n of [0, -1, 1.5, NaN, 2 ** 33]) expect(() => seededRng(1).int(n)).toThrow(RangeError);
  });

  it('refuses a seed that is not finite', () => {
    expect(() => seededRng(NaN)).toThrow(RangeError);
  });

  it('shuffles without losing or changing anything, and leaves the input alone', () => {
    fc.assert(
      fc.property(fc.array(fc.integer()), fc.integer(), (items, seed) => {
        const before = [...items];
        const shuffled = seededRng(seed).shuffle(items);
        expect(items).toEqual(before);
        expect([...shuffled].sort((a, b) => a - b)).toEqual([...items].sort((a, b) => a - b));
      }),
    );
  });

  it('forks streams that do not depend on how much was drawn before, and differ by label', () => {
    const fresh = seededRng(5);
    const used = seededRng(5);
    used.next();
    expect(used.fork('a').next()).toBe(fresh.fork('a').next());
    expect(fresh.fork('a').next()).not.toBe(fresh.fork('b').next());
  });

  it('refuses to pick from nothing', () => {
    expect(() => seededRng(1).pick([])).toThrow(RangeError);
  });
});
