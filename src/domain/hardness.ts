/**
 * How hard an image is for the model that answered it. Where truth is known the error says it; otherwise the model's own
 * doubt: entropy, low confidence, the members' disagreement, and instability under the challenge augmentation.
 */
import type { Label } from './contracts/common.js';

export interface HardnessConfig {
  /** a failure: |prediction - truth| above this, [0, 1] */
  errorThreshold: number;
  /** without truth: hardness at or above this counts as a hard case, [0, 1] */
  hardnessThreshold: number;
}

/** All in [0, 1]; `error` is null where truth is not known. */
export interface HardnessParts {
  /** |prediction - truth| */
  error: number | null;
  /** entropy of (p, 1 - p) in bits: what FiftyOne's compute_hardness gives, divided by ln 2 */
  entropy: number;
  /** largest difference between two members' votes */
  disagreement: number;
  /** twice the standard deviation of the prediction over the augmented views and the image itself */
  instability: number;
  /** 1 - |2p - 1| */
  lowConfidence: number;
}

export interface Hardness {
  /** [0, 1] */
  hardness: number;
  failure: boolean;
  parts: HardnessParts;
}

export interface HardCase extends Hardness {
  digest: string;
}

/** Differences such as |0.7 - 1| must not exceed 0.3 by their last bit. */
const EPSILON = 1e-9;

/** Entropy of a Bernoulli variable in bits, [0, 1]; 0 at p = 0 and p = 1. */
export function binaryEntropy(p: number): number {
  const term = (x: number): number => (x <= 0 ? 0 : -x * Math.log2(x));
  return Math.min(1, term(p) + term(1 - p));
}

/**
 * Without truth the strongest of three signs counts: doubt (mean of entropy and low confidence), disagreement,
 * instability. With truth the error counts when it is stronger: a confident wrong answer is as hard as can be.
 * @param answer `prediction`, `votes` (by member) and `views` are probabilities in [0, 1]
 */
export function hardness(
  answer: { prediction: number; votes: Readonly<Record<string, number>>; views: readonly number[]; label: Label | null },
  config: HardnessConfig,
): Hardness {
  const { prediction, label } = answer;
  const votes = Object.values(answer.votes);
  const entropy = binaryEntropy(prediction);
  const lowConfidence = 1 - Math.abs(2 * prediction - 1);
  const disagreement = votes.length < 2 ? 0 : Math.max(...votes) - Math.min(...votes);
  const instability = Math.min(1, 2 * deviation([prediction, ...answer.views]));
  const error = label === null ? null : Math.abs(prediction - label);
  const doubt = Math.max((entropy + lowConfidence) / 2, disagreement, instability);
  const parts = { error, entropy, disagreement, instability, lowConfidence };
  if (error === null) return { hardness: doubt, failure: doubt >= config.hardnessThreshold - EPSILON, parts };
  return { hardness: Math.max(error, doubt), failure: error > config.errorThreshold + EPSILON, parts };
}

/** Hardest first; equals in order of digest, so that the order of the input does not matter. At most `max`. */
export function rankHardCases<T extends { digest: string; hardness: number }>(rows: readonly T[], max: number): T[] {
  return [...rows]
    .sort((a, b) => b.hardness - a.hardness || (a.digest < b.digest ? -1 : a.digest > b.digest ? 1 : 0))
    .slice(0, Math.max(0, max));
}

/** Standard deviation of the whole population; 0 for one value. */
function deviation(values: readonly number[]): number {
  const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
  return Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / values.length);
}
