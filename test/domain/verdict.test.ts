import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Label } from '../../src/domain/contracts/common.js';
import { BadInputError } from '../../src/domain/errors.js';
import { patternsOf, rewardWindows, weigh, weighPatterns } from '../../src/domain/evidence.js';
import { candidateShare, spend } from '../../src/domain/spending.js';
import { decide, judge, type Gates, type JudgeInput, type PairedRow, type VerdictConfig } from '../../src/domain/verdict.js';
import { goodGates, paired } from './support.js';

const config = { marginAccuracy: 0.01, alpha: 0.005, minGroupsPerClass: 40 };
const judged = (
  rows: readonly PairedRow[],
  {
    gates,
    config: over,
    ...more
  }: { gates?: Partial<Gates>; config?: Partial<VerdictConfig> } & Partial<Omit<JudgeInput, 'rows' | 'gates' | 'config'>> = {},
) =>
  judge({
    resamples: 200,
    seed: 1,
    ...more,
    rows,
    gates: { ...goodGates, ...gates },
    config: { ...config, ...over },
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

  it("tells what McNemar's test counts, and does not decide by it", () => {
    const rows = better(160, 1);
    const oneClip = rows.map((r) => ({ ...r, group: `clip-${r.label}` }));
    const [many, few] = [judged(rows), judged(oneClip)];
    expect(many.mcnemar.candidateOnly).toBeGreaterThan(many.mcnemar.championOnly);
    expect(many.mcnemar.p).toBeLessThan(1e-6);
    expect(few.mcnemar).toEqual(many.mcnemar);
    expect([many.decision, few.decision]).toEqual(['promote', 'continue']);
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

describe('spending', () => {
  const sequence = { earlier: 0, planned: 60, spent: 0, last: false };

  it('gives the candidates of any 90 days no more than alpha together, however many they are', () => {
    for (const planned of [1, 10, 60, 365]) {
      let sum = 0;
      let last = Infinity;
      for (let i = 1; i <= 5_000; i++) {
        const share = candidateShare(i, planned);
        expect(share).toBeLessThanOrEqual(last);
        last = share;
        sum += share;
      }
      expect(sum).toBeLessThanOrEqual(1);
      expect(sum).toBeGreaterThan(0.99);
    }
  });

  it('gives the looks of one trial no more than its alpha together, whenever they come', () => {
    fc.assert(
      fc.property(fc.array(fc.double({ min: 1e-4, max: 0.5, noNaN: true }), { minLength: 1, maxLength: 60 }), fc.nat(59), (errors, end) => {
        let spent = 0;
        let sum = 0;
        errors.forEach((standardError, k) => {
          const look = spend({
            alpha: 0.005,
            standardError,
            difference: 0.02,
            sequence: { ...sequence, spent, last: k === end },
            ready: true,
          });
          sum += look.alpha;
          expect(look.spent).toBeGreaterThanOrEqual(spent);
          spent = look.spent;
        });
        expect(sum).toBeLessThanOrEqual(0.005 * (1 + 1e-12));
      }),
    );
  });

  it('spends nothing on a look that could not promote', () => {
    expect(spend({ alpha: 0.005, standardError: 0.01, difference: 0.02, sequence, ready: false })).toMatchObject({
      alpha: 0,
      tests: false,
      spent: 0,
    });
  });

  it('tests again only when evidence has doubled, or for the last time', () => {
    const at = (standardError: number, spent: number, last = false) =>
      spend({ alpha: 0.005, standardError, difference: 0.02, sequence: { ...sequence, spent, last }, ready: true });
    const first = at(0.01, 0);
    expect(first.tests).toBe(true);
    expect(at(0.0095, first.spent).tests).toBe(false);
    expect(at(0.0095, first.spent, true).tests).toBe(true);
    expect(at(0.007, first.spent).tests).toBe(true);
    expect(at(1e-9, first.spent)).toMatchObject({ tests: true, spent: 1 });
    expect(at(1e-9, 1, true)).toMatchObject({ tests: false, alpha: 0 });
  });

  it('asks more of the sixtieth candidate of a quarter than of the first', () => {
    const of = (earlier: number) => judged(better(80, 4), { sequence: { ...sequence, earlier } });
    expect(of(0).spending?.candidateAlpha).toBeGreaterThan(20 * (of(59).spending?.candidateAlpha ?? 1));
    expect(of(59).accuracy.lower).toBeLessThan(of(0).accuracy.lower);
  });

  it('keeps the champion when all planned evidence is in and does not suffice', () => {
    let mend = 12;
    const rows = paired({ groups: 1600, perGroup: 1, champion: 0.9, candidate: 0.9, seed: 5 }).map((r) => {
      const wrong = r.champion > 0.5 !== (r.label === 1);
      return { ...r, candidate: wrong && mend-- > 0 ? r.label : r.champion };
    });
    const verdict = judged(rows, { sequence });
    expect(verdict.spending).toMatchObject({ tests: true, spent: 1 });
    expect(verdict.decision).toBe('keep');
    expect(verdict.reason).toMatch(/All the evidence that was planned for is in/);
  });

  it('ends in the champion being kept when the longest time is over', () => {
    const verdict = judged(better(12), { sequence: { ...sequence, last: true }, late: true });
    expect(verdict.decision).toBe('keep');
    expect(verdict.reason).toMatch(/longest time is over/);
  });
});

describe('what counts as evidence', () => {
  const synthetic = (rows: PairedRow[], generator: string) => rows.map((r) => ({ ...r, group: `made ${r.group}`, generator }));

  it('leaves out synthetic challenges of a generator known from training, and says that it is real only', () => {
    const bad = synthetic(paired({ groups: 200, perGroup: 2, champion: 0.98, candidate: 0.6, seed: 3 }), 'composite');
    const verdict = judged([...better(), ...bad], { trainedOn: ['composite', 'weather'] });
    expect(verdict).toMatchObject({ decision: 'promote', scope: 'real only', leftOut: { synthetic: 400, ownVotes: 0 } });
    expect(verdict.reason).toMatch(/real only \(400 synthetic ones of generators known from training do not count\)/);
  });

  it('counts those of a generator that no training saw', () => {
    const made = synthetic(better(100, 8), 'sdxl');
    expect(judged([...better(), ...made], { trainedOn: ['composite'] })).toMatchObject({
      scope: 'real and synthetic',
      leftOut: { synthetic: 0 },
      n: better().length + made.length,
    });
  });

  it('counts nothing synthetic while what training saw is not known', () => {
    const made = synthetic(better(100, 8), 'sdxl');
    expect(judged([...better(), ...made])).toMatchObject({ scope: 'real only', leftOut: { synthetic: made.length } });
  });

  it('does not judge a model by its own votes', () => {
    const own = paired({ groups: 200, perGroup: 2, champion: 0.7, candidate: 0.99, seed: 3, truth: 'consensus' }).map((r) => ({
      ...r,
      labelledBy: ['candidate-bundle'],
    }));
    expect(judged(own, { models: ['candidate-bundle'], config: { consensusPromotes: true } })).toMatchObject({
      decision: 'continue',
      n: 0,
      leftOut: { ownVotes: 400 },
    });
  });

  it('promotes on the consensus of others only when so configured', () => {
    const rows = better().map((r) => ({ ...r, truth: 'consensus' as const, labelledBy: ['others'] }));
    expect(judged(rows, { models: ['mine'] }).decision).toBe('continue');
    expect(judged(rows, { models: ['mine'], config: { consensusPromotes: true } }).decision).toBe('promote');
  });
});

describe('the calibration gate', () => {
  /** right where the other is right, but sure of everything */
  const overconfident = (rows: readonly PairedRow[]) =>
    rows.map((r) => ({ ...r, candidate: r.champion > 0.5 ? 0.999 : 0.001, champion: r.champion > 0.5 ? 0.8 : 0.2 }));
  const rows = overconfident(paired({ groups: 300, perGroup: 2, champion: 0.8, candidate: 0.8, seed: 6 }));

  it('refuses a candidate whose probabilities got dishonest beyond doubt', () => {
    const verdict = judged(rows, { config: { maxBrierIncrease: 0.01 } });
    expect(verdict.decision).toBe('keep');
    expect(verdict.reason).toMatch(/Brier score is 0\.\d+ against 0\.\d+, more than 0.01 worse/);
  });

  it('does not promote beyond the limit of calibration error', () => {
    const good = better().map((r) => ({ ...r, candidate: r.candidate > 0.5 ? 0.51 : 0.49, champion: r.champion > 0.5 ? 0.85 : 0.15 }));
    expect(judged(good).decision).toBe('promote');
    const verdict = judged(good, { config: { maxCalibrationErrorIncrease: 0.05 } });
    expect(verdict.decision).toBe('continue');
    expect(verdict.reason).toMatch(/expected calibration error/);
  });
});

describe('a margin in predicted reward', () => {
  it('asks for what a point of accuracy is worth', () => {
    const inReward = { measure: 'predicted reward' as const };
    expect(judged(better(), { config: inReward }).decision).toBe('promote');
    const verdict = judged(paired({ groups: 60, perGroup: 2, champion: 0.9, candidate: 0.9, seed: 5 }), { config: inReward });
    expect(verdict.decision).not.toBe('promote');
    expect(verdict.reason).toMatch(/predicted reward|not better/);
  });
});

describe('the fast path of the benchmark', () => {
  it('decides as the whole does, from counts alone and without a bootstrap', () => {
    let differ = 0;
    let promoted = 0;
    const trials = 60;
    for (let seed = 0; seed < trials; seed++) {
      const rows = paired({ groups: 120 + 8 * (seed % 10), perGroup: 3, champion: 0.8, candidate: 0.8 + 0.004 * seed, seed });
      const expected = rewardWindows(seed);
      const whole = weighPatterns({ patterns: patternsOf(rows), resamples: 400, seed });
      const fast = weighPatterns({ patterns: patternsOf(rows), resamples: null, seed, expected });
      expect(fast.accuracy.difference).toBe(whole.accuracy.difference);
      expect(fast.accuracy.standardError).toBe(whole.accuracy.standardError);
      expect(fast.predictedReward.difference).toBe(whole.predictedReward.difference);
      expect(fast.groups).toEqual(whole.groups);
      // The whole takes the wider of two bounds, so it is never the bolder one.
      expect(whole.bound(0.005, -1)).toBeLessThanOrEqual(fast.bound(0.005, -1));
      const given = { config: { ...config }, vetoes: [], missing: [], sequence: { earlier: 0, planned: 60, spent: 0, last: true } };
      const [one, two] = [decide(whole, given).decision, decide(fast, given).decision];
      if (one !== two) differ += 1;
      if (one === 'promote') {
        promoted += 1;
        expect(two).toBe('promote');
      }
    }
    expect(promoted).toBeGreaterThan(10);
    expect(promoted).toBeLessThan(trials - 10);
    expect(differ).toBeLessThanOrEqual(2);
  });
});
