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
  /** generator family of a synthetic image; null or absent: a photograph */
  generator?: string | null;
  /** bundles whose votes are behind the label */
  labelledBy?: readonly string[];
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

/** Evidence before an error probability is chosen. */
export interface Weighed extends Omit<Evidence, 'accuracy'> {
  accuracy: Omit<Evidence['accuracy'], 'lower' | 'upper'>;
  /** one-sided bound of the difference in accuracy: -1 lower, 1 upper, at error probability `tail` */
  bound: (tail: number, sign: -1 | 1) => number;
  /** one-sided lower bound of the difference in predicted reward; -1 without a bootstrap */
  rewardLower: (tail: number) => number;
  /** by how much the champion's predicted reward would rise with this much more accuracy in each class */
  rewardOf: (accuracy: number) => number;
}

/**
 * Groups as counts: those that look alike are one pattern with a number of times, which is all that the figures depend on.
 * `counts` holds WIDTH numbers a pattern: for positives, then negatives: n, right and missing of the champion, right and
 * missing of the candidate, discordant.
 */
export interface Patterns {
  counts: Float64Array;
  times: Float64Array;
  /** patterns by the class of most of their challenges */
  strata: readonly (readonly number[])[];
  /** both models gave exactly the same answers */
  identical: boolean;
}

/** Simulated windows behind a predicted reward: the noise of their number is then about a hundredth, the same for both models. */
const WINDOWS = 256;

const N = 0;
const CHAMPION = 1;
const CANDIDATE = 3;
const DISCORDANT = 5;
const FIELDS = 6;
/** offset of the negatives behind the positives */
const NEGATIVE = FIELDS;
export const PATTERN_WIDTH = 2 * FIELDS;

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
  const { accuracy, predictedReward, groups, n, discordant, identical, bound } = weighPatterns({
    ...input,
    patterns: patternsOf(input.rows),
  });
  return {
    accuracy: { ...accuracy, lower: bound(input.alpha, -1), upper: bound(input.alpha, 1) },
    predictedReward,
    groups,
    n,
    discordant,
    identical,
  };
}

/** The windows that predicted rewards are taken over: every model, every resample and every look on the same ones. */
export function rewardWindows(seed: number | string, profile: ValidatorProfile = profile202601): (rates: AnswerRates) => number {
  return rewardExpectation({ windows: WINDOWS, seed, profile });
}

/**
 * The same from patterns. `resamples` null: Student's bounds alone and the predicted reward only when it is asked for, some
 * thousand times as fast; for studies of the rule itself over many thousand trials.
 */
export function weighPatterns(input: {
  patterns: Patterns;
  resamples: number | null;
  seed: number | string;
  profile?: ValidatorProfile;
  /** of `rewardWindows`; default made here */
  expected?: (rates: AnswerRates) => number;
}): Weighed {
  const { patterns, resamples } = input;
  const { counts, times, strata } = patterns;
  const total = new Float64Array(PATTERN_WIDTH);
  let size = 0;
  for (let p = 0; p < times.length; p++) {
    add(total, counts, p, at(times, p));
    size += at(times, p);
  }
  let windows = input.expected;
  const expected = (rates: AnswerRates): number => (windows ??= rewardWindows(input.seed, input.profile))(rates);

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

  const draws = resamples ?? 0;
  const differences = new Float64Array(draws);
  const rewards = new Float64Array(draws);
  if (draws > 0 && size > 0) {
    const rng = seededRng(input.seed).fork('bootstrap');
    const drawn = strata.map((stratum) => stratum.flatMap((p) => Array.from<number>({ length: at(times, p) }).fill(p)));
    const sums = new Float64Array(PATTERN_WIDTH);
    for (let i = 0; i < draws; i++) {
      sums.fill(0);
      for (const stratum of drawn) {
        for (let k = 0; k < stratum.length; k++) add(sums, counts, stratum[rng.int(stratum.length)] as number, 1);
      }
      differences[i] = accuracyOf(sums, CANDIDATE) - accuracyOf(sums, CHAMPION);
      rewards[i] = expected(ratesOf(sums, CANDIDATE)) - expected(ratesOf(sums, CHAMPION));
    }
    differences.sort();
    rewards.sort();
  }

  const champion = accuracyOf(total, CHAMPION);
  const candidate = accuracyOf(total, CANDIDATE);
  const difference = candidate - champion;
  const { standardError, df } = spread(patterns, total);
  const bound = (tail: number, sign: -1 | 1): number => {
    if (resamples === 0 || size === 0) return sign;
    const byStudent = standardError === 0 ? difference : difference + sign * tQuantile(tail, df) * standardError;
    if (resamples === null) return clamp(byStudent);
    const byBootstrap = quantile(differences, sign < 0 ? tail : 1 - tail);
    return clamp(sign < 0 ? Math.min(byStudent, byBootstrap) : Math.max(byStudent, byBootstrap));
  };
  let known: Estimate | null = null;
  const reward = (): Estimate => {
    if (known) return known;
    const own = size === 0 ? 0 : expected(ratesOf(total, CHAMPION));
    const other = size === 0 ? 0 : expected(ratesOf(total, CANDIDATE));
    known = {
      champion: own,
      candidate: other,
      difference: other - own,
      ci95: draws === 0 || size === 0 ? [-1, 1] : [quantile(rewards, 0.025), quantile(rewards, 0.975)],
    };
    return known;
  };
  return {
    accuracy: { champion, candidate, difference, ci95: [bound(0.025, -1), bound(0.025, 1)], standardError },
    get predictedReward() {
      return reward();
    },
    groups: { positive: countGroups(patterns, 0), negative: countGroups(patterns, NEGATIVE), all: size },
    n: at(total, N) + at(total, NEGATIVE + N),
    discordant: at(total, DISCORDANT) + at(total, NEGATIVE + DISCORDANT),
    identical: patterns.identical,
    bound,
    rewardLower: (tail) => {
      if (draws === 0 || size === 0) return -1;
      const mean = rewards.reduce((sum, r) => sum + r, 0) / draws;
      const deviation = Math.sqrt(rewards.reduce((sum, r) => sum + (r - mean) ** 2, 0) / Math.max(1, draws - 1));
      const byStudent = deviation === 0 ? reward().difference : reward().difference - tQuantile(tail, df) * deviation;
      return clamp(Math.min(byStudent, quantile(rewards, tail)));
    },
    rewardOf: (accuracy) => {
      const rates = ratesOf(total, CHAMPION);
      const better = (r: AnswerRates['positive']): AnswerRates['positive'] => ({
        ...r,
        right: Math.min(1 - r.missing, r.right + accuracy),
      });
      return expected({ positive: better(rates.positive), negative: better(rates.negative) }) - expected(rates);
    },
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
  const { counts, times } = patternsOf(rows);
  const total = new Float64Array(PATTERN_WIDTH);
  times.forEach((t, p) => add(total, counts, p, t));
  const [champion, candidate] = [accuracyOf(total, CHAMPION), accuracyOf(total, CANDIDATE)];
  return { n: rows.length, groups: times.reduce((sum, t) => sum + t, 0), champion, candidate, difference: candidate - champion };
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

/**
 * Patterns in an order of their own, so that the order of the rows does not matter. A mixed group is of its majority's stratum.
 * @throws BadInputError for a prediction that is neither -1 nor in [0, 1]
 */
export function patternsOf(rows: readonly PairedRow[]): Patterns {
  rows.forEach(check);
  const groups = new Map<string, number[]>();
  for (const row of rows) {
    let counts = groups.get(row.group);
    if (!counts) groups.set(row.group, (counts = Array.from<number>({ length: PATTERN_WIDTH }).fill(0)));
    const offset = row.label === 1 ? 0 : NEGATIVE;
    const [one, two] = [right(row.label, row.champion), right(row.label, row.candidate)];
    const plus = (field: number, amount: boolean | number): void => {
      counts[offset + field] = (counts[offset + field] as number) + Number(amount);
    };
    plus(N, 1);
    plus(CHAMPION, one);
    plus(CHAMPION + 1, row.champion === NO_ANSWER);
    plus(CANDIDATE, two);
    plus(CANDIDATE + 1, row.candidate === NO_ANSWER);
    plus(DISCORDANT, one !== two);
  }
  const found = new Map<string, { counts: number[]; times: number }>();
  for (const counts of groups.values()) {
    const key = counts.join(' ');
    const same = found.get(key);
    if (same) same.times += 1;
    else found.set(key, { counts, times: 1 });
  }
  const sorted = [...found].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, pattern]) => pattern);
  return makePatterns(
    sorted.map((p) => p.counts),
    sorted.map((p) => p.times),
    rows.every((r) => r.champion === r.candidate),
  );
}

/** @param counts PATTERN_WIDTH numbers a pattern, see Patterns @param times how many groups are like it */
export function makePatterns(counts: readonly (readonly number[])[], times: readonly number[], identical: boolean): Patterns {
  const flat = new Float64Array(counts.length * PATTERN_WIDTH);
  const strata: [number[], number[]] = [[], []];
  counts.forEach((pattern, p) => {
    flat.set(pattern, p * PATTERN_WIDTH);
    strata[(pattern[N] as number) >= (pattern[NEGATIVE + N] as number) ? 0 : 1].push(p);
  });
  return { counts: flat, times: Float64Array.from(times), strata: strata.filter((s) => s.length > 0), identical };
}

/**
 * Standard error of the difference by linearising the two ratios (cluster-robust, stratified), and its degrees of
 * freedom after Satterthwaite. A stratum of one group tells nothing of its own spread: the error is then infinite,
 * unless the two models agree on all of it and on all else.
 */
function spread({ counts, times, strata }: Patterns, total: Float64Array): { standardError: number; df: number } {
  const classes = [0, NEGATIVE].filter((c) => at(total, c + N) > 0);
  const means = classes.map((c) => (at(total, c + CANDIDATE) - at(total, c + CHAMPION)) / at(total, c + N));
  const residual = (p: number): number => {
    let u = 0;
    classes.forEach((c, i) => {
      const o = p * PATTERN_WIDTH + c;
      const beyond = at(counts, o + CANDIDATE) - at(counts, o + CHAMPION) - (means[i] as number) * at(counts, o + N);
      u += beyond / at(total, c + N) / classes.length;
    });
    return u;
  };
  let variance = 0;
  let satterthwaite = 0;
  let single = false;
  for (const stratum of strata) {
    let size = 0;
    let sum = 0;
    for (const p of stratum) {
      size += at(times, p);
      sum += at(times, p) * residual(p);
    }
    if (size < 2) {
      single ||= size === 1;
      continue;
    }
    let squares = 0;
    for (const p of stratum) squares += at(times, p) * (residual(p) - sum / size) ** 2;
    const part = (size / (size - 1)) * squares;
    variance += part;
    satterthwaite += (part * part) / (size - 1);
  }
  const same = classes.every((c) => at(total, c + CANDIDATE) === at(total, c + CHAMPION)) && variance === 0;
  if (single && !same) return { standardError: Infinity, df: 1 };
  return { standardError: Math.sqrt(variance), df: variance === 0 ? 1 : (variance * variance) / satterthwaite };
}

function countGroups({ counts, times }: Patterns, c: number): number {
  let found = 0;
  for (let p = 0; p < times.length; p++) if (at(counts, p * PATTERN_WIDTH + c + N) > 0) found += at(times, p);
  return found;
}

function add(sums: Float64Array, counts: Float64Array, pattern: number, times: number): void {
  const offset = pattern * PATTERN_WIDTH;
  for (let f = 0; f < PATTERN_WIDTH; f++) sums[f] = at(sums, f) + times * at(counts, offset + f);
}

const at = (values: Float64Array, i: number): number => values[i] as number;
const clamp = (x: number): number => Math.min(1, Math.max(-1, x));
