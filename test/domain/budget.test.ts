import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { monthOf, remaining, reserveCents, type Spend } from '../../src/domain/budget.js';
import { BadInputError } from '../../src/domain/errors.js';

describe('the budget', () => {
  it('counts months in UTC', () => {
    expect(monthOf(Date.UTC(2026, 0, 31, 23, 59, 59, 999))).toBe('2026-01');
    expect(monthOf(Date.UTC(2026, 1, 1))).toBe('2026-02');
  });

  it('reserves whole cents that always cover the longest run, and no cent too many', () => {
    expect(reserveCents(66, 3600)).toBe(66);
    expect(reserveCents(66, 3601)).toBe(67);
    expect(reserveCents(0, 3600)).toBe(0);
    fc.assert(
      fc.property(fc.nat(10_000), fc.nat(100_000), (price, seconds) => {
        const exact = (price * seconds) / 3600;
        const reserved = reserveCents(price, seconds);
        expect(reserved).toBeGreaterThanOrEqual(exact - 1e-6);
        expect(reserved).toBeLessThan(exact + 1);
      }),
    );
  });

  it('refuses a price or a time that is not there', () => {
    for (const [price, seconds] of [
      [-1, 10],
      [1, -10],
      [NaN, 1],
      [1, Infinity],
    ] as const)
      expect(() => reserveCents(price, seconds)).toThrow(BadInputError);
  });

  it('binds reservations until they are settled or released, in their own month', () => {
    const entry = (over: Partial<Spend>): Spend => ({
      month: '2026-01',
      reservedCents: 100,
      actualCents: null,
      status: 'reserved',
      ...over,
    });
    expect(remaining([], 500, '2026-01')).toBe(500);
    expect(remaining([entry({}), entry({ status: 'running' })], 500, '2026-01')).toBe(300);
    expect(remaining([entry({ status: 'settled', actualCents: 30 })], 500, '2026-01')).toBe(470);
    expect(remaining([entry({ status: 'released' })], 500, '2026-01')).toBe(500);
    expect(remaining([entry({ month: '2025-12' })], 500, '2026-01')).toBe(500);
    expect(remaining([entry({ status: 'settled', actualCents: 900 })], 500, '2026-01')).toBe(-400);
  });
});
