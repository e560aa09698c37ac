import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Label } from '../../src/domain/contracts/common.js';
import { binaryEntropy, hardness, rankHardCases } from '../../src/domain/hardness.js';
import { digest } from './support.js';

const config = { errorThreshold: 0.3, hardnessThreshold: 0.5 };
const p = fc.double({ min: 0, max: 1, noNaN: true });
const of = (prediction: number, over: { votes?: Record<string, number>; views?: number[]; label?: Label | null } = {}) =>
  hardness(
    { prediction, votes: over.votes ?? { a: prediction, b: prediction }, views: over.views ?? [], label: over.label ?? null },
    config,
  );

describe('hardness', () => {
  it('takes entropy as FiftyOne does, in bits', () => {
    // compute_hardness: scipy.stats.entropy of the softmax of the logits; 0.6931 and 0.5004 nats for these two
    expect(binaryEntropy(0.5)).toBe(1);
    expect(binaryEntropy(0.8) * Math.LN2).toBeCloseTo(0.5004024, 6);
    expect(binaryEntropy(0)).toBe(0);
    expect(binaryEntropy(1)).toBe(0);
  });

  it('stays in [0, 1], all its parts too', () => {
    fc.assert(
      fc.property(p, p, p, fc.array(p, { maxLength: 5 }), fc.constantFrom<Label | null>(0, 1, null), (prediction, a, b, views, label) => {
        const { hardness: h, parts } = hardness({ prediction, votes: { a, b }, views, label }, config);
        for (const value of [h, ...Object.values(parts)]) if (value !== null) expect(value >= 0 && value <= 1 + 1e-12).toBe(true);
        expect(parts.error === null).toBe(label === null);
      }),
    );
  });

  it('calls a failure what errs by more than the threshold where truth is known, and only that', () => {
    expect(of(0.69, { label: 1 }).failure).toBe(true);
    expect(of(0.7, { label: 1 }).failure).toBe(false); // 0.30000000000000004 is 0.3
    expect(of(0.3, { label: 0 }).failure).toBe(false);
    expect(of(0.31, { label: 0 }).failure).toBe(true);
    expect(of(0.75, { label: 1, votes: { a: 0.5, b: 1 } }).failure).toBe(false);
  });

  it('ranks a confident error above a doubtful answer', () => {
    expect(of(0.98, { label: 0 }).hardness).toBeGreaterThan(of(0.6).hardness);
  });

  it('sees members that disagree, an answer that is not stable, and low confidence without truth', () => {
    expect(of(0.9, { votes: { a: 0.95, b: 0.3 } }).failure).toBe(true);
    expect(of(0.95, { views: [0.1, 0.2, 0.9] }).failure).toBe(true);
    expect(of(0.6).failure).toBe(true);
    expect(of(0.97, { votes: { a: 0.95, b: 0.99 }, views: [0.96, 0.97] }).failure).toBe(false);
  });

  it('does not fall as members move apart', () => {
    fc.assert(
      fc.property(p, p, p, (prediction, a, b) => {
        const near = of(prediction, { votes: { a, b: (a + b) / 2 } }).hardness;
        expect(of(prediction, { votes: { a, b } }).hardness).toBeGreaterThanOrEqual(near - 1e-12);
      }),
    );
  });
});

describe('the ranking of hard cases', () => {
  it('is by hardness, then digest, whatever the order of the input, and no longer than asked', () => {
    const rows = [0.5, 0.9, 0.5, 0.7].map((h, n) => ({ digest: digest(n), hardness: h }));
    const ranked = rankHardCases(rows, 3);
    expect(ranked.map((r) => r.hardness)).toEqual([0.9, 0.7, 0.5]);
    expect(ranked[2]?.digest).toBe([digest(0), digest(2)].sort()[0]);
    expect(rankHardCases([...rows].reverse(), 3)).toEqual(ranked);
    expect(rankHardCases(rows, 0)).toEqual([]);
  });
});
