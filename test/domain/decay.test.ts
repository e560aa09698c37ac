import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ageDays, DAY_MS, decayFactor, decaySchedule } from '../../src/domain/decay.js';
import { lifecycleView } from '../../src/domain/lifecycle.js';

const start = Date.UTC(2026, 0, 10, 12);
const day = (n: number) => start + n * DAY_MS;
const policy = fc.constantFrom('plan-90-180' as const, 'docs-45-90' as const);

describe('decay of the reward', () => {
  it('is full to day 90 and gone on day 180 by plan-90-180', () => {
    expect([0, 90, 135, 180, 500].map((d) => decayFactor('plan-90-180', d))).toEqual([1, 1, 0.5, 0, 0]);
  });

  it('is full to day 45 and gone on day 90 by docs-45-90', () => {
    expect([0, 45, 67.5, 90, 91].map((d) => decayFactor('docs-45-90', d))).toEqual([1, 1, 0.5, 0, 0]);
  });

  it('never grows with age and stays in [0, 1]', () => {
    const age = fc.double({ min: 0, max: 400, noNaN: true });
    fc.assert(
      fc.property(policy, age, age, (p, a, b) => {
        const [young, old] = [decayFactor(p, Math.min(a, b)), decayFactor(p, Math.max(a, b))];
        expect(old).toBeLessThanOrEqual(young);
        expect(old >= 0 && young <= 1).toBe(true);
      }),
    );
  });

  it('counts days of age in fractions, and none before the submission', () => {
    expect(ageDays(start, day(1.5))).toBe(1.5);
    expect(ageDays(start, day(-3))).toBe(0);
  });

  it('reminds on days 60, 75 and 85, retrains on 60 and resubmits by 75', () => {
    expect(decaySchedule('plan-90-180', start)).toEqual({
      retrainAt: day(60),
      resubmitBy: day(75),
      reminders: [60, 75, 85].map((d) => ({ day: d, at: day(d) })),
      fullUntil: day(90),
      zeroAt: day(180),
    });
  });

  it('leaves time between every date and the fall of the reward, in both policies', () => {
    fc.assert(
      fc.property(policy, (p) => {
        const s = decaySchedule(p, start);
        expect(s.retrainAt).toBeLessThan(s.resubmitBy);
        expect(s.resubmitBy).toBeLessThan(s.fullUntil);
        for (const r of s.reminders) expect(r.at).toBeLessThan(s.fullUntil);
      }),
    );
  });
});

describe('the view of the lifecycle', () => {
  const at = (n: number) => lifecycleView({ champion: 'demo-1', submittedAt: start, policy: 'plan-90-180', now: day(n) });

  it('says what is due by day', () => {
    expect([0, 59.9, 60, 75, 90, 90.1, 180].map((n) => at(n)?.due)).toEqual([
      'nothing',
      'nothing',
      'retrain',
      'resubmit',
      'resubmit',
      'overdue',
      'expired',
    ]);
  });

  it('names the next reminder and those whose time has come', () => {
    expect(at(0)?.nextReminder?.day).toBe(60);
    expect(at(60)).toMatchObject({ nextReminder: { day: 75 }, reminded: [60] });
    expect(at(100)).toMatchObject({ nextReminder: null, reminded: [60, 75, 85] });
  });

  it('has the day and the reward factor', () => {
    expect(at(135)).toMatchObject({ champion: 'demo-1', day: 135, rewardFactor: 0.5, retrainOn: day(60), resubmitBy: day(75) });
  });

  it('is empty while there is no champion', () => {
    expect(lifecycleView({ champion: null, submittedAt: 0, policy: 'plan-90-180', now: 0 })).toBeNull();
  });
});
