/** Champions, reminders of their age, trials of candidates. */
import { BadInputError, StaleGenerationError } from '../../domain/errors.js';
import type { Catalog, ChampionRecord, TrialRecord } from '../ports.js';
import type { CatalogDatabase, Synchronous } from './database.js';
import { builder } from './query.js';
import { json, toChampion, toTrial } from './rows.js';

export function championsPart(
  db: CatalogDatabase,
): Pick<
  Synchronous<Catalog>,
  'champion' | 'setChampion' | 'setSubmitted' | 'recordReminder' | 'reminders' | 'openTrial' | 'closeTrial' | 'trials'
> {
  const self = {
    champion(hotkey: string): ChampionRecord | null {
      const row = db.one(builder.selectFrom('champions').selectAll().where('hotkey', '=', hotkey).orderBy('generation', 'desc').limit(1));
      return row ? toChampion(row) : null;
    },

    setChampion(next: ChampionRecord, expected: number): ChampionRecord {
      return db.change(() => {
        const stored = self.champion(next.hotkey);
        const { pointer } = next;
        if (
          stored &&
          stored.pointer.generation === pointer.generation &&
          stored.pointer.digest === pointer.digest &&
          stored.pointer.previous === pointer.previous
        ) {
          return stored;
        }
        const generation = stored?.pointer.generation ?? 0;
        if (generation !== expected) {
          throw new StaleGenerationError(
            `The champion of ${next.hotkey} is at generation ${generation} (${stored?.pointer.digest ?? 'none'}), not at ${expected} as expected: another change came first. It is kept; nothing was changed.`,
          );
        }
        if (pointer.generation <= generation) {
          throw new BadInputError(
            `A new champion of ${next.hotkey} needs a generation above ${generation}, not ${pointer.generation}. Nothing was changed.`,
          );
        }
        db.run(
          builder.insertInto('champions').values({
            hotkey: next.hotkey,
            generation: pointer.generation,
            digest: pointer.digest,
            previous: pointer.previous,
            model_id: next.modelId,
            promoted_at: next.promotedAt,
            submitted_at: next.submittedAt,
          }),
        );
        return self.champion(next.hotkey)!;
      });
    },

    /** @throws BadInputError when the hotkey has no champion */
    setSubmitted(hotkey: string, at: number): void {
      db.change(() => {
        const stored = self.champion(hotkey);
        if (!stored) throw new BadInputError(`Hotkey ${hotkey} has no champion that could have been submitted; nothing was changed.`);
        db.run(
          builder
            .updateTable('champions')
            .set({ submitted_at: at })
            .where('hotkey', '=', hotkey)
            .where('generation', '=', stored.pointer.generation),
        );
      });
    },

    recordReminder(hotkey: string, submittedAt: number, day: number, at: number): boolean {
      return db.change(
        () =>
          db.run(
            builder
              .insertInto('reminders')
              .values({ hotkey, submitted_at: submittedAt, day, at })
              .onConflict((oc) => oc.columns(['hotkey', 'submitted_at', 'day']).doNothing()),
          ) === 1,
      );
    },

    /** By submission, then day. */
    reminders(hotkey: string): { submittedAt: number; day: number; at: number }[] {
      return db
        .all(builder.selectFrom('reminders').selectAll().where('hotkey', '=', hotkey).orderBy('submitted_at').orderBy('day'))
        .map((row) => ({
          submittedAt: row.submitted_at,
          day: row.day,
          at: row.at,
        }));
    },

    openTrial(trial: TrialRecord): void {
      db.change(() =>
        db.run(
          builder
            .insertInto('trials')
            .values({
              id: trial.id,
              hotkey: trial.hotkey,
              champion: trial.champion,
              candidate: trial.candidate,
              opened_at: trial.openedAt,
              closed_at: trial.closedAt,
              simulated: trial.simulated ? 1 : 0,
              decision: trial.decision,
              evidence: json(trial.evidence),
            })
            .onConflict((oc) => oc.column('id').doNothing()),
        ),
      );
    },

    /** The first decision holds. @throws BadInputError for an unknown trial, or one closed with another decision */
    closeTrial(id: string, decision: 'promote' | 'keep', evidence: unknown, at: number): void {
      db.change(() => {
        const trial = db.one(builder.selectFrom('trials').selectAll().where('id', '=', id));
        if (!trial) throw new BadInputError(`Trial ${id} is not in the catalog; nothing was changed.`);
        if (trial.closed_at !== null) {
          if (trial.decision === decision) return;
          throw new BadInputError(`Trial ${id} was closed with '${trial.decision}'; '${decision}' came too late and changed nothing.`);
        }
        db.run(
          builder
            .updateTable('trials')
            .set({ decision, closed_at: at, evidence: json(evidence) })
            .where('id', '=', id),
        );
      });
    },

    /** In the order they were opened. */
    trials(hotkey: string): TrialRecord[] {
      return db.all(builder.selectFrom('trials').selectAll().where('hotkey', '=', hotkey).orderBy('opened_at').orderBy('id')).map(toTrial);
    },
  };
  return self;
}
