/** The clock of a champion as an operator wants to read it. Loaded by workflows: no imports that cost. */
import { ageDays, decayFactor, decaySchedule, type DecayPolicy } from './decay.js';

/** What the operator should do now: `retrain` from the retrain date, `resubmit` from the resubmission date, `overdue` once the reward falls. */
export type Due = 'nothing' | 'retrain' | 'resubmit' | 'overdue' | 'expired';

export interface LifecycleView {
  champion: string;
  policy: DecayPolicy;
  /** age since the submission in days, fractional */
  day: number;
  /** factor on the reward, [0, 1] */
  rewardFactor: number;
  /** all times in milliseconds since the epoch */
  submittedAt: number;
  retrainOn: number;
  resubmitBy: number;
  fullUntil: number;
  zeroAt: number;
  /** the first reminder still to come; null when all are past */
  nextReminder: { day: number; at: number } | null;
  /** days of reminders whose time has come, sent or not */
  reminded: number[];
  due: Due;
}

/** @returns null while there is no champion */
export function lifecycleView(input: {
  champion: string | null;
  submittedAt: number;
  policy: DecayPolicy;
  now: number;
}): LifecycleView | null {
  const { champion, submittedAt, policy, now } = input;
  if (champion === null) return null;
  const dates = decaySchedule(policy, submittedAt);
  const day = ageDays(submittedAt, now);
  return {
    champion,
    policy,
    day,
    rewardFactor: decayFactor(policy, day),
    submittedAt,
    retrainOn: dates.retrainAt,
    resubmitBy: dates.resubmitBy,
    fullUntil: dates.fullUntil,
    zeroAt: dates.zeroAt,
    nextReminder: dates.reminders.find((r) => r.at > now) ?? null,
    reminded: dates.reminders.filter((r) => r.at <= now).map((r) => r.day),
    due: dueAt(dates, now),
  };
}

function dueAt(dates: ReturnType<typeof decaySchedule>, now: number): Due {
  if (now >= dates.zeroAt) return 'expired';
  if (now > dates.fullUntil) return 'overdue';
  if (now >= dates.resubmitBy) return 'resubmit';
  return now >= dates.retrainAt ? 'retrain' : 'nothing';
}
