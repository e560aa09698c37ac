/** What machines may cost, and did. */
import { BadInputError, BudgetExceededError } from '../../domain/errors.js';
import type { Catalog, LedgerEntry } from '../ports.js';
import type { CatalogDatabase, Synchronous } from './database.js';
import { builder } from './query.js';
import { toLedger } from './rows.js';

export function ledgerPart(db: CatalogDatabase): Pick<Synchronous<Catalog>, 'reserve' | 'settle' | 'ledger'> {
  const self = {
    reserve(entry: { job: string; backend: string; cents: number; month: string }, monthlyBudgetCents: number): LedgerEntry {
      return db.change(() => {
        const known = entryOf(db, entry.job);
        if (known) return known;
        if (!Number.isFinite(entry.cents) || entry.cents < 0 || !/^\d{4}-\d{2}$/.test(entry.month)) {
          throw new BadInputError(
            `Job ${entry.job} asked to reserve ${entry.cents} cents for month '${entry.month}'; expected cents >= 0 and YYYY-MM. Nothing was reserved.`,
          );
        }
        const spent = self
          .ledger(entry.month)
          .filter((row) => row.status !== 'released')
          .reduce((sum, row) => sum + (row.actualCents ?? row.reservedCents), 0);
        if (spent + entry.cents > monthlyBudgetCents) {
          throw new BudgetExceededError(
            `Job ${entry.job} may cost up to ${entry.cents} cents; of the ${monthlyBudgetCents} cents for ${entry.month}, ${spent} are spent or reserved. ` +
              'Nothing was bought. Raise gpu.monthlyBudgetCents, or wait for the next month.',
          );
        }
        db.run(
          builder.insertInto('ledger').values({
            job: entry.job,
            backend: entry.backend,
            reserved_cents: entry.cents,
            actual_cents: null,
            month: entry.month,
            status: 'reserved',
          }),
        );
        return entryOf(db, entry.job)!;
      });
    },

    /** The first settlement holds. @throws BadInputError when nothing was reserved for the job, or the amount is none */
    settle(job: string, actualCents: number): void {
      db.change(() => {
        const known = entryOf(db, job);
        if (!known) throw new BadInputError(`Nothing was reserved for job ${job}, so it cannot be settled; nothing was changed.`);
        if (!Number.isFinite(actualCents) || actualCents < 0)
          throw new BadInputError(`Job ${job} cannot be settled with ${actualCents} cents; expected >= 0. Nothing was changed.`);
        if (known.status === 'settled') return;
        db.run(builder.updateTable('ledger').set({ actual_cents: actualCents, status: 'settled' }).where('job', '=', job));
      });
    },

    /** Sorted by month, then job. */
    ledger(month?: string): LedgerEntry[] {
      let query = builder.selectFrom('ledger').selectAll().orderBy('month').orderBy('job');
      if (month !== undefined) query = query.where('month', '=', month);
      return db.all(query).map(toLedger);
    },
  };
  return self;
}

function entryOf(db: CatalogDatabase, job: string): LedgerEntry | null {
  const row = db.one(builder.selectFrom('ledger').selectAll().where('job', '=', job));
  return row ? toLedger(row) : null;
}
