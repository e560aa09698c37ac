import { describe, expect, it } from 'vitest';
import type { Label } from '../../src/domain/contracts/common.js';
import { BadInputError } from '../../src/domain/errors.js';
import { profileOf } from '../../src/domain/profiles/index.js';
import { organicLabel } from '../../src/domain/reward.js';
import { earnings, simulationReport, type SimulatedAnswer } from '../../src/domain/simulation.js';
import { reliabilityDiagram, rewardCurve } from '../../src/domain/simulationCharts.js';
import { shareUpperBound } from '../../src/domain/statistics.js';

/** n answers of two classes in turn, wrong at every `wrongEvery`-th */
const answers = (n: number, wrongEvery: number): SimulatedAnswer[] =>
  Array.from({ length: n }, (_, i) => {
    const label = (i % 2) as Label;
    const said = i % wrongEvery === wrongEvery - 1 ? 1 - label : label;
    return {
      label,
      prediction: said === 1 ? 0.8 : 0.2,
      group: `g${i >> 1}`,
      source: i % 3 ? 'a' : 'b',
      level: i % 4,
      synthetic: i % 5 === 0,
      truth: 'truth',
    };
  });
const report = (rows: readonly SimulatedAnswer[], name: '2026-01' | '2026-05' = '2026-01', fieldAccuracy = 0.9) =>
  simulationReport({ answers: rows, profile: profileOf(name), seed: 4, fieldAccuracy });

describe('the report of a simulated validator', () => {
  it('counts parts that add up to the whole', () => {
    const r = report(answers(400, 8));
    expect(r.overall).toMatchObject({ asked: 400, answered: 400, accuracy: 0.875 });
    for (const parts of [r.byLevel, r.bySource, r.byKind, r.byTruth]) {
      expect(parts.reduce((sum, p) => sum + p.asked, 0)).toBe(400);
      expect(parts.reduce((sum, p) => sum + p.accuracy * p.answered, 0) / 400).toBeCloseTo(0.875, 12);
    }
    expect(r.byKind.map((p) => p.of)).toEqual(['real', 'synthetic']);
    expect(r.reliability.map((b) => [b.n, b.predicted.toFixed(1)])).toEqual([
      [250, '0.2'],
      [150, '0.8'],
    ]);
  });

  it('holds the expected reward in an interval that is wider for fewer groups', () => {
    const width = (rows: readonly SimulatedAnswer[]) => {
      const { mean, ci95 } = report(rows).reward;
      expect(ci95[0]).toBeLessThanOrEqual(mean);
      expect(ci95[1]).toBeGreaterThanOrEqual(mean);
      return ci95[1] - ci95[0];
    };
    const rows = answers(400, 9);
    expect(width(rows.map((a, i) => ({ ...a, group: `clip ${a.label} ${i % 6}` })))).toBeGreaterThan(0);
    expect(width(rows.slice(0, 80))).toBeGreaterThan(width(rows));
  });

  it('fills windows from nothing: a perfect model earns nearly all at once, and its score follows by a twentieth a time', () => {
    const { course, reward } = report(answers(200, 1e9));
    expect(reward.mean).toBe(1);
    expect(course.at(-1)?.reward).toEqual([1, 1, 1]);
    const at = course.find((p) => p.challenges === 100)?.score[0] ?? 0;
    expect(at).toBeGreaterThan(0.97);
    expect(course[0]?.score[0]).toBeLessThan(0.45);
    expect(course.every((p) => p.days === null)).toBe(true);
  });

  it('counts missing answers and answers out of range, and gives no reward for them', () => {
    const rows = answers(100, 1e9).map((a, i) => ({ ...a, prediction: i % 4 === 0 ? -1 : i % 4 === 1 ? 7 : a.prediction }));
    const r = report(rows);
    expect(r).toMatchObject({ asked: 100, answered: 50, missing: 25, outOfRange: 25 });
    expect(r.overall.accuracy).toBe(1);
    expect(r.reward.mean).toBeLessThan(0.6);
  });

  it('warns of one class only and of few groups', () => {
    expect(report(answers(40, 9).filter((a) => a.label === 1)).warnings.join()).toMatch(/all challenges are of one class/);
    expect(report(answers(40, 9)).warnings.join()).toMatch(/only 20 groups with roadwork and 20 without/);
    expect(() => report([])).toThrow(BadInputError);
  });

  it('is the same for the same answers and seed', () => {
    expect(report(answers(120, 7))).toEqual(report(answers(120, 7)));
  });

  it('takes from a model that is better than its field on organic tasks, and tells days', () => {
    const rows = answers(200, 1e9);
    const alone = report(rows, '2026-05', 1).course.at(-1);
    const among = report(rows, '2026-05', 0.3).course.at(-1);
    expect(alone?.reward[0]).toBe(1);
    expect(among?.reward[0]).toBeLessThan(0.9);
    expect(alone?.days).toBe(8);
  });
});

describe('organic tasks', () => {
  it('are labelled by the rounded mean of those who answered', () => {
    expect(organicLabel([0.9, 0.8, 0.1])).toBe(1);
    expect(organicLabel([0.9, 0.1])).toBe(0); // 0.5 rounds to 0
    expect(organicLabel([0.9, -1, -1, 5, NaN])).toBe(1);
    expect(organicLabel([-1, -1])).toBeNull();
  });
});

describe('earnings', () => {
  const given = { reward: { mean: 0.5, ci95: [0.4, 0.6] as [number, number] }, emission: 1000, price: 2, fieldReward: 0.5, miners: 10 };
  it('are an equal share for the average miner, and more for a better one', () => {
    const average = earnings(given);
    expect(average.share).toBeCloseTo(0.1, 12);
    expect(average.perDay).toBeCloseTo(200, 9);
    expect(average.ci95[0]).toBeLessThan(200);
    expect(average.ci95[1]).toBeGreaterThan(200);
    expect(earnings({ ...given, reward: { mean: 0.9, ci95: [0.9, 0.9] } }).share).toBeCloseTo(0.9 / (0.9 + 4.5), 12);
    expect(earnings({ ...given, decay: 0 }).perDay).toBe(0);
  });
  it('refuse inputs that make no sense', () => {
    expect(() => earnings({ ...given, price: NaN, miners: 0.5, fieldReward: 0 })).toThrow(/price of NaN.*field of 0.*0.5 miners/);
  });
});

describe('charts', () => {
  it('are well-formed, hold a band and a dot for each bin, and show no markup of a model name', () => {
    const r = report(answers(120, 7));
    const named = [{ name: '<b>&"model"', report: r }];
    const diagram = reliabilityDiagram(named);
    expect(diagram.match(/<circle/g)).toHaveLength(r.reliability.length);
    expect(diagram).toContain('&lt;b&gt;&amp;&quot;model&quot;');
    expect(diagram).not.toContain('<b>');
    expect(rewardCurve(named).match(/<polygon/g)).toHaveLength(2);
    expect(diagram).not.toMatch(/NaN|undefined/);
  });
});

describe('the exact bound of a share', () => {
  it('equals that of scipy', () => {
    // scipy.stats.beta.ppf(0.95, x + 1, n - x)
    expect(shareUpperBound(0, 10_000)).toBeCloseTo(1 - 0.05 ** (1 / 10_000), 10);
    expect(shareUpperBound(16, 10_000)).toBeCloseTo(0.002429109633300806, 9);
    expect(shareUpperBound(50, 100)).toBeCloseTo(0.5863782853690882, 9);
    expect(shareUpperBound(3, 3)).toBe(1);
  });
});
