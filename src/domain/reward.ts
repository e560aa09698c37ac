/**
 * The validator's reward, exact (subnet 72, profile 2026-01): per miner the newest 100 answers;
 * reward = (0.5 * max(0, MCC of the newest 100) + 0.5 * accuracy of the newest 10) ^ 3, and 0 when the newest answer is
 * missing (-1) or out of [0, 1]. Missing answers hold a place in the window and are left out of the metrics.
 */
import type { Label } from './contracts/common.js';
import { BadInputError } from './errors.js';
import { NO_ANSWER, roundHalfEven } from './metrics.js';
import { profile202601, type ValidatorProfile } from './profiles/index.js';
import { seededRng } from './rng.js';

/** One answer as the validator sees it; any number may come over the wire, -1 for none. */
export interface ScoredAnswer {
  label: Label;
  prediction: number;
}

/** What a validator keeps of one UID: the newest answers, oldest first, of the hotkey that gave them. */
export interface MinerWindow {
  hotkey: string;
  answers: readonly ScoredAnswer[];
}

/** @returns the window with the answer added and the oldest dropped; a new hotkey at the UID starts an empty one */
export function record(
  window: MinerWindow | null,
  hotkey: string,
  answer: ScoredAnswer,
  profile: ValidatorProfile = profile202601,
): MinerWindow {
  const before = window !== null && window.hotkey === hotkey ? window.answers : [];
  return { hotkey, answers: [...before, answer].slice(-Math.max(profile.reward.mcc.window, profile.reward.accuracy.window)) };
}

/**
 * Matthews correlation over rounded predictions of any range, as scikit-learn computes it for more than two classes:
 * a prediction of 1.7 rounds to a class 2 that no label has. 0 when labels or predictions are all one class.
 */
export function windowMcc(answers: readonly ScoredAnswer[]): number {
  const kept = answers.filter((a) => a.prediction !== NO_ANSWER);
  const said = new Map<number, number>();
  const labels = new Map<number, number>();
  let right = 0;
  for (const { label, prediction } of kept) {
    const rounded = roundHalfEven(prediction);
    said.set(rounded, (said.get(rounded) ?? 0) + 1);
    labels.set(label, (labels.get(label) ?? 0) + 1);
    if (rounded === label) right += 1;
  }
  const n = kept.length;
  let cross = 0;
  let saidSquares = 0;
  let labelSquares = 0;
  for (const [k, count] of said) {
    cross += count * (labels.get(k) ?? 0);
    saidSquares += count * count;
  }
  for (const count of labels.values()) labelSquares += count * count;
  const spread = (n * n - saidSquares) * (n * n - labelSquares);
  return spread === 0 ? 0 : (right * n - cross) / Math.sqrt(spread);
}

/** Share of right answers among those given; 0 when none was. */
export function windowAccuracy(answers: readonly ScoredAnswer[]): number {
  const kept = answers.filter((a) => a.prediction !== NO_ANSWER);
  return kept.length === 0 ? 0 : kept.filter((a) => roundHalfEven(a.prediction) === a.label).length / kept.length;
}

/**
 * The reward of the newest answer, [0, 1].
 * @param history answers oldest first, the newest included; a window that is not full yet counts as it is
 * @param last the newest prediction, by default the history's own last
 */
export function reward(
  history: readonly ScoredAnswer[],
  last: number = history.at(-1)?.prediction ?? NO_ANSWER,
  profile: ValidatorProfile = profile202601,
): number {
  // Also refuses NaN, which compares false with everything.
  if (!(last >= 0 && last <= 1)) return 0;
  const { mcc, accuracy, exponent } = profile.reward;
  const sum =
    mcc.weight * Math.max(0, windowMcc(history.slice(-mcc.window))) + accuracy.weight * windowAccuracy(history.slice(-accuracy.window));
  return sum ** exponent;
}

/**
 * Label of an organic task (profile `2026-05`): the rounded mean of what the sampled miners predicted. Missing answers, and
 * those that are no probability, have no say.
 * @returns null when nobody answered: the task is then not scored
 */
export function organicLabel(predictions: readonly number[]): Label | null {
  const given = predictions.filter((p) => p >= 0 && p <= 1);
  if (given.length === 0) return null;
  return roundHalfEven(given.reduce((sum, p) => sum + p, 0) / given.length) === 1 ? 1 : 0;
}

/** score = alpha * reward + (1 - alpha) * score. */
export function movingAverage(score: number, newReward: number, alpha: number = profile202601.reward.alpha): number {
  return alpha * newReward + (1 - alpha) * score;
}

/** Scores normalised to sum 1; all zeros stay zeros. @throws BadInputError for a negative or non-finite score */
export function weights(scores: readonly number[]): number[] {
  for (const score of scores) {
    if (!(score >= 0 && Number.isFinite(score))) throw new BadInputError(`scores must be finite and not negative, not ${score}`);
  }
  const sum = scores.reduce((total, s) => total + s, 0);
  return sum === 0 ? scores.map(() => 0) : scores.map((s) => s / sum);
}

/** Plays a sequence of answers through one validator: the reward and the score after each. */
export function simulateReward(input: {
  /** in the order they were asked; `hotkey` where the UID changes hands (default: the same throughout) */
  predictions: readonly (ScoredAnswer & { hotkey?: string })[];
  profile?: ValidatorProfile;
  /** score at the beginning */
  score?: number;
}): { rewards: number[]; scores: number[]; mean: number; score: number } {
  const profile = input.profile ?? profile202601;
  let window: MinerWindow | null = null;
  let score = input.score ?? 0;
  const rewards: number[] = [];
  const scores: number[] = [];
  for (const { label, prediction, hotkey } of input.predictions) {
    window = record(window, hotkey ?? '', { label, prediction }, profile);
    const now = reward(window.answers, prediction, profile);
    score = movingAverage(score, now, profile.reward.alpha);
    rewards.push(now);
    scores.push(score);
  }
  const mean = rewards.length === 0 ? 0 : rewards.reduce((sum, r) => sum + r, 0) / rewards.length;
  return { rewards, scores, mean, score };
}

/** How a model answers challenges of each class: shares in [0, 1]; what is neither right nor missing is wrong. */
export interface AnswerRates {
  positive: { right: number; missing: number };
  negative: { right: number; missing: number };
}

/**
 * Expected reward of a model with given rates, once its window is full: the mean over simulated windows in which labels
 * are drawn as the validator draws them and every answer is drawn independently. The answers of a window depend on the
 * model only through these rates, so nothing is lost. Every call uses the same random numbers: two models, or two
 * resamples of one, are compared on the same draws.
 * @param windows simulated windows, more are slower and smoother
 */
export function rewardExpectation({
  windows = 256,
  seed,
  profile = profile202601,
}: {
  windows?: number;
  seed: number | string;
  profile?: ValidatorProfile;
}): (rates: AnswerRates) => number {
  const rng = seededRng(seed).fork('reward windows');
  const { mcc, accuracy, exponent } = profile.reward;
  const size = Math.max(mcc.window, accuracy.window);
  /** one uniform draw an answer, by window and class; sorted, so that counting those below a rate is a binary search */
  const drawn = Array.from({ length: windows }, () => {
    const draws = Array.from({ length: size }, () => ({ positive: rng.next() < profile.draw.positiveShare, u: rng.next() }));
    const sorted = (length: number, positive: boolean): Float64Array =>
      Float64Array.from(
        draws
          .slice(-length)
          .filter((d) => d.positive === positive)
          .map((d) => d.u),
      ).sort();
    return {
      long: { positive: sorted(mcc.window, true), negative: sorted(mcc.window, false) },
      short: { positive: sorted(accuracy.window, true), negative: sorted(accuracy.window, false) },
      last: draws[size - 1] as { positive: boolean; u: number },
    };
  });

  return ({ positive, negative }) => {
    let total = 0;
    // Not below the share of right ones, whatever the last bit of 1 - missing is.
    const givenPositive = Math.max(positive.right, 1 - positive.missing);
    const givenNegative = Math.max(negative.right, 1 - negative.missing);
    for (const { long, short, last } of drawn) {
      if (last.u >= (last.positive ? givenPositive : givenNegative)) continue; // no answer, no reward
      const tp = below(long.positive, positive.right);
      const tn = below(long.negative, negative.right);
      const fn = below(long.positive, givenPositive) - tp;
      const fp = below(long.negative, givenNegative) - tn;
      const product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn);
      const correlation = product === 0 ? 0 : Math.max(0, (tp * tn - fp * fn) / Math.sqrt(product));
      const right = below(short.positive, positive.right) + below(short.negative, negative.right);
      const given = below(short.positive, givenPositive) + below(short.negative, givenNegative);
      total += (mcc.weight * correlation + accuracy.weight * (given === 0 ? 0 : right / given)) ** exponent;
    }
    return total / windows;
  };
}

/** How many of the sorted values are smaller than x. */
function below(sorted: Float64Array, x: number): number {
  if (x >= 1) return sorted.length; // all draws are below 1
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((sorted[middle] as number) < x) low = middle + 1;
    else high = middle;
  }
  return low;
}
