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

/**
 * Members that answered must together have at least this weight; with less there is no answer rather than a guess. Half:
 * what is left then still is the bundle's majority.
 */
export const MIN_WEIGHT = 0.5;

/** What an ensemble says of one image. */
export interface Vote {
  /** calibrated probability of roadwork, [0, 1] */
  prediction: number;
  /** each member's own probability, uncalibrated, by name; without those left out */
  votes: Record<string, number>;
  /** members that gave no number */
  leftOut: string[];
}

/**
 * The soft vote. A member that gave nothing, or no number, is left out: the weights of the others are scaled to sum 1, and
 * the calibration applies as it is (a mean of fewer members still is a probability on the scale it was fitted on; without
 * it the boundary would jump). A member's views (test-time augmentation) count by the mean of their probabilities.
 * @param logits of each member, in the bundle's order: one a view, none for a member that was left out
 * @param minWeight the least weight that must have answered, (0, 1]
 * @throws Error when less has: a model that says nothing must not be taken for a guess
 */
export function vote(bundle: Bundle, logits: readonly (readonly number[])[], minWeight: number = MIN_WEIGHT): Vote {
  const votes: Record<string, number> = {};
  const leftOut: string[] = [];
  let sum = 0;
  let weight = 0;
  bundle.members.forEach((member, i) => {
    const views = logits[i] ?? [];
    const p = views.reduce((total, logit) => total + sigmoid(logit), 0) / views.length;
    // No views give 0 / 0.
    if (Number.isNaN(p)) {
      leftOut.push(member.name);
      return;
    }
    votes[member.name] = p;
    sum += member.weight * p;
    weight += member.weight;
  });
  if (weight < minWeight - 1e-9 || weight === 0) {
    throw new Error(
      `the model's ${leftOut.length === 1 ? 'member' : 'members'} ${leftOut.join(', ')} gave no number for this image; the rest has weight ${weight.toFixed(2)}, and ${minWeight} is needed`,
    );
  }
  return { prediction: calibrate(leftOut.length === 0 ? sum : sum / weight, bundle.calibration), votes, leftOut };
}

/** Order in which members run: the heaviest first, so that what time does not allow is what counts least. */
export function runningOrder(bundle: Pick<Bundle, 'members'>): number[] {
  return bundle.members.map((_, i) => i).sort((a, b) => (bundle.members[b]?.weight ?? 0) - (bundle.members[a]?.weight ?? 0) || a - b);
}

/**
 * Whether the mirrored view may run as well: only when the whole of it, and then everything that waits behind it, still is
 * within the budget of the most urgent image.
 * @param costMs the view for this batch
 * @param behind images waiting for their turn
 * @param perImageMs of one of those, without the view
 * @param leftMs until the earliest deadline or the end of the latency budget in this batch
 */
export function viewFits(costMs: number, behind: number, perImageMs: number, leftMs: number): boolean {
  return costMs + behind * perImageMs <= leftMs;
}
