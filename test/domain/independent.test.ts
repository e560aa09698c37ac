/** The domain's figures against scikit-learn and scipy, run here and now on random cases: nothing is compared with itself. */
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import type { Label } from '../../src/domain/contracts/common.js';
import { auc, expectedCalibrationError, metricsOf } from '../../src/domain/metrics.js';
import { simulateReward } from '../../src/domain/reward.js';
import { seededRng } from '../../src/domain/rng.js';
import { mcnemarP, shareUpperBound, tQuantile } from '../../src/domain/statistics.js';
import { ensurePython } from '../../src/platform/python/env.js';

interface Case {
  labels: Label[];
  predictions: number[];
  hotkeys: string[];
}
interface Independent {
  courses: { rewards: number[]; scores: number[] }[];
  figures: { accuracy: number; mcc: number; brier: number; auc: number | null; ece: number }[];
  students: number[];
  bounds: number[];
  splits: number[];
}

const rng = seededRng('independent computation');
/** What comes over the wire: right and wrong, 0.5, missing, out of range; a class alone, another hotkey at the UID. */
function make(length: number, wild: boolean, positives: number): Case {
  const labels = Array.from({ length }, () => (rng.next() < positives ? 1 : 0));
  const predictions = labels.map((label) => {
    const u = rng.next();
    if (wild && u < 0.06) return -1;
    if (wild && u < 0.09) return Number((4 * rng.next() - 2).toFixed(2));
    if (u < 0.14) return 0.5;
    const right = rng.next() < 0.8;
    const sure = Number((0.5 + 0.5 * rng.next()).toFixed(4));
    return right === (label === 1) ? sure : Number((1 - sure).toFixed(4));
  });
  const change = rng.int(length);
  return { labels, predictions, hotkeys: labels.map((_, i) => (wild && i >= change ? 'new' : 'old')) };
}
const courses = [3, 11, 40, 130, 260].flatMap((n) => [make(n, true, 0.5), make(n, true, 0.95), make(n, false, 0.5), make(n, false, 1)]);
const figures = [5, 30, 200].flatMap((n) => [make(n, false, 0.5), make(n, false, 1), make(n, false, 0.1)]);
const students = [0.05, 0.005, 1e-4, 1e-6].flatMap((tail) => [5, 12.5, 78, 4000].map((df): [number, number] => [tail, df]));
const bounds: [number, number][] = [
  [0, 10_000],
  [3, 10_000],
  [57, 10_000],
  [4, 9],
  [99, 100],
];
const splits: [number, number][] = [
  [0, 0],
  [0, 4],
  [7, 7],
  [3, 12],
  [210, 150],
  [900, 1400],
];
let independent: Independent;

beforeAll(async () => {
  const { python } = await ensurePython(() => undefined, { groups: 'dev' });
  const script = path.join(path.dirname(fileURLToPath(import.meta.url)), 'fixtures', 'independent.py');
  const ran = spawnSync(python, [script], { input: JSON.stringify({ courses, figures, students, bounds, splits }), encoding: 'utf8' });
  if (ran.status !== 0) throw new Error(ran.stderr);
  independent = JSON.parse(ran.stdout) as Independent;
}, 180_000);

describe('against an independent computation', () => {
  it('reward and score are the same after every single answer', () => {
    courses.forEach(({ labels, predictions, hotkeys }, c) => {
      const played = simulateReward({
        predictions: labels.map((label, i) => ({ label, prediction: predictions[i] as number, hotkey: hotkeys[i] as string })),
      });
      const { rewards, scores } = independent.courses[c] as Independent['courses'][number];
      rewards.forEach((reward, i) => expect(played.rewards[i], `course ${c}, answer ${i}`).toBeCloseTo(reward, 12));
      scores.forEach((score, i) => expect(played.scores[i]).toBeCloseTo(score, 12));
    });
  });

  it('accuracy, MCC, Brier score, AUC and calibration error are the same', () => {
    figures.forEach(({ labels, predictions }, c) => {
      const rows = labels.map((label, i) => ({ label, prediction: predictions[i] as number }));
      const wanted = independent.figures[c] as Independent['figures'][number];
      const { accuracy, mcc, brier } = metricsOf(rows);
      expect(accuracy).toBeCloseTo(wanted.accuracy, 12);
      expect(mcc).toBeCloseTo(wanted.mcc, 12);
      expect(brier).toBeCloseTo(wanted.brier, 12);
      expect(expectedCalibrationError(rows)).toBeCloseTo(wanted.ece, 10);
      if (wanted.auc === null) expect(auc(rows)).toBeNull();
      else expect(auc(rows)).toBeCloseTo(wanted.auc, 12);
    });
  });

  it("Student's quantiles, far into the tails, and exact bounds of shares and McNemar's test are the same", () => {
    students.forEach(([tail, df], i) => expect(tQuantile(tail, df) / (independent.students[i] as number)).toBeCloseTo(1, df < 10 ? 2 : 4));
    splits.forEach(([one, other], i) => expect(mcnemarP(one, other) / (independent.splits[i] as number)).toBeCloseTo(1, 8));
    bounds.forEach(([hits, n], i) => expect(shareUpperBound(hits, n)).toBeCloseTo(independent.bounds[i] as number, 9));
  });
});
