/**
 * Decay of the reward with a model's age, counted from its submission. Two named policies:
 * `plan-90-180`: full for 90 days, then linearly to 0 at day 180; retrain on day 60, resubmit by day 75, reminders on 60, 75, 85.
 * `docs-45-90`: the subnet documents' future plan: full for 45 days, then decreasing (taken as linear) to 0 at day 90; dates at half of the plan's.
 * Loaded by workflows: no imports that cost.
 */

export type DecayPolicy = 'plan-90-180' | 'docs-45-90';

export const DAY_MS = 86_400_000;

interface DecayDays {
  full: number;
  zero: number;
  retrain: number;
  resubmit: number;
  reminders: readonly number[];
}

/** Days of age, by policy. */
export const DECAY_DAYS: Readonly<Record<DecayPolicy, DecayDays>> = {
  'plan-90-180': { full: 90, zero: 180, retrain: 60, resubmit: 75, reminders: [60, 75, 85] },
  'docs-45-90': { full: 45, zero: 90, retrain: 30, resubmit: 37, reminders: [30, 37, 42] },
};

/** Age in days, fractional; 0 for a submission that lies in the future (clocks differ). */
export function ageDays(submittedAt: number, now: number): number {
  return Math.max(0, (now - submittedAt) / DAY_MS);
}

/** Factor on the reward at an age in days, [0, 1]. */
export function decayFactor(policy: DecayPolicy, age: number): number {
  const { full, zero } = DECAY_DAYS[policy];
  if (age <= full) return 1;
  return Math.max(0, (zero - age) / (zero - full));
}

/** All times are milliseconds since the epoch. */
export interface DecaySchedule {
  retrainAt: number;
  resubmitBy: number;
  /** in order of time */
  reminders: { day: number; at: number }[];
  fullUntil: number;
  zeroAt: number;
}

/** The dates of a submission. */
export function decaySchedule(policy: DecayPolicy, submittedAt: number): DecaySchedule {
  const days = DECAY_DAYS[policy];
  const at = (day: number): number => submittedAt + day * DAY_MS;
  return {
    retrainAt: at(days.retrain),
    resubmitBy: at(days.resubmit),
    reminders: days.reminders.map((day) => ({ day, at: at(day) })),
    fullUntil: at(days.full),
    zeroAt: at(days.zero),
  };
}
