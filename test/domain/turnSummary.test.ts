import { describe, expect, it } from 'vitest';
import { renderSummary, TurnResult, type SummaryExtra } from '../../src/domain/turnSummary.js';
import { judge } from '../../src/domain/verdict.js';
import { goodGates, paired } from './support.js';

const metrics = (accuracy: number, n: number) => ({ accuracy, mcc: accuracy - 0.1, brier: 0.08, n });
const figures = (id: string, accuracy: number) => ({
  id,
  metrics: { ...metrics(accuracy, 159), heldOut: metrics(accuracy, 159), challenges: metrics(accuracy - 0.02, 320) },
});
const verdict = judge({
  rows: paired({ groups: 98, perGroup: 3, champion: 0.86, candidate: 0.94, seed: 13 }),
  gates: goodGates,
  config: { marginAccuracy: 0.01, alpha: 0.005, minGroupsPerClass: 60 },
  resamples: 50,
  seed: 1,
});
const result: TurnResult = {
  turn: 'turn-0001',
  dataset: { train: 290, val: 159, calibrate: 44, validate: 44, test: 159, traffic: 63, duplicates: 4, skipped: 1 },
  hardCases: 27,
  synthetic: 216,
  labelled: { consensus: 150, rejected: 9, toVerify: 71 },
  champion: figures('demo-20261124-1', 0.93),
  candidate: figures('demo-20261124-2', 0.95),
  verdict: {
    decision: verdict.decision,
    reason: verdict.reason,
    predictedReward: {
      champion: verdict.predictedReward.champion,
      candidate: verdict.predictedReward.candidate,
      ci95: verdict.predictedReward.ci95,
    },
  },
  promoted: false,
  seconds: { import: 3.2, 'first champion': 80.4, traffic: 14, 'hard cases': 25, plan: 0.01 },
  miner: { url: 'http://127.0.0.1:8091', hotkey: '5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY' },
  temporal: { address: '127.0.0.1:7233', ui: 'http://127.0.0.1:8233' },
};
const extra: SummaryExtra = {
  from: '/data/a/very/long/path/of/a/data/set/that/somebody/has/put/somewhere/deep/in/the/tree/of/folders/streets',
  problems: [{ file: 'images/broken.jpg', reason: 'not an image' }],
  warnings: ['pool calibrate has no image of class 1'],
  hardest: [{ why: 'error 0.97' }, { why: 'members disagree (0.80)' }],
  fromTruth: 15,
  fromTraffic: 12,
  byProvider: { composite: 180, weather: 36 },
  byTruth: { truth: 378, consensus: 150 },
  ablation: [{ provider: 'weather', kept: false, reason: 'Brier 0.091 with it, 0.084 without' }],
  members: [{ name: 'lite0-final', stage: 'probe', weight: 0.6 }],
  errorCorrelation: 0.41,
  trialSimulated: true,
};

describe('the result of a turn', () => {
  it('says of each gate whether it was passed, missed or not measured', () => {
    const gates = [
      { gate: 'heldOut' as const, threshold: 0.94, value: 0.9, n: 159, passed: false },
      { gate: 'freshSynthetic' as const, threshold: 0.85, value: null, n: 0, passed: null },
    ];
    const text = renderSummary({ ...result, gates }, extra).replace(/\s+/g, ' ');
    expect(text).toContain('held-out photographs MISSED: 90.0% of 159, at least 94.0% asked for; fresh synthetic images not measured');
  });

  it('is checked by its schema, and keeps what it does not know of the data set', () => {
    expect(TurnResult.parse(JSON.parse(JSON.stringify(result)))).toEqual(result);
    expect(TurnResult.parse({ ...result, dataset: { ...result.dataset, groups: 300 } }).dataset).toHaveProperty('groups', 300);
  });

  it('has no candidate when none was made', () => {
    expect(TurnResult.safeParse({ ...result, candidate: null }).success).toBe(true);
  });

  it('is refused with metrics out of range or without a verdict', () => {
    expect(TurnResult.safeParse({ ...result, champion: figures('x', 1.2) }).success).toBe(false);
    expect(TurnResult.safeParse({ ...result, verdict: { ...result.verdict, decision: 'maybe' } }).success).toBe(false);
    expect(TurnResult.safeParse({ ...result, dataset: { train: 1 } }).success).toBe(false);
  });
});

describe('the summary of a turn', () => {
  it('fits 100 columns, whatever is long in it, and has no colours', () => {
    const long = { ...result, champion: figures('a-model-with-a-name-that-somebody-thought-would-be-nice-to-have-2026', 0.9) };
    for (const text of [renderSummary(result), renderSummary(result, extra), renderSummary(long, extra)]) {
      for (const line of text.split('\n')) expect(line.length).toBeLessThanOrEqual(100);
      expect(text).not.toContain('\u001b');
    }
  });

  it('tells what was hard, made, left out, compared and decided, and what it cost in time', () => {
    const text = renderSummary(result, extra).replace(/\s+/g, ' ');
    for (const part of [
      '27: 15 wrong where truth is known, 12 unsure',
      'error 0.97',
      '216 images (180 composite, 36 weather)',
      'weather: left out of this training',
      'demo-20261124-1',
      '95.0%',
      'CONTINUE (trial on simulated traffic): Candidate is better',
      'images/broken.jpg: not an image',
      'first champion 80.4',
      'http://127.0.0.1:8233',
      'no: the miner serves demo-20261124-1',
    ]) {
      expect(text).toContain(part);
    }
  });

  it('tells the figures on held-out photographs, on clips never seen and on cities left out apart, each with its interval', () => {
    const figure = (of: string, accuracy: number) => ({
      of,
      accuracy,
      ci95: [accuracy - 0.1, accuracy + 0.1] as [number, number],
      n: 90,
      groups: 9,
      positives: 40,
    });
    const text = renderSummary({
      ...result,
      figures: {
        champion: [figure('overall', 0.81), figure('drives', 0.82)],
        candidate: [figure('overall', 0.83)],
        unseen: [figure('overall', 0.71)],
        leftOut: { champion: [figure('overall', 0.61)], candidate: [figure('overall', 0.63), figure('drives', 0.64)], places: 10 },
      },
    }).replace(/\s+/g, ' ');
    for (const part of [
      'held-out photographs (95% intervals by clip): champion overall 81.0% (71.0% to 91.0%, 9 groups); drives 82.0%',
      'On clips never seen, out of fold; other clips of the same source were learned from: voters overall 71.0%',
      'Leave one city out: each of 10 cities and cameras was left out of the same training in turn, and judged: champion overall 61.0%',
      'candidate overall 63.0% (53.0% to 73.0%, 9 groups); drives 64.0%',
    ])
      expect(text).toContain(part);
  });

  it('says which model the miner serves after a promotion', () => {
    expect(renderSummary({ ...result, promoted: true })).toContain('yes: the miner serves demo-20261124-2 now');
  });

  it('does without a candidate', () => {
    const text = renderSummary({
      ...result,
      candidate: null,
      verdict: { decision: 'keep', reason: 'no hard case was found', predictedReward: null },
    });
    expect(text).toContain('KEEP: no hard case was found');
    expect(text).not.toContain('candidate');
  });
});
