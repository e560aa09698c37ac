import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Label } from '../../src/domain/contracts/common.js';
import { PROFILE_NAMES, profile202601, profileOf } from '../../src/domain/profiles/index.js';
import {
  movingAverage,
  record,
  reward,
  rewardExpectation,
  simulateReward,
  weights,
  windowMcc,
  type MinerWindow,
  type ScoredAnswer,
} from '../../src/domain/reward.js';
import fixture from './fixtures/scikit-learn.json' with { type: 'json' };

const answer = fc.record({
  label: fc.constantFrom<Label>(0, 1),
  prediction: fc.oneof(
    fc.double({ min: 0, max: 1, noNaN: true }),
    fc.constant(-1),
    fc.constant(0.5),
    fc.double({ min: -3, max: 3, noNaN: true }),
  ),
});
const answersOf = (c: { labels: number[]; predictions: number[] }): ScoredAnswer[] =>
  c.labels.map((label, i) => ({ label: label as Label, prediction: c.predictions[i] as number }));
/** n answers, alternating labels, all right */
const perfect = (n: number): ScoredAnswer[] =>
  Array.from({ length: n }, (_, i) => ({ label: (i % 2) as Label, prediction: i % 2 ? 0.9 : 0.1 }));

describe('reward', () => {
  it("equals the validator's own steps in numpy and scikit-learn, answer by answer", () => {
    for (const c of fixture.sequences) {
      const { rewards, scores } = simulateReward({ predictions: answersOf(c) });
      rewards.forEach((r, i) => expect(r).toBeCloseTo(c.rewards[i] as number, 9));
      scores.forEach((s, i) => expect(s).toBeCloseTo(c.scores[i] as number, 9));
    }
  });

  it('counts a rounded prediction beyond 0 and 1 as a class of its own, as scikit-learn does', () => {
    for (const c of fixture.oddWindows) expect(windowMcc(answersOf(c))).toBeCloseTo(c.mcc, 10);
  });

  it('is 1 for a full window of right answers', () => {
    expect(reward(perfect(100))).toBe(1);
  });

  it('takes 0.5 as ordinary street', () => {
    const rows = perfect(100).map((a) => (a.label === 0 ? { ...a, prediction: 0.5 } : a));
    expect(reward(rows)).toBe(1);
  });

  it('has only its accuracy half while all labels are of one class', () => {
    expect(reward(perfect(100).filter((a) => a.label === 1))).toBeCloseTo(0.5 ** 3, 12);
  });

  it('never takes a negative MCC below 0', () => {
    const wrong = perfect(90).map((a) => ({ ...a, prediction: 1 - a.prediction }));
    expect(windowMcc([...wrong, ...perfect(10)])).toBeLessThan(0);
    expect(reward([...wrong, ...perfect(10)])).toBeCloseTo(0.5 ** 3, 12);
  });

  it('is 0 for a missing newest answer and for one out of range', () => {
    for (const prediction of [-1, -0.01, 1.01, NaN, Infinity]) expect(reward([...perfect(99), { label: 1, prediction }])).toBe(0);
  });

  it('lets a missing answer hold a place in the window without counting as wrong', () => {
    const missing: ScoredAnswer[] = Array.from({ length: 9 }, () => ({ label: 1, prediction: -1 }));
    const wrong: ScoredAnswer = { label: 1, prediction: 0.1 };
    // newest ten: nine missing, one right; the wrong one before them is out of the short window
    const history = [...perfect(89), wrong, ...missing, { label: 1 as Label, prediction: 0.9 }];
    const mcc = windowMcc(history);
    expect(reward(history)).toBeCloseTo((0.5 * mcc + 0.5) ** 3, 12);
  });

  it('looks at the newest 100 and the newest 10 only', () => {
    const bad: ScoredAnswer[] = Array.from({ length: 50 }, (_, i) => ({ label: (i % 2) as Label, prediction: i % 2 ? 0.1 : 0.9 }));
    expect(reward([...bad, ...perfect(100)])).toBe(1);
    expect(reward([...bad, ...perfect(99)])).toBeLessThan(1);
  });

  it('stays in [0, 1] for whatever comes over the wire', () => {
    fc.assert(
      fc.property(fc.array(answer, { maxLength: 130 }), (history) => {
        const r = reward(history);
        expect(r >= 0 && r <= 1 + 1e-12).toBe(true);
      }),
    );
  });

  it('starts an empty window for a new hotkey at the UID', () => {
    let window: MinerWindow | null = null;
    for (const a of perfect(20)) window = record(window, 'old', a);
    window = record(window, 'new', { label: 1, prediction: 0.9 });
    expect(window).toEqual({ hotkey: 'new', answers: [{ label: 1, prediction: 0.9 }] });
    const { rewards } = simulateReward({
      predictions: [...perfect(20).map((a) => ({ ...a, hotkey: 'old' })), { label: 1, prediction: 0.9, hotkey: 'new' }],
    });
    expect(rewards.at(-2)).toBe(1);
    expect(rewards.at(-1)).toBeCloseTo(0.125, 12);
  });

  it('keeps no more than a window', () => {
    let window: MinerWindow | null = null;
    for (const a of perfect(150)) window = record(window, 'h', a);
    expect(window?.answers).toHaveLength(100);
  });
});

describe('scores and weights', () => {
  it('move by a twentieth of the way to the reward', () => {
    expect(movingAverage(0.4, 1)).toBeCloseTo(0.43, 12);
  });

  it('sum to 1, in the order of the scores', () => {
    fc.assert(
      fc.property(fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: 1 }), (scores) => {
        const w = weights(scores);
        const sum = w.reduce((a, b) => a + b, 0);
        if (scores.some((s) => s > 1e-300)) expect(sum).toBeCloseTo(1, 9);
        else expect(w.every((x) => x >= 0)).toBe(true);
      }),
    );
    expect(weights([0, 0])).toEqual([0, 0]);
    expect(weights([1, 3])).toEqual([0.25, 0.75]);
  });

  it('refuse a score that no validator could hold', () => {
    expect(() => weights([0.2, -0.1])).toThrow(/not -0.1/);
    expect(() => weights([NaN])).toThrow(/NaN/);
  });
});

describe('expected reward', () => {
  const expected = rewardExpectation({ windows: 400, seed: 3 });
  const rates = (positive: number, negative: number, missing = 0) => ({
    positive: { right: positive, missing },
    negative: { right: negative, missing },
  });

  it('agrees with playing the exact reward over long random sequences', () => {
    for (const [p, n, missing] of [
      [0.95, 0.9, 0],
      [0.7, 0.99, 0.03],
      [0.5, 0.5, 0],
    ] as const) {
      let seed = 123456789;
      const uniform = () => (seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) / 2 ** 32;
      const predictions = Array.from({ length: 6_000 }, () => {
        const label: Label = uniform() < 0.5 ? 1 : 0;
        const u = uniform();
        const isRight = u < (label === 1 ? p : n);
        return { label, prediction: u >= 1 - missing ? -1 : isRight === (label === 1) ? 0.9 : 0.1 };
      });
      const { rewards } = simulateReward({ predictions });
      const mean = rewards.slice(100).reduce((a, b) => a + b, 0) / (rewards.length - 100);
      expect(Math.abs(expected(rates(p, n, missing)) - mean)).toBeLessThan(0.03);
    }
  });

  it('is 1 for a perfect model and 0 for a silent one', () => {
    expect(expected(rates(1, 1))).toBe(1);
    expect(expected(rates(0, 0, 1))).toBe(0);
  });

  it('never falls when a model better than chance gets better', () => {
    const share = fc.double({ min: 0.5, max: 1, noNaN: true });
    fc.assert(
      fc.property(share, share, share, (p, n, q) => {
        expect(expected(rates(Math.max(p, q), n))).toBeGreaterThanOrEqual(expected(rates(Math.min(p, q), n)) - 1e-12);
        expect(expected(rates(n, Math.max(p, q)))).toBeGreaterThanOrEqual(expected(rates(n, Math.min(p, q))) - 1e-12);
      }),
    );
  });
});

describe('validator profiles', () => {
  it.each(PROFILE_NAMES)('%s draws shares and levels that sum to 1', (name) => {
    const { draw, image } = profileOf(name);
    const { real, textToImage, imageToImage, benchmark } = draw.sources;
    expect(real + textToImage + imageToImage + benchmark).toBeCloseTo(1, 12);
    expect(image.levels.reduce((sum, l) => sum + l.probability, 0)).toBe(1);
    for (const level of image.levels) for (const used of level.distortions) expect(image.distortions.map((d) => d.name)).toContain(used);
  });

  it('2026-05 sends images as they are, a third of each kind, and scores as 2026-01 does', () => {
    const profile = profileOf('2026-05');
    const { real, textToImage, imageToImage, benchmark } = profile.draw.sources;
    expect([real, textToImage + imageToImage, benchmark].map((x) => x.toFixed(4))).toEqual(['0.3333', '0.3333', '0.3333']);
    expect(profile.image.levels).toEqual([{ level: 0, probability: 1, geometry: 'none', distortions: [], maxDistortionLevel: 0 }]);
    expect(profile.image.side).toBeNull();
    expect(profile.reward).toEqual(profile202601.reward);
  });

  it('2026-05 asks a miner about 50 times a day: a step in 66 s, 10 of 256 miners a step', () => {
    const { stepSeconds, minersPerStep, challengesPerDay } = profileOf('2026-05');
    expect(((86_400 / (stepSeconds ?? NaN)) * minersPerStep) / 256).toBeCloseTo(challengesPerDay ?? NaN, -1);
  });

  it('are found by name, and an unknown name says which there are', () => {
    expect(profileOf('2026-01')).toBe(profile202601);
    expect(() => profileOf('toString')).toThrow(/known are 2026-01, 2026-05/);
  });
});
