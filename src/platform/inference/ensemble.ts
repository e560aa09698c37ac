/** From members' logits to the calibrated prediction, exactly as the bundle's contract says. Pure. */
import type { Bundle, Calibration } from '../../domain/contracts/bundle.js';

/** Bound of the soft vote before its logit is taken. */
const EPSILON = 1e-6;

/** @returns 1 / (1 + e^-x), in [0, 1]; without overflow at either end */
export function sigmoid(x: number): number {
  if (x >= 0) return 1 / (1 + Math.exp(-x));
  const e = Math.exp(x);
  return e / (1 + e);
}

/**
 * p = sigmoid(a * logit(vote) + b) with the vote clamped to [1e-6, 1 - 1e-6]; kind `none` is a = 1, b = 0.
 * @param vote weighted mean of the members' probabilities, [0, 1]
 */
export function calibrate(vote: number, calibration: Calibration): number {
  const v = Math.min(1 - EPSILON, Math.max(EPSILON, vote));
  return calibration.kind === 'none' ? v : sigmoid(calibration.a * Math.log(v / (1 - v)) + calibration.b);
}

/** What an ensemble says of one image. */
export interface Vote {
  /** calibrated probability of roadwork, [0, 1] */
  prediction: number;
  /** each member's own probability, uncalibrated, by name */
  votes: Record<string, number>;
}

/**
 * @param logits one a member, in the bundle's order
 * @throws Error when a logit is not a number: a model that says nothing must not be taken for a guess
 */
export function vote(bundle: Bundle, logits: readonly number[]): Vote {
  const votes: Record<string, number> = {};
  let sum = 0;
  bundle.members.forEach((member, i) => {
    const logit = logits[i];
    if (logit === undefined || Number.isNaN(logit)) throw new Error(`the model's member ${member.name} gave no number for this image`);
    const p = sigmoid(logit);
    votes[member.name] = p;
    sum += member.weight * p;
  });
  return { prediction: calibrate(sum, bundle.calibration), votes };
}
