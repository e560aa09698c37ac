/** Challenge sets, journaled answers, and how far the journal was read. */
import type { Label, Pool } from '../../domain/contracts/common.js';
import type { JournalRecord } from '../../domain/contracts/miner.js';
import type { Catalog, TrafficRow } from '../ports.js';
import type { CatalogDatabase, Synchronous } from './database.js';
import { builder, chunks } from './query.js';
import { json } from './rows.js';

export function trafficPart(
  db: CatalogDatabase,
): Pick<Synchronous<Catalog>, 'addChallengeSet' | 'addTraffic' | 'traffic' | 'journalOffsets' | 'setJournalOffset'> {
  const self = {
    addChallengeSet(set: Parameters<Catalog['addChallengeSet']>[0], rows: Parameters<Catalog['addChallengeSet']>[1]): void {
      db.change(() => {
        const isNew = db.run(
          builder
            .insertInto('challenge_sets')
            .values({ digest: set.digest, profile: set.profile, seed: set.seed, purpose: set.purpose, turn: set.turn, at: set.at })
            .onConflict((oc) => oc.column('digest').doNothing()),
        );
        if (!isNew) return;
        let idx = 0;
        for (const part of chunks(rows)) {
          db.run(
            builder.insertInto('challenges').values(
              part.map((row) => ({
                set_digest: set.digest,
                idx: idx++,
                digest: row.digest,
                parent: row.parent,
                pool: row.pool,
                grp: row.group,
                label: row.label,
                level: row.level,
              })),
            ),
          );
        }
      });
    },

    addTraffic(rows: readonly JournalRecord[]): { added: number } {
      return db.change(() => {
        let added = 0;
        for (const part of chunks(rows)) {
          added += db.run(
            builder
              .insertInto('traffic')
              .values(
                part.map((row) => ({
                  id: row.id,
                  at: row.at,
                  image: row.image,
                  bytes: row.bytes,
                  prediction: row.prediction,
                  votes: json(row.votes),
                  latency_ms: row.latencyMs,
                  validator: row.validator,
                  model: row.model,
                  generation: row.generation,
                  shadow: row.shadow === null ? null : json(row.shadow),
                  shadow_trial: row.shadow?.trial ?? null,
                })),
              )
              .onConflict((oc) => oc.column('id').doNothing()),
          );
        }
        return { added };
      });
    },

    /**
     * Oldest first; with a limit, the newest `limit` of them. `sinceMs` is inclusive; `model` is the model that answered.
     * An image in several challenge sets is given with the filter's set, else with the newest.
     */
    traffic(filter: Parameters<Catalog['traffic']>[0] = {}): TrafficRow[] {
      let query = builder.selectFrom('traffic').selectAll().orderBy('at', 'desc').orderBy('id', 'desc');
      if (filter.sinceMs !== undefined) query = query.where('at', '>=', filter.sinceMs);
      if (filter.model !== undefined) query = query.where('model', '=', filter.model);
      if (filter.trial !== undefined) query = query.where('shadow_trial', '=', filter.trial);
      if (filter.set !== undefined)
        query = query.where('image', 'in', builder.selectFrom('challenges').select('digest').where('set_digest', '=', filter.set));
      if (filter.limit !== undefined) query = query.limit(filter.limit);
      const rows = db.all(query).reverse();
      const challenges = new Map<string, NonNullable<TrafficRow['challenge']>>();
      for (const part of chunks([...new Set(rows.map((row) => row.image))])) {
        let join = builder
          .selectFrom('challenges')
          .innerJoin('challenge_sets', 'challenge_sets.digest', 'challenges.set_digest')
          .select(['challenges.digest', 'set_digest', 'parent', 'pool', 'grp', 'label', 'level'])
          .where('challenges.digest', 'in', [...part])
          // The newest set last, so that it is the one that stays.
          .orderBy('challenge_sets.at')
          .orderBy('set_digest')
          .orderBy('idx', 'desc');
        if (filter.set !== undefined) join = join.where('set_digest', '=', filter.set);
        for (const row of db.all(join)) {
          challenges.set(row.digest, {
            set: row.set_digest,
            parent: row.parent,
            pool: row.pool as Pool,
            group: row.grp,
            label: row.label as Label | null,
            level: row.level,
          });
        }
      }
      return rows.map((row) => ({
        v: 1,
        id: row.id,
        at: row.at,
        image: row.image,
        bytes: row.bytes,
        prediction: row.prediction,
        votes: JSON.parse(row.votes) as Record<string, number>,
        latencyMs: row.latency_ms,
        validator: row.validator,
        model: row.model,
        generation: row.generation,
        shadow: row.shadow === null ? null : (JSON.parse(row.shadow) as JournalRecord['shadow']),
        challenge: challenges.get(row.image) ?? null,
      }));
    },

    journalOffsets(): Record<string, number> {
      return Object.fromEntries(
        db.all(builder.selectFrom('journal_offsets').selectAll().orderBy('segment')).map((row) => [row.segment, row.bytes]),
      );
    },

    /** Only ever forward: a late repetition of an older call changes nothing. */
    setJournalOffset(segment: string, bytes: number): void {
      db.change(() =>
        db.run(
          builder
            .insertInto('journal_offsets')
            .values({ segment, bytes })
            .onConflict((oc) =>
              oc
                .column('segment')
                .doUpdateSet((eb) => ({ bytes: eb.ref('excluded.bytes') }))
                .whereRef('excluded.bytes', '>', 'journal_offsets.bytes'),
            ),
        ),
      );
    },
  };
  return self;
}
