/**
 * Paired evidence: champion and candidate on the same challenges, and what it says of their difference. All variants of
 * a photograph and all frames of a clip are one group; groups are drawn, never images, stratified by class.
 */
import type { Label, TruthKind } from './contracts/common.js';
import { BadInputError } from './errors.js';
import { NO_ANSWER, roundHalfEven } from './metrics.js';
import { profile202601, type ValidatorProfile } from './profiles/index.js';
import { rewardExpectation, type AnswerRates } from './reward.js';
import { seededRng } from './rng.js';
import { quantile, tQuantile } from './statistics.js';

/** One challenge as both models answered it: probabilities in [0, 1], -1 for no answer (counts as wrong). */
export interface PairedRow {
  group: string;
  label: Label;
  champion: number;
  candidate: number;
  truth: TruthKind;
  source: string;
  /** level of the challenge augmentation */
  level?: number;
}

export interface Estimate {
  champion: number;
  candidate: number;
  /** candidate less champion */
  difference: number;
  /** two-sided 95% interval of the difference */
  ci95: [number, number];
}

export interface Evidence {
  /** share of right answers with each class counting half, as the validator draws them; [0, 1] */
  accuracy: Estimate & {
    /** one-sided lower and upper bound of the difference, each at error probability alpha */
    lower: number;
    upper: number;
    /** standard error of the difference, over groups; Infinity when there is too little to tell */
    standardError: number;
  };
  /** expected reward with full windows, before decay; [0, 1] */
  predictedReward: Estimate;
  /** groups with at least one challenge of the class */
  groups: { positive: number; negative: number; all: number };
  n: number;
  /** challenges that exactly one of the two has right */
  discordant: number;
  /** both gave exactly the same answers */
  identical: boolean;
}

/** Simulated windows behind a predicted reward: the noise of their number is then about a hundredth, the same for both models. */
const WINDOWS = 256;

/** Counts of a group and class: n, then right and missing of the champion, right and missing of the candidate. */
const N = 0;
const CHAMPION = 1;
const CANDIDATE = 3;
const FIELDS = 5;
/** offset of the negatives behind the positives */
const NEGATIVE = FIELDS;
const WIDTH = 2 * FIELDS;

/**
 * Point estimates and bounds. The bounds are the wider of two: percentiles of the bootstrap, and Student's t with the
 * group-wise standard error, because percentiles alone promise too much when groups are few.
 * @param input `resamples`: bootstrap draws; `alpha`: one-sided error probability of `lower` and `upper`
 * @throws BadInputError for a prediction that is neither -1 nor in [0, 1]
 */
export function weigh(input: {
  rows: readonly PairedRow[];
  resamples: number;
  alpha: number;
  seed: number | string;
  profile?: ValidatorProfile;
}): Evidence {
  const { rows, resamples, alpha } = input;
  rows.forEach(check);
  const { counts, strata, size } = groupCounts(rows);
  const total = new Float64Array(WIDTH);
  for (let g = 0; g < size; g++) add(total, counts, g);
  const expected = rewardExpectation({ windows: WINDOWS, seed: input.seed, profile: input.profile ?? profile202601 });
  const rng = seededRng(input.seed).fork('bootstrap');

  const ratesOf = (sums: Float64Array, who: number): AnswerRates => {
    // A class that a resample lost altogether keeps its rates of the whole.
    const rate = (c: number, field: number): number => {
      const from = at(sums, c + N) > 0 ? sums : total;
      return at(from, c + N) > 0 ? at(from, c + field) / at(from, c + N) : 0;
    };
    return {
      positive: { right: rate(0, who), missing: rate(0, who + 1) },
      negative: { right: rate(NEGATIVE, who), missing: rate(NEGATIVE, who + 1) },
    };
  };

  const differences = new Float64Array(resamples);
  const rewards = new Float64Array(resamples);
  const sums = new Float64Array(WIDTH);
  for (let i = 0; i < resamples; i++) {
    sums.fill(0);
    for (const stratum of strata) {
      for (let k = 0; k < stratum.length; k++) add(sums, counts, stratum[rng.int(stratum.length)] as number);
    }
    differences[i] = accuracyOf(sums, CANDIDATE) - accuracyOf(sums, CHAMPION);
    rewards[i] = expected(ratesOf(sums, CANDIDATE)) - expected(ratesOf(sums, CHAMPION));
  }
  differences.sort();
  rewards.sort();

  const champion = accuracyOf(total, CHAMPION);
  const candidate = accuracyOf(total, CANDIDATE);
  const difference = candidate - champion;
  const { standardError, df } = spread(counts, strata, total);
  const bound = (tail: number, sign: -1 | 1): number => {
    if (resamples === 0 || size === 0) return sign;
    const byStudent = standardError === 0 ? difference : difference + sign * tQuantile(tail, df) * standardError;
    const byBootstrap = quantile(differences, sign < 0 ? tail : 1 - tail);
    return clamp(sign < 0 ? Math.min(byStudent, byBootstrap) : Math.max(byStudent, byBootstrap));
  };
  const rewardChampion = size === 0 ? 0 : expected(ratesOf(total, CHAMPION));
  const rewardCandidate = size === 0 ? 0 : expected(ratesOf(total, CANDIDATE));
  return {
    accuracy: {
      champion,
      candidate,
      difference,
      ci95: [bound(0.025, -1), bound(0.025, 1)],
      lower: bound(alpha, -1),
      upper: bound(alpha, 1),
      standardError,
    },
    predictedReward: {
      champion: rewardChampion,
      candidate: rewardCandidate,
      difference: rewardCandidate - rewardChampion,
      ci95: resamples === 0 || size === 0 ? [-1, 1] : [quantile(rewards, 0.025), quantile(rewards, 0.975)],
    },
    groups: {
      positive: countGroups(counts, size, 0),
      negative: countGroups(counts, size, NEGATIVE),
      all: size,
    },
    n: rows.length,
    discordant: rows.filter((r) => right(r.label, r.champion) !== right(r.label, r.candidate)).length,
    identical: rows.every((r) => r.champion === r.candidate),
  };
}

/** Accuracies alone, without intervals: each class counts half. */
export function accuracies(rows: readonly PairedRow[]): {
  n: number;
  groups: number;
  champion: number;
  candidate: number;
  difference: number;
} {
  const { counts, size } = groupCounts(rows);
  const total = new Float64Array(WIDTH);
  for (let g = 0; g < size; g++) add(total, counts, g);
  const [champion, candidate] = [accuracyOf(total, CHAMPION), accuracyOf(total, CANDIDATE)];
  return { n: rows.length, groups: size, champion, candidate, difference: candidate - champion };
}

/** Mean of the classes' shares of right answers; of the one class there is, or 0 without any. */
function accuracyOf(sums: Float64Array, who: number): number {
  const [positive, negative] = [at(sums, N), at(sums, NEGATIVE + N)];
  if (positive === 0 && negative === 0) return 0;
  if (positive === 0) return at(sums, NEGATIVE + who) / negative;
  if (negative === 0) return at(sums, who) / positive;
  return (at(sums, who) / positive + at(sums, NEGATIVE + who) / negative) / 2;
}

/** An answer is right when it rounds to the label as numpy rounds; no answer is never right. */
export function right(label: Label, prediction: number): boolean {
  return prediction !== NO_ANSWER && roundHalfEven(prediction) === label;
}

function check(row: PairedRow): void {
  for (const p of [row.champion, row.candidate]) {
    if (p !== NO_ANSWER && !(p >= 0 && p <= 1)) {
      throw new BadInputError(
        `a prediction of ${p} for an image of group ${row.group} is neither a probability nor -1 (no answer); nothing was judged`,
      );
    }
  }
}

/** Groups in order of their names, so that the order of the rows does not matter. A mixed group is of its majority's stratum. */
function groupCounts(rows: readonly PairedRow[]): { counts: Float64Array; strata: number[][]; size: number } {
  const names = [...new Set(rows.map((r) => r.group))].sort();
  const index = new Map(names.map((name, i) => [name, i]));
  const counts = new Float64Array(names.length * WIDTH);
  const plus = (offset: number, amount: boolean | number): void => {
    counts[offset] = at(counts, offset) + Number(amount);
  };
  for (const row of rows) {
    const offset = (index.get(row.group) as number) * WIDTH + (row.label === 1 ? 0 : NEGATIVE);
    plus(offset + N, 1);
    plus(offset + CHAMPION, right(row.label, row.champion));
    plus(offset + CHAMPION + 1, row.champion === NO_ANSWER);
    plus(offset + CANDIDATE, right(row.label, row.candidate));
    plus(offset + CANDIDATE + 1, row.candidate === NO_ANSWER);
  }
  const strata: [number[], number[]] = [[], []];
  names.forEach((_, g) => strata[at(counts, g * WIDTH + N) >= at(counts, g * WIDTH + NEGATIVE + N) ? 0 : 1].push(g));
  return { counts, strata: strata.filter((s) => s.length > 0), size: names.length };
}

/**
 * Standard error of the difference by linearising the two ratios (cluster-robust, stratified), and its degrees of
 * freedom after Satterthwaite. A stratum of one group tells nothing of its own spread: the error is then infinite,
 * unless the two models agree on all of it and on all else.
 */
function spread(counts: Float64Array, strata: readonly number[][], total: Float64Array): { standardError: number; df: number } {
  const classes = [0, NEGATIVE].filter((c) => at(total, c + N) > 0);
  const residual = (g: number): number => {
    let u = 0;
    for (const c of classes) {
      const n = at(total, c + N);
      const mean = (at(total, c + CANDIDATE) - at(total, c + CHAMPION)) / n;
      const o = g * WIDTH + c;
      u += (at(counts, o + CANDIDATE) - at(counts, o + CHAMPION) - mean * at(counts, o + N)) / n / classes.length;
    }
    return u;
  };
  let variance = 0;
  let satterthwaite = 0;
  let single = false;
  for (const stratum of strata) {
    const size = stratum.length;
    if (size < 2) {
      single = true;
      continue;
    }
    const us = stratum.map(residual);
    const mean = us.reduce((sum, u) => sum + u, 0) / size;
    const part = (size / (size - 1)) * us.reduce((sum, u) => sum + (u - mean) ** 2, 0);
    variance += part;
    satterthwaite += (part * part) / (size - 1);
  }
  const same = classes.every((c) => at(total, c + CANDIDATE) === at(total, c + CHAMPION)) && variance === 0;
  if (single && !same) return { standardError: Infinity, df: 1 };
  return { standardError: Math.sqrt(variance), df: variance === 0 ? 1 : (variance * variance) / satterthwaite };
}

function countGroups(counts: Float64Array, size: number, c: number): number {
  let found = 0;
  for (let g = 0; g < size; g++) if (at(counts, g * WIDTH + c + N) > 0) found += 1;
  return found;
}

function add(sums: Float64Array, counts: Float64Array, group: number): void {
  const offset = group * WIDTH;
  for (let f = 0; f < WIDTH; f++) sums[f] = at(sums, f) + at(counts, offset + f);
}

const at = (values: Float64Array, i: number): number => values[i] as number;
const clamp = (x: number): number => Math.min(1, Math.max(-1, x));
