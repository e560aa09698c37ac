import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { ImageRow, Label, TruthKind } from '../../src/domain/contracts/common.js';
import { BadInputError, LeakError } from '../../src/domain/errors.js';
import { buildSnapshot, effectiveLabels, holdBack, type LabelEvidence } from '../../src/domain/snapshot.js';
import { digest, image } from './support.js';

const real = Array.from({ length: 40 }, (_, n) => image(n));
const synthetic = (n: number, over: Partial<ImageRow> = {}): ImageRow =>
  image(1000 + n, { label: null, truth: 'none', provider: 'composite', parents: [digest(0)], group: 'g0', ...over });
const label = (n: number, kind: LabelEvidence['kind'], value: Label = 1, at = 1): LabelEvidence => ({
  digest: digest(1000 + n),
  label: value,
  kind,
  at,
});
const build = (over: Partial<Parameters<typeof buildSnapshot>[0]> = {}) =>
  buildSnapshot({ real, synthetic: [], labels: [], unreviewedWeight: 0.5, maxSyntheticShare: 0.5, ...over });
const share = (rows: readonly ImageRow[]) => {
  const weight = (which: readonly ImageRow[]) => which.reduce((sum, r) => sum + r.weight, 0);
  return weight(rows.filter((r) => r.provider !== null)) / weight(rows);
};

describe('a snapshot', () => {
  it('is sorted by digest and the same for any order of its input', () => {
    const rows = build();
    expect(rows.map((r) => r.digest)).toEqual([...rows.map((r) => r.digest)].sort());
    expect(build({ real: [...real].reverse() })).toEqual(rows);
  });

  it('leaves out images without a label', () => {
    expect(build({ synthetic: [synthetic(1), synthetic(2)], labels: [label(2, 'consensus')] }).filter((r) => r.provider)).toHaveLength(1);
  });

  it('weighs consensus less than what a person saw', () => {
    const rows = build({
      synthetic: [synthetic(1), synthetic(2)],
      labels: [label(1, 'consensus'), label(2, 'consensus', 1), label(2, 'verified', 0, 2)],
    });
    expect(rows.find((r) => r.digest === digest(1001))).toMatchObject({ weight: 0.5, truth: 'consensus', label: 1 });
    expect(rows.find((r) => r.digest === digest(1002))).toMatchObject({ weight: 1, truth: 'verified', label: 0 });
  });

  it("never lets a lower kind of label move a photograph's truth", () => {
    const rows = build({
      labels: [
        { digest: digest(1), label: 0, kind: 'verified', at: 9 },
        { digest: digest(3), label: 0, kind: 'consensus', at: 9 },
      ],
    });
    expect(rows.find((r) => r.digest === digest(1))).toMatchObject({ label: 1, truth: 'truth', weight: 1 });
    expect(rows.find((r) => r.digest === digest(3))).toMatchObject({ label: 1, truth: 'truth', weight: 1 });
  });

  it('refuses a row of the held-out pool, photograph or derived, and makes nothing', () => {
    expect(() => build({ real: [...real, image(99, { pool: 'test' })] })).toThrow(LeakError);
    expect(() => build({ synthetic: [synthetic(1, { pool: 'test' })], labels: [label(1, 'verified')] })).toThrow(LeakError);
  });

  it('never gives derived images more than their share of the training weight', () => {
    fc.assert(
      fc.property(
        fc.array(fc.constantFrom<LabelEvidence['kind']>('consensus', 'verified'), { maxLength: 120 }),
        fc.double({ min: 0, max: 0.9, noNaN: true }),
        (kinds, max) => {
          const rows = build({
            synthetic: kinds.map((_, n) => synthetic(n)),
            labels: kinds.map((k, n) => label(n, k, n % 3 ? 1 : 0)),
            maxSyntheticShare: max,
          });
          expect(share(rows)).toBeLessThanOrEqual(max + 1e-9);
          expect(rows.filter((r) => r.provider === null)).toHaveLength(real.length);
        },
      ),
      { numRuns: 40 },
    );
  });

  it('does not count photographs that are not trained on as room for derived ones', () => {
    const idle = real.map((r) => ({ ...r, pool: 'validate' as const }));
    expect(build({ real: idle, synthetic: [synthetic(1)], labels: [label(1, 'verified')] }).some((r) => r.provider !== null)).toBe(false);
  });

  it('keeps what a person saw, and the balance of the classes, when it must leave out', () => {
    const many = Array.from({ length: 300 }, (_, n) => synthetic(n));
    const labels = many.map((_, n) => label(n, n < 10 ? 'verified' : 'consensus', n % 3 === 0 ? 1 : 0));
    const kept = build({ synthetic: many, labels }).filter((r) => r.provider !== null);
    expect(kept.filter((r) => r.truth === 'verified')).toHaveLength(10);
    const unreviewed = kept.filter((r) => r.truth === 'consensus');
    expect(unreviewed.length).toBeGreaterThan(30);
    expect(Math.abs(unreviewed.filter((r) => r.label === 1).length / unreviewed.length - 1 / 3)).toBeLessThan(0.05);
  });

  it('refuses a weight or share out of range', () => {
    for (const over of [{ unreviewedWeight: 0 }, { unreviewedWeight: 1.5 }, { maxSyntheticShare: -0.1 }, { maxSyntheticShare: NaN }])
      expect(() => build(over)).toThrow(BadInputError);
  });
});

describe('the label that holds', () => {
  it('is of the highest kind, the newest within a kind, in any order', () => {
    const rows = [label(1, 'consensus', 1, 9), label(1, 'verified', 1, 2), label(1, 'verified', 0, 5), label(1, 'none', 1, 99)];
    for (const order of [rows, [...rows].reverse()])
      expect(effectiveLabels(order).get(digest(1001))).toEqual({ label: 0, kind: 'verified' });
  });

  it('is none when two of one kind and time contradict each other, unless a later word settles it', () => {
    const rows = [label(1, 'verified', 1, 5), label(1, 'verified', 0, 5)];
    expect(effectiveLabels(rows).has(digest(1001))).toBe(false);
    expect(effectiveLabels([...rows, label(1, 'verified', 0, 6)]).get(digest(1001))?.label).toBe(0);
  });
});

describe('what is held back from a training', () => {
  interface Made {
    digest: string;
    group: string;
    truth: TruthKind;
  }
  const made = Array.from({ length: 100 }, (_, n): Made => ({ digest: digest(n), group: `g${n % 25}`, truth: 'consensus' }));
  const held = (over: Partial<Parameters<typeof holdBack>[1]> = {}, of = made) =>
    holdBack(of, { share: 0.15, least: 10, seed: 1, ...over });

  it('is a share in whole groups, the same whatever the order', () => {
    const rows = held();
    expect(rows.length).toBeGreaterThanOrEqual(15);
    expect(rows.length).toBeLessThan(15 + 4);
    const groups = new Set(rows.map((r) => r.group));
    expect(rows).toHaveLength(made.filter((r) => groups.has(r.group)).length);
    expect(held({}, [...made].reverse())).toEqual(rows);
    expect(held({ seed: 2 })).not.toEqual(rows);
  });

  it('is at least what a gate needs, and nothing where that would be more than half', () => {
    expect(held({ least: 30 }).length).toBeGreaterThanOrEqual(30);
    expect(held({ least: 51 })).toEqual([]);
    expect(held({ share: 0 })).toEqual([]);
    expect(held({}, [])).toEqual([]);
  });

  it('counts images with a settled label; those with none come along with their group', () => {
    const half = made.map((row, n): Made => ({ ...row, truth: n % 2 === 0 ? 'consensus' : 'none' }));
    const rows = held({}, half);
    const settled = rows.filter((r) => r.truth !== 'none');
    expect(settled.length).toBeGreaterThanOrEqual(10);
    expect(settled.length).toBeLessThan(10 + 4);
    expect(rows).toHaveLength(half.filter((r) => rows.some((own) => own.group === r.group)).length);
    expect(held({ least: 26 }, half)).toEqual([]);
  });
});
