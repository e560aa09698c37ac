import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Label } from '../../src/domain/contracts/common.js';
import { BadInputError } from '../../src/domain/errors.js';
import { weigh } from '../../src/domain/evidence.js';
import { judge, type Gates, type PairedRow } from '../../src/domain/verdict.js';
import { goodGates, paired } from './support.js';

const config = { marginAccuracy: 0.01, alpha: 0.005, minGroupsPerClass: 40 };
const judged = (
  rows: readonly PairedRow[],
  over: { gates?: Partial<Gates>; config?: Partial<typeof config>; seed?: number; resamples?: number } = {},
) =>
  judge({
    rows,
    gates: { ...goodGates, ...over.gates },
    config: { ...config, ...over.config },
    resamples: over.resamples ?? 200,
    seed: over.seed ?? 1,
  });
const better = (groups = 160, seed = 3) => paired({ groups, perGroup: 3, champion: 0.8, candidate: 0.97, seed });

describe('a verdict', () => {
  it('never promotes a model against itself', () => {
    for (let seed = 0; seed < 12; seed++) {
      const rows = paired({ groups: 120, perGroup: 2, champion: 0.9, candidate: 0.9, seed }).map((r) => ({ ...r, candidate: r.champion }));
      const verdict = judged(rows, { seed });
      expect(verdict.decision).toBe('keep');
      expect(verdict.accuracy.difference).toBe(0);
      expect(verdict.predictedReward.ci95).toEqual([0, 0]);
    }
  });

  it('does not promote models of equal quality that err on different images', () => {
    let promoted = 0;
    for (let seed = 0; seed < 25; seed++) {
      if (judged(paired({ groups: 120, perGroup: 2, champion: 0.9, candidate: 0.9, seed }), { seed }).decision === 'promote') promoted += 1;
    }
    expect(promoted).toBe(0);
  });

  it('promotes a clearly better candidate on enough groups', () => {
    for (let seed = 0; seed < 10; seed++) {
      const verdict = judged(better(160, seed), { seed });
      expect(verdict.decision).toBe('promote');
      expect(verdict.reasons).toEqual([]);
      expect(verdict.accuracy.lower).toBeGreaterThan(0);
      expect(verdict.predictedReward.difference).toBeGreaterThan(0);
      expect(verdict.needGroups).toBeNull();
    }
  });

  it('keeps the champion against a clearly worse candidate', () => {
    for (let seed = 0; seed < 10; seed++) {
      expect(judged(paired({ groups: 160, perGroup: 3, champion: 0.97, candidate: 0.8, seed }), { seed }).decision).toBe('keep');
    }
  });

  it('goes on collecting when groups are few, however good the candidate looks', () => {
    const rows = paired({ groups: 8, perGroup: 40, champion: 0.5, candidate: 1, seed: 2 });
    const verdict = judged(rows);
    expect(verdict.decision).toBe('continue');
    expect(verdict.needGroups).toBeGreaterThanOrEqual(72);
    expect(verdict.reason).toMatch(/only 4 with roadwork and 4 without of the 40 groups/);
  });

  it('does not take many frames of one clip for many groups', () => {
    const one = paired({ groups: 2, perGroup: 200, champion: 0.6, candidate: 0.99, seed: 2 });
    const verdict = judged(one, { config: { minGroupsPerClass: 1 } });
    expect(verdict.decision).toBe('continue');
    expect(verdict.accuracy.lower).toBeLessThan(0);
  });

  it('goes on collecting when the estimate is within the margin', () => {
    // The candidate differs in nothing but ten mended errors.
    let mend = 10;
    const rows = paired({ groups: 400, perGroup: 2, champion: 0.9, candidate: 0.9, seed: 5 }).map((r) => {
      const wrong = r.champion > 0.5 !== (r.label === 1);
      return { ...r, candidate: wrong && mend-- > 0 ? r.label : r.champion };
    });
    const verdict = judged(rows, { config: { marginAccuracy: 0.03 } });
    expect(verdict.accuracy.difference).toBeGreaterThan(0);
    expect(verdict.decision).toBe('continue');
    expect(verdict.needGroups).toBeNull();
  });

  it('refuses a better candidate that fails a gate, and names the gate', () => {
    const cases: [Partial<Gates>, RegExp][] = [
      [{ latencyP99Ms: 501 }, /p99 latency is 501 ms/],
      [{ latencyP99Ms: NaN }, /p99 latency/],
      [{ bundleBytes: 3_000 }, /3000 bytes/],
      [{ errors: 5, answers: 400 }, /failed on 5 of 400/],
    ];
    for (const [gates, reason] of cases) {
      const verdict = judged(better(), { gates });
      expect(verdict.decision).toBe('keep');
      expect(verdict.reason).toMatch(reason);
    }
  });

  it('waits for the shadow before it promotes', () => {
    expect(judged(better(), { gates: { shadowAnswers: 19 } }).decision).toBe('continue');
    expect(judged(better(), { gates: { shadowAnswers: 20 } }).decision).toBe('promote');
  });

  it('never promotes on consensus labels alone', () => {
    const verdict = judged(better().map((r) => ({ ...r, truth: 'consensus' as const })));
    expect(verdict.decision).toBe('continue');
    expect(verdict.byTruth).toHaveProperty('consensus');
    expect(verdict.byTruth).not.toHaveProperty('truth');
  });

  it('lets consensus labels veto what truth would promote', () => {
    const against = paired({ groups: 100, perGroup: 2, champion: 0.98, candidate: 0.7, seed: 9, truth: 'consensus' });
    const verdict = judged([...better(), ...against.map((r) => ({ ...r, group: `live ${r.group}` }))]);
    expect(verdict.decision).toBe('keep');
    expect(verdict.reason).toMatch(/labelled by consensus it is worse/);
  });

  it('does not mix consensus labels into the figures of truth', () => {
    const truth = better();
    const more = paired({ groups: 40, perGroup: 1, champion: 0.9, candidate: 0.9, seed: 9, truth: 'consensus' }).map((r) => ({
      ...r,
      group: `live ${r.group}`,
    }));
    expect(judged([...truth, ...more]).accuracy).toEqual(judged(truth).accuracy);
  });

  it('leaves out challenges of unknown truth', () => {
    const rows = better();
    const unknown = rows.map((r) => ({ ...r, group: `x ${r.group}`, candidate: 1 - r.candidate, truth: 'none' as const }));
    expect(judged([...rows, ...unknown]).n).toBe(rows.length);
  });

  it('does not promote or refuse on one class alone', () => {
    const positives = better(200).filter((r) => r.label === 1);
    expect(judged(positives).decision).toBe('continue');
    expect(judged(positives.map((r) => ({ ...r, champion: r.candidate, candidate: r.champion }))).decision).toBe('continue');
  });

  it('goes on collecting when there is nothing to compare yet', () => {
    const verdict = judged([]);
    expect(verdict).toMatchObject({ decision: 'continue', n: 0, needGroups: 80 });
    expect(verdict.reason).toMatch(/nothing to compare/);
  });

  it('counts an answer that did not come as wrong, and takes reward for it', () => {
    const rows = better().map((r) => ({ ...r, champion: r.candidate }));
    const silent = rows.map((r, i) => (i % 4 === 0 ? { ...r, candidate: -1 } : r));
    const verdict = judged(silent);
    expect(verdict.decision).toBe('keep');
    expect(verdict.predictedReward.candidate).toBeLessThan(verdict.predictedReward.champion - 0.15);
  });

  it('refuses a prediction that is neither a probability nor missing', () => {
    const rows = better();
    for (const candidate of [1.2, -0.5, NaN])
      expect(() => judged([...rows, { ...(rows[0] as PairedRow), candidate }])).toThrow(BadInputError);
  });

  it('is the same for the same evidence in any order', () => {
    const rows = better(80);
    expect(judged([...rows].reverse())).toEqual(judged(rows));
  });

  it('survives JSON', () => {
    for (const rows of [[], better(2), better(80)]) {
      const verdict = judged(rows, { config: { alpha: 0 } });
      expect(JSON.parse(JSON.stringify(verdict))).toEqual(verdict);
      expect(verdict.decision).toBe('continue');
    }
  });

  it('gives a wider interval to answers that hang together in clips', () => {
    const width = (stickiness: number) => {
      const { ci95 } = weigh({
        rows: paired({ groups: 60, perGroup: 10, champion: 0.8, candidate: 0.85, seed: 4, stickiness }),
        resamples: 300,
        alpha: 0.025,
        seed: 1,
      }).accuracy;
      return ci95[1] - ci95[0];
    };
    expect(width(1)).toBeGreaterThan(1.5 * width(0));
  });

  it('holds the true difference in its 95% interval about 95 times of 100', () => {
    let held = 0;
    const trials = 80;
    for (let seed = 0; seed < trials; seed++) {
      const rows = paired({ groups: 60, perGroup: 3, champion: 0.8, candidate: 0.85, seed: 1000 + seed });
      const { ci95 } = weigh({ rows, resamples: 40, alpha: 0.025, seed }).accuracy;
      if (ci95[0] <= 0.05 && ci95[1] >= 0.05) held += 1;
    }
    // 80 draws of 0.95 are below 69 less than once in a thousand times
    expect(held).toBeGreaterThanOrEqual(69);
  });

  it('counts each class half, whatever its number of images', () => {
    const row = (label: Label, isRight: boolean, g: number): PairedRow => ({
      group: `${g}`,
      label,
      champion: 0.9,
      candidate: isRight ? label : 1 - label,
      truth: 'truth',
      source: 's',
    });
    const rows = [
      ...Array.from({ length: 90 }, (_, g) => row(0, true, g)),
      ...Array.from({ length: 10 }, (_, g) => row(1, g < 5, 100 + g)),
    ];
    expect(judged(rows).accuracy.candidate).toBeCloseTo(0.75, 12);
  });

  it('never thinks less of a candidate for one more right answer', () => {
    const rows = paired({ groups: 30, perGroup: 3, champion: 0.8, candidate: 0.8, seed: 8 });
    const before = weigh({ rows, resamples: 20, alpha: 0.05, seed: 1 });
    fc.assert(
      fc.property(fc.nat(rows.length - 1), (i) => {
        const mended = rows.map((r, k) => (k === i ? { ...r, candidate: r.label } : r));
        const after = weigh({ rows: mended, resamples: 20, alpha: 0.05, seed: 1 });
        expect(after.accuracy.candidate).toBeGreaterThanOrEqual(before.accuracy.candidate);
        expect(after.predictedReward.candidate).toBeGreaterThanOrEqual(before.predictedReward.candidate - 1e-12);
        expect(after.accuracy.champion).toBe(before.accuracy.champion);
      }),
      { numRuns: 40 },
    );
  });

  it('tells the operator the figures, the doubt and what follows', () => {
    const verdict = judged(paired({ groups: 98, perGroup: 3, champion: 0.9, candidate: 0.93, seed: 12 }));
    expect(verdict.decision).toBe('continue');
    expect(verdict.reason).toMatch(
      /^Candidate is (better|worse) by [\d.]+ points \(95% interval of the difference .* to .* points\) on 294 challenges of 98 groups/,
    );
    expect(verdict.reason).toMatch(/so evidence is collected further/);
  });
});
