import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Label } from '../../src/domain/contracts/common.js';
import { BadInputError } from '../../src/domain/errors.js';
import { auc, confusion, expectedCalibrationError, metricsOf, roundHalfEven, type JudgedAnswer } from '../../src/domain/metrics.js';
import { normalQuantile, quantile, quantileAtLeast, tQuantile } from '../../src/domain/statistics.js';
import fixture from './fixtures/scikit-learn.json' with { type: 'json' };

const rowsOf = (c: { labels: number[]; predictions: number[] }) =>
  c.labels.map((label, i) => ({ label: label as Label, prediction: c.predictions[i] as number }));

const row = fc.record({ label: fc.constantFrom<Label>(0, 1), prediction: fc.double({ min: 0, max: 1, noNaN: true }) });

describe('metrics', () => {
  it('equal those of scikit-learn', () => {
    for (const c of fixture.metrics) {
      const rows = rowsOf(c);
      const m = metricsOf(rows);
      expect(m.accuracy).toBeCloseTo(c.accuracy, 10);
      expect(m.mcc).toBeCloseTo(c.mcc, 10);
      expect(m.brier).toBeCloseTo(c.brier, 10);
      expect(m.n).toBe(rows.length);
      expect(confusion(rows)).toEqual({ tp: c.tp, fp: c.fp, tn: c.tn, fn: c.fn });
      expect(auc(rows)).toBeCloseTo(c.auc, 10);
      expect(expectedCalibrationError(rows, 10)).toBeCloseTo(c.ece, 10);
    }
  });

  it('count 0.5 as ordinary street, as numpy rounds', () => {
    expect(metricsOf([{ label: 0, prediction: 0.5 }]).accuracy).toBe(1);
    expect(metricsOf([{ label: 1, prediction: 0.5 }]).accuracy).toBe(0);
    expect([0.5, 1.5, 2.5, -0.5, 0.5000001].map((x) => roundHalfEven(x) + 0)).toEqual([0, 2, 2, 0, 1]);
  });

  it('give MCC 0 when labels or predictions are all of one class', () => {
    const one = [0.1, 0.9, 0.6].map((prediction): JudgedAnswer => ({ label: 1, prediction }));
    expect(metricsOf(one).mcc).toBe(0);
    expect(metricsOf([...one.map((r) => ({ ...r, prediction: 0.9 })), { label: 0, prediction: 0.9 }]).mcc).toBe(0);
    expect(auc(one)).toBeNull();
  });

  it('stay in their ranges, and do not depend on the order', () => {
    fc.assert(
      fc.property(fc.array(row, { minLength: 1 }), (rows) => {
        const m = metricsOf(rows);
        expect(m.accuracy).toBeGreaterThanOrEqual(0);
        expect(m.accuracy).toBeLessThanOrEqual(1);
        expect(Math.abs(m.mcc)).toBeLessThanOrEqual(1 + 1e-12);
        expect(m.brier).toBeGreaterThanOrEqual(0);
        expect(m.brier).toBeLessThanOrEqual(1);
        expect(metricsOf([...rows].reverse()).mcc).toBe(m.mcc);
      }),
    );
  });

  it('change sign of MCC when every answer is turned round', () => {
    const off = row.filter((r) => r.prediction !== 0.5 && 1 - r.prediction !== 0.5);
    fc.assert(
      fc.property(fc.array(off), (rows) => {
        const turned = rows.map((r) => ({ ...r, prediction: 1 - r.prediction }));
        expect(metricsOf(turned).mcc).toBeCloseTo(-metricsOf(rows).mcc, 10);
      }),
    );
  });

  it('leave out missing answers, and look as bad as can be when nothing was answered', () => {
    expect(
      metricsOf([
        { label: 1, prediction: 0.9 },
        { label: 1, prediction: -1 },
      ]),
    ).toMatchObject({ accuracy: 1, n: 1 });
    expect(metricsOf([{ label: 1, prediction: -1 }])).toEqual({ accuracy: 0, mcc: 0, brier: 1, n: 0, positives: 0, balanced: null });
  });

  it('refuse a prediction that is no probability', () => {
    for (const prediction of [1.01, -0.2, NaN, Infinity]) expect(() => metricsOf([{ label: 1, prediction }])).toThrow(BadInputError);
  });

  it('find no calibration error in predictions that are the very frequencies', () => {
    const rows = Array.from({ length: 10 }, (_, i): JudgedAnswer => ({ label: i < 7 ? 1 : 0, prediction: 0.7 }));
    expect(expectedCalibrationError(rows, 10)).toBeCloseTo(0, 12);
    expect(expectedCalibrationError(rows.map((r) => ({ ...r, prediction: 0.9 })))).toBeCloseTo(0.2, 12);
  });
});

describe('quantiles', () => {
  it('of Student and Gauss equal those of scipy', () => {
    for (const { tail, df, t } of fixture.student) expect(Math.abs(tQuantile(tail, df) / t - 1)).toBeLessThan(df < 5 ? 5e-3 : 1e-4);
    for (const { p, z } of fixture.normal) expect(normalQuantile(p)).toBeCloseTo(z, 6);
  });

  it('of values interpolate as numpy does', () => {
    expect(quantile([1, 2, 4], 0.25)).toBe(1.5);
    expect(quantile([1, 2, 4], 1)).toBe(4);
    expect(quantile([], 0.5)).toBeNaN();
  });

  it('are surely at least a value that few enough lie above', () => {
    const upTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1);
    // Of 65 values with P(at most 2 of Binomial(65, 0.01)) = 0.973 two may lie above, of 320 six (0.956), of 5 none (0.951).
    expect([65, 320, 5].map((n) => quantileAtLeast(upTo(n), 0.99))).toEqual([63, 314, 5]);
    expect(quantileAtLeast([7], 0.5)).toBe(0);
    expect(quantileAtLeast([], 0.99)).toBe(0);
  });
});
