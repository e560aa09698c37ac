/** How honest the probabilities of two models are on the same challenges. */
import type { PairedRow } from './evidence.js';
import { expectedCalibrationError, NO_ANSWER } from './metrics.js';
import { tQuantile } from './statistics.js';

export interface PairedCalibration {
  /** mean squared error of the probability, [0, 1]; `lower`: one-sided 95% bound of candidate less champion, by group */
  brier: { champion: number; candidate: number; lower: number };
  /** expected calibration error over ten bins, [0, 1] */
  calibrationError: { champion: number; candidate: number };
}

/** On the challenges that both answered; null when there are none. */
export function calibrationOf(rows: readonly PairedRow[]): PairedCalibration | null {
  // Sorted, so that sums come out the same to the last bit in whatever order the rows come.
  const both = rows
    .filter((r) => r.champion !== NO_ANSWER && r.candidate !== NO_ANSWER)
    .sort(
      (a, b) =>
        (a.group < b.group ? -1 : a.group > b.group ? 1 : 0) || a.label - b.label || a.champion - b.champion || a.candidate - b.candidate,
    );
  const n = both.length;
  if (n === 0) return null;
  const groups = new Map<string, { n: number; d: number }>();
  let [champion, candidate] = [0, 0];
  for (const row of both) {
    const [one, two] = [(row.champion - row.label) ** 2, (row.candidate - row.label) ** 2];
    champion += one;
    candidate += two;
    const group = groups.get(row.group) ?? { n: 0, d: 0 };
    group.n += 1;
    group.d += two - one;
    groups.set(row.group, group);
  }
  const mean = (candidate - champion) / n;
  const size = groups.size;
  let squares = 0;
  for (const group of groups.values()) squares += ((group.d - mean * group.n) / n) ** 2;
  const error = size < 2 ? Infinity : Math.sqrt((size / (size - 1)) * squares);
  const of = (who: 'champion' | 'candidate'): number => expectedCalibrationError(both.map((r) => ({ label: r.label, prediction: r[who] })));
  return {
    brier: { champion: champion / n, candidate: candidate / n, lower: Math.max(-1, mean - tQuantile(0.05, size - 1) * error) },
    calibrationError: { champion: of('champion'), candidate: of('candidate') },
  };
}
