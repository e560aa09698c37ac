/** Decay of the reward with a model's age (placeholder until the real file lands). */
const DAY = 86_400_000;
export type DecayPolicy = 'plan-90-180' | 'docs-45-90';
export function ageDays(submittedAt: number, now: number): number { return (now - submittedAt) / DAY; }
export function decayFactor(_p: DecayPolicy, age: number): number { return age <= 90 ? 1 : Math.max(0, 1 - (age - 90) / 90); }
export function decaySchedule(_p: DecayPolicy, s: number) {
  return { retrainAt: s + 60 * DAY, resubmitBy: s + 75 * DAY, reminders: [60, 75, 85].map((day) => ({ day, at: s + day * DAY })), fullUntil: s + 90 * DAY, zeroAt: s + 180 * DAY };
}
