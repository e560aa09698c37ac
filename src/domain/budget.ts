/** Money of GPU jobs, in whole cents: reserved before a launch, settled after it. */
import { BadInputError } from './errors.js';

/** The month a cost counts for, `YYYY-MM` in UTC. @param ms milliseconds since the epoch */
export function monthOf(ms: number): string {
  return new Date(ms).toISOString().slice(0, 7);
}

/** What a job can cost at most: rounded up, so that a reservation always covers it. @throws BadInputError for negative input */
export function reserveCents(centsPerHour: number, maxSeconds: number): number {
  if (!(centsPerHour >= 0 && maxSeconds >= 0 && Number.isFinite(centsPerHour * maxSeconds))) {
    throw new BadInputError(
      `a price and a time limit must be finite and not negative, not ${centsPerHour} cents an hour and ${maxSeconds} s`,
    );
  }
  // A hair less than a cent is a rounding error of the product, not a cent.
  return Math.max(0, Math.ceil((centsPerHour * maxSeconds) / 3600 - 1e-9));
}

/** A ledger entry as far as money goes. */
export interface Spend {
  month: string;
  reservedCents: number;
  actualCents: number | null;
  status: 'reserved' | 'running' | 'settled' | 'released';
}

/** Cents an entry binds: what it cost once settled, what it may cost while it runs, nothing once released. */
export function boundCents(entry: Spend): number {
  if (entry.status === 'released') return entry.actualCents ?? 0;
  return entry.status === 'settled' ? (entry.actualCents ?? entry.reservedCents) : Math.max(entry.reservedCents, entry.actualCents ?? 0);
}

/** Cents of the month's budget that nothing binds yet; negative when a job cost more than it had reserved. */
export function remaining(ledger: readonly Spend[], budgetCents: number, month: string): number {
  return ledger.filter((e) => e.month === month).reduce((left, e) => left - boundCents(e), budgetCents);
}
