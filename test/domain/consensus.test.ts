import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { decideLabels, type LabelCandidate } from '../../src/domain/consensus.js';
import type { Label } from '../../src/domain/contracts/common.js';
import { BadInputError } from '../../src/domain/errors.js';
import { digest } from './support.js';

const options = { confidence: 0.8, verifyShare: 0, seed: 1 };
const candidate = (a: number, b: number, intent: Label | null = null, n = 1): LabelCandidate => ({
  digest: digest(n),
  votes: [
    { member: 'final', p: a },
    { member: 'mid', p: b },
  ],
  intent,
});
const decide = (a: number, b: number, intent: Label | null = null) => decideLabels([candidate(a, b, intent)], options);
const probability = fc.double({ min: 0, max: 1, noNaN: true });

describe('a consensus', () => {
  it('needs both members above the confidence, on the same side', () => {
    expect(decide(0.9, 0.85).consensus).toEqual([{ digest: digest(1), label: 1, confidence: 0.85 }]);
    expect(decide(0.1, 0.05).consensus[0]?.label).toBe(0);
    expect(decide(0.9, 0.8).consensus).toEqual([]); // not above
    expect(decide(0.9, 0.6).consensus).toEqual([]);
  });

  it('holds with the intent of the generator on its side', () => {
    expect(decide(0.9, 0.9, 1).consensus).toHaveLength(1);
  });

  it('fails against the intent of the generator: rejected, and a person is asked', () => {
    const { consensus, rejected, review } = decide(0.95, 0.9, 0);
    expect(consensus).toEqual([]);
    expect(rejected[0]?.reason).toMatch(/sure of 1, the generator meant 0/);
    expect(review).toEqual([{ digest: digest(1), reason: 'disagreement', proposed: null }]);
  });

  it('fails when two sure members contradict each other: rejected, and a person is asked', () => {
    const { rejected, review } = decide(0.95, 0.1);
    expect(rejected[0]?.reason).toMatch(/contradict/);
    expect(review[0]?.proposed).toBeNull();
  });

  it('leaves a doubtful image to a person, with what all lean to as proposal', () => {
    expect(decide(0.9, 0.6, 1)).toEqual({
      consensus: [],
      rejected: [],
      review: [{ digest: digest(1), reason: 'disagreement', proposed: 1 }],
    });
    expect(decide(0.9, 0.6, 0).review[0]?.proposed).toBeNull();
    expect(decide(0.6, 0.4).rejected).toEqual([]);
  });

  it('is reached, or a person is asked, for every image; never both consensus and rejected', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(probability, probability, fc.constantFrom<Label | null>(0, 1, null))), (rows) => {
        const out = decideLabels(
          rows.map(([a, b, intent], n) => candidate(a, b, intent, n)),
          options,
        );
        const agreed = new Set(out.consensus.map((c) => c.digest));
        const asked = new Set(out.review.map((r) => r.digest));
        rows.forEach((_, n) => expect(agreed.has(digest(n)) !== asked.has(digest(n))).toBe(true));
        for (const r of out.rejected) expect(agreed.has(r.digest)).toBe(false);
      }),
    );
  });

  it('asks a person about the given share of it, the same images in whatever company', () => {
    const many = Array.from({ length: 1000 }, (_, n) => candidate(0.95, 0.95, 1, n));
    const sample = (rows: LabelCandidate[], seed = 1) =>
      decideLabels(rows, { ...options, verifyShare: 0.1, seed })
        .review.filter((r) => r.reason === 'sample')
        .map((r) => r.digest);
    const all = sample(many);
    expect(all.length).toBeGreaterThan(65);
    expect(all.length).toBeLessThan(135);
    expect(sample([...many.slice(0, 500)].reverse())).toEqual(all.filter((d) => many.slice(0, 500).some((m) => m.digest === d)));
    expect(sample(many, 2)).not.toEqual(all);
  });

  it('asks about all or nothing at the ends of the share', () => {
    const rows = Array.from({ length: 20 }, (_, n) => candidate(0.95, 0.95, null, n));
    expect(decideLabels(rows, { ...options, verifyShare: 1 }).review).toHaveLength(20);
    expect(decideLabels(rows, options).review).toHaveLength(0);
  });

  it('does not depend on the order of the images', () => {
    const rows = [candidate(0.9, 0.9, 1, 1), candidate(0.9, 0.2, 1, 2), candidate(0.1, 0.1, null, 3)];
    expect(decideLabels([...rows].reverse(), options)).toEqual(decideLabels(rows, options));
  });

  it('is refused from one member, a member voting twice, or a vote that is no probability', () => {
    const one = { digest: digest(1), intent: null };
    expect(() => decideLabels([{ ...one, votes: [{ member: 'final', p: 0.9 }] }], options)).toThrow(/two different members/);
    expect(() =>
      decideLabels(
        [
          {
            ...one,
            votes: [
              { member: 'final', p: 0.9 },
              { member: 'final', p: 0.9 },
            ],
          },
        ],
        options,
      ),
    ).toThrow(BadInputError);
    expect(() => decide(1.2, 0.9)).toThrow(/not a probability/);
  });
});
