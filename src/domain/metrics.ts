/** Metrics of a binary classifier at boundary 0.5, as the validator and scikit-learn count them. */
import type { Label, Metrics } from './contracts/common.js';
import { BadInputError } from './errors.js';

/** One judged answer: `prediction` is the probability of roadwork in [0, 1], or -1 for no answer. */
export interface JudgedAnswer {
  label: Label;
  prediction: number;
}

/** What a missing answer looks like on the wire. */
export const NO_ANSWER = -1;

/** numpy's round: halves go to the even neighbour, so 0.5 becomes 0 and 1.5 becomes 2. */
export function roundHalfEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  if (rest < 0.5) return floor;
  if (rest > 0.5) return floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}

export interface Confusion {
  tp: number;
  fp: number;
  tn: number;
  fn: number;
}

/**
 * Counts at boundary 0.5; answers of -1 are left out, as the validator does.
 * @throws BadInputError for a prediction that is neither -1 nor in [0, 1]
 */
export function confusion(rows: readonly JudgedAnswer[]): Confusion {
  const out: Confusion = { tp: 0, fp: 0, tn: 0, fn: 0 };
  for (const { label, prediction } of answered(rows)) {
    const said = roundHalfEven(prediction);
    if (label === 1) out[said === 1 ? 'tp' : 'fn'] += 1;
    else out[said === 1 ? 'fp' : 'tn'] += 1;
  }
  return out;
}

/** Matthews correlation of the counts, [-1, 1]; 0 when labels or predictions are all of one class. */
export function mccOf({ tp, fp, tn, fn }: Confusion): number {
  const product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn);
  return product === 0 ? 0 : (tp * tn - fp * fn) / Math.sqrt(product);
}

/**
 * Accuracy, MCC, Brier score. Answers of -1 are left out and not counted in `n`; of no answers at all accuracy and MCC
 * are 0 and the Brier score is 1 (the worst), so that emptiness never looks good.
 * @throws BadInputError for a prediction that is neither -1 nor in [0, 1]
 */
export function metricsOf(rows: readonly JudgedAnswer[]): Metrics {
  const kept = answered(rows);
  const n = kept.length;
  if (n === 0) return { accuracy: 0, mcc: 0, brier: 1, n: 0, positives: 0, balanced: null };
  const counts = confusion(kept);
  let squares = 0;
  for (const { label, prediction } of kept) squares += (prediction - label) ** 2;
  const positives = counts.tp + counts.fn;
  return { accuracy: (counts.tp + counts.tn) / n, mcc: mccOf(counts), brier: squares / n, n, positives, balanced: balancedOf(counts) };
}

/** Mean of the shares of right answers of the two classes, [0, 1]; null when a class is missing. */
export function balancedOf({ tp, fp, tn, fn }: Confusion): number | null {
  return tp + fn === 0 || tn + fp === 0 ? null : (tp / (tp + fn) + tn / (tn + fp)) / 2;
}

/**
 * Area under the ROC curve (Mann-Whitney, ties count half), [0, 1]; null when only one class is present.
 * @throws BadInputError for a prediction that is neither -1 nor in [0, 1]
 */
export function auc(rows: readonly JudgedAnswer[]): number | null {
  const sorted = [...answered(rows)].sort((a, b) => a.prediction - b.prediction);
  const positives = sorted.filter((r) => r.label === 1).length;
  const negatives = sorted.length - positives;
  if (positives === 0 || negatives === 0) return null;
  let rankSum = 0;
  for (let i = 0; i < sorted.length;) {
    let j = i;
    while (j < sorted.length && (sorted[j] as JudgedAnswer).prediction === (sorted[i] as JudgedAnswer).prediction) j++;
    const rank = (i + 1 + j) / 2;
    for (let k = i; k < j; k++) if ((sorted[k] as JudgedAnswer).label === 1) rankSum += rank;
    i = j;
  }
  return (rankSum - (positives * (positives + 1)) / 2) / (positives * negatives);
}

/**
 * Expected calibration error of the probability of roadwork: over `bins` bins of equal width, the mean distance of mean
 * prediction and share of positives, weighted by the bin's size. [0, 1]; 0 for no rows.
 * @throws BadInputError for fewer than one bin, or a prediction that is neither -1 nor in [0, 1]
 */
export function expectedCalibrationError(rows: readonly JudgedAnswer[], bins = 10): number {
  if (!Number.isInteger(bins) || bins < 1)
    throw new BadInputError(`calibration error needs a whole number of bins of at least 1, not ${bins}`);
  const kept = answered(rows);
  if (kept.length === 0) return 0;
  const sums = Array.from({ length: bins }, () => ({ p: 0, y: 0 }));
  for (const { label, prediction } of kept) {
    const bin = sums[Math.min(bins - 1, Math.floor(prediction * bins))] as { p: number; y: number };
    bin.p += prediction;
    bin.y += label;
  }
  return sums.reduce((total, bin) => total + Math.abs(bin.p - bin.y), 0) / kept.length;
}

/** Rows with an answer. @throws BadInputError for one out of range */
function answered(rows: readonly JudgedAnswer[]): readonly JudgedAnswer[] {
  for (const { prediction } of rows) {
    if (prediction !== NO_ANSWER && !(prediction >= 0 && prediction <= 1)) {
      throw new BadInputError(`a prediction must be in [0, 1], or -1 for no answer, not ${prediction}; no metric was computed`);
    }
  }
  return rows.some((r) => r.prediction === NO_ANSWER) ? rows.filter((r) => r.prediction !== NO_ANSWER) : rows;
}
