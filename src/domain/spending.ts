/**
 * Where the error probability of promotions goes. `alpha` is for a whole quarter: the chance that any candidate of 90 days
 * that is no better is promoted is at most that. It is spent twice over, each time by adding up (Bonferroni), so that it
 * holds however candidates, looks and test sets depend on each other:
 * - over candidates: half in equal parts for the planned number, half front-loaded by 1/i^2, so that an operator of few
 *   candidates has power and one of many is not ruined. The parts fall with i, hence those of any 90 days sum to 1 at most;
 * - over looks of one trial: in proportion to information, the part of the planned one that has come in (Kim and DeMets
 *   1987, power family with exponent 1). A look tests only when information doubled since the last test, so that some seven
 *   tests carry a trial from its first hour to its end.
 */
import { normalQuantile } from './statistics.js';

/** Days over which candidates share one alpha. */
export const QUARTER_DAYS = 90;
/** Chance to find a real difference of the planned size. */
export const POWER = 0.9;
/** Information must have grown by this factor since the last test. */
const GROWTH = 2;

/** Where a look stands in its trial and its quarter. */
export interface Sequence {
  /** candidates judged in the 90 days before this one */
  earlier: number;
  /** candidates expected in a quarter */
  planned: number;
  /** fraction of the planned information at the last test, [0, 1]; 0 before the first */
  spent: number;
  /** no further look comes in time: whatever is left is spent now */
  last: boolean;
}

/** Part of a quarter's alpha that its i-th candidate may spend, i from 1; over all i they sum to at most 1. */
export function candidateShare(i: number, planned: number): number {
  return 3 / (Math.PI ** 2 * i ** 2) + (i <= planned ? 0.5 / planned : 0);
}

/** Alpha of one candidate over all of its looks. */
export function candidateAlpha(alpha: number, sequence: Pick<Sequence, 'earlier' | 'planned'>): number {
  return alpha * candidateShare(sequence.earlier + 1, sequence.planned);
}

/**
 * Information (one over the squared standard error) that finds `difference` with 90% power in one test at `alpha`.
 * @param difference in the unit of the standard error, > 0
 */
export function plannedInformation(alpha: number, difference: number): number {
  return ((-normalQuantile(alpha) + normalQuantile(POWER)) / difference) ** 2;
}

/** Information that a trial of several looks is planned for: its last test has half of the alpha, since information doubles between tests. */
export function trialInformation(alpha: number, difference: number): number {
  return plannedInformation(alpha / GROWTH, difference);
}

/** Groups of a standard deviation of one group's difference that give the planned information. */
export function groupsFor(alpha: number, difference: number, deviation: number): number {
  return Math.ceil(deviation ** 2 * plannedInformation(alpha, difference));
}

/** What a look may spend. */
export interface Spending {
  /** one-sided error probability of this look; 0 when it is no test */
  alpha: number;
  /** whether this look tests */
  tests: boolean;
  /** part of the planned information that is in, [0, 1] */
  fraction: number;
  /** `spent` of the next look */
  spent: number;
}

/**
 * @param input alpha: the candidate's own; standardError of the difference, 0 and Infinity allowed; ready: everything but
 * statistics speaks for a promotion, so that a test would count (a look that could not promote spends nothing)
 */
export function spend(input: { alpha: number; standardError: number; difference: number; sequence: Sequence; ready: boolean }): Spending {
  const { alpha, standardError, difference, sequence, ready } = input;
  const information = 1 / standardError ** 2;
  const fraction = alpha <= 0 ? 0 : Math.min(1, information / trialInformation(alpha, difference));
  // Between half and all of it nothing is tested, so that at least half of the alpha is left for the end.
  const grown = fraction >= GROWTH * sequence.spent && fraction * GROWTH <= 1;
  const due = fraction > 0 && sequence.spent < 1 && (grown || fraction >= 1 || sequence.last);
  const tests = ready && due;
  const upTo = sequence.last ? 1 : fraction;
  return { alpha: tests ? alpha * (upTo - sequence.spent) : 0, tests, fraction, spent: tests ? upTo : sequence.spent };
}
