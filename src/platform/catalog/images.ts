/** Images, their labels, and what a person is asked about them. */
import type { ImageRow, Label } from '../../domain/contracts/common.js';
import { LeakError } from '../../domain/errors.js';
import type { Catalog, LabelRecord, ReviewItem } from '../ports.js';
import type { CatalogDatabase, Synchronous } from './database.js';
import { builder, chunks } from './query.js';
import { json, toImage, toLabel, toReview } from './rows.js';

/** Kinds of truth, the strongest first. */
const KIND_ORDER: Record<string, number> = { truth: 0, verified: 1, consensus: 2, none: 3 };

export function imagesPart(
  db: CatalogDatabase,
): Pick<Synchronous<Catalog>, 'addImages' | 'images' | 'addLabels' | 'labels' | 'askReview' | 'answerReview' | 'reviews'> {
  const self = {
    addImages(rows: readonly ImageRow[], importedAt: number): { added: number; known: number } {
      return db.change(() => {
        const batch = new Map<string, ImageRow>();
        for (const row of rows) if (!batch.has(row.digest)) batch.set(row.digest, row);
        const parents = [...new Set(rows.flatMap((row) => row.parents))];
        const stored = new Map(self.images({ digests: [...new Set([...batch.keys(), ...parents])] }).map((row) => [row.digest, row]));
        for (const row of rows) refuseLeak(row, (digest) => stored.get(digest) ?? batch.get(digest));
        let added = 0;
        for (const part of chunks([...batch.values()].filter((row) => !stored.has(row.digest)))) {
          added += db.run(
            builder.insertInto('images').values(
              part.map((row) => ({
                digest: row.digest,
                label: row.label,
                truth: row.truth,
                pool: row.pool,
                grp: row.group,
                source: row.source,
                parents: json(row.parents),
                provider: row.provider,
                intent: row.intent,
                weight: row.weight,
                width: row.width,
                height: row.height,
                imported_at: importedAt,
              })),
            ),
          );
        }
        return { added, known: rows.length - added };
      });
    },

    /** Sorted by digest. */
    images(filter: Parameters<Catalog['images']>[0] = {}): ImageRow[] {
      const base = (digests?: readonly string[]) => {
        let query = builder.selectFrom('images').selectAll().orderBy('digest');
        if (filter.pools) query = query.where('pool', 'in', [...filter.pools]);
        if (filter.provider !== undefined)
          query = filter.provider === null ? query.where('provider', 'is', null) : query.where('provider', '=', filter.provider);
        if (digests) query = query.where('digest', 'in', [...digests]);
        return query;
      };
      if (filter.pools?.length === 0) return [];
      if (!filter.digests) return db.all(base()).map(toImage);
      const rows: ImageRow[] = [];
      // Sorted first, so that the parts are in order one after the other.
      for (const part of chunks([...new Set(filter.digests)].sort())) rows.push(...db.all(base(part)).map(toImage));
      return rows;
    },

    /** @returns how many said something new; a newer word of the same kind and provenance replaces the older */
    addLabels(rows: readonly LabelRecord[]): number {
      return db.change(() => {
        let changed = 0;
        for (const part of chunks(rows)) {
          // One row by one: the same image may be twice in a call, and an upsert can't touch one row twice.
          for (const row of part) {
            changed += db.run(
              builder
                .insertInto('labels')
                .values({
                  digest: row.digest,
                  kind: row.kind,
                  provenance: row.provenance,
                  label: row.label,
                  weight: row.weight,
                  at: row.at,
                })
                .onConflict((oc) =>
                  oc
                    .columns(['digest', 'kind', 'provenance'])
                    .doUpdateSet((eb) => ({
                      label: eb.ref('excluded.label'),
                      weight: eb.ref('excluded.weight'),
                      at: eb.ref('excluded.at'),
                    }))
                    .whereRef('excluded.at', '>=', 'labels.at')
                    .where((eb) =>
                      eb.or([eb('excluded.label', '!=', eb.ref('labels.label')), eb('excluded.weight', '!=', eb.ref('labels.weight'))]),
                    ),
                ),
            );
          }
        }
        return changed;
      });
    },

    /** One row an image: the label that holds, the newest of the strongest kind. Sorted by digest. */
    labels(digests?: readonly string[]): LabelRecord[] {
      const base = builder.selectFrom('labels').selectAll();
      const rows = digests
        ? [...chunks([...new Set(digests)])].flatMap((part) => db.all(base.where('digest', 'in', [...part])))
        : db.all(base);
      const holding = new Map<string, LabelRecord>();
      for (const row of rows.map(toLabel)) {
        const other = holding.get(row.digest);
        if (!other || isStronger(row, other)) holding.set(row.digest, row);
      }
      return [...holding.values()].sort((a, b) => (a.digest < b.digest ? -1 : 1));
    },

    /** An image is asked about once; asking again changes nothing. @returns how many are new */
    askReview(rows: readonly Omit<ReviewItem, 'answer' | 'answeredAt'>[]): number {
      return db.change(() => {
        let added = 0;
        for (const part of chunks(rows)) {
          added += db.run(
            builder
              .insertInto('reviews')
              .values(
                part.map((row) => ({
                  digest: row.digest,
                  turn: row.turn,
                  reason: row.reason,
                  proposed: row.proposed,
                  votes: json(row.votes),
                  asked_at: row.askedAt,
                  answer: null,
                  answered_at: null,
                })),
              )
              .onConflict((oc) => oc.column('digest').doNothing()),
          );
        }
        return added;
      });
    },

    /**
     * Takes a person's answer and, in the same transaction, the verified label it means. A later answer replaces an earlier.
     * @returns false when nothing was asked about the image, or this very answer is there already
     */
    answerReview(digest: string, answer: Label, at: number): boolean {
      return db.change(() => {
        const item = db.one(builder.selectFrom('reviews').selectAll().where('digest', '=', digest));
        if (!item || item.answer === answer || (item.answered_at !== null && item.answered_at > at)) return false;
        db.run(builder.updateTable('reviews').set({ answer, answered_at: at }).where('digest', '=', digest));
        self.addLabels([{ digest, label: answer, kind: 'verified', provenance: `review:${item.turn}`, weight: 1, at }]);
        return true;
      });
    },

    /** In the order they were asked. */
    reviews(filter: { turn?: string; open?: boolean } = {}): ReviewItem[] {
      let query = builder.selectFrom('reviews').selectAll().orderBy('asked_at').orderBy('digest');
      if (filter.turn !== undefined) query = query.where('turn', '=', filter.turn);
      if (filter.open !== undefined) query = query.where('answer', filter.open ? 'is' : 'is not', null);
      return db.all(query).map(toReview);
    },
  };
  return self;
}

/** A derived image stays where its parents are; nothing is ever synthesised from the test pool. */
function refuseLeak(row: ImageRow, find: (digest: string) => ImageRow | undefined): void {
  if (row.parents.length === 0) return;
  const kept = 'None of these images was added.';
  for (const digest of row.parents) {
    const parent = find(digest);
    if (!parent)
      throw new LeakError(
        `Image ${row.digest} names a parent ${digest} that is not in the catalog, so its pool cannot be checked. ${kept}`,
      );
    if (parent.pool !== row.pool) {
      throw new LeakError(
        `Image ${row.digest} is meant for pool '${row.pool}', but its parent ${digest} is in '${parent.pool}': evidence would leak from one pool into another. ${kept}`,
      );
    }
  }
  if (row.pool === 'test' && row.provider !== null) {
    throw new LeakError(
      `Image ${row.digest} was synthesised by '${row.provider}' from images of the test pool, which is never synthesised from. ${kept}`,
    );
  }
}

function isStronger(a: LabelRecord, b: LabelRecord): boolean {
  const byKind = (KIND_ORDER[b.kind] ?? 9) - (KIND_ORDER[a.kind] ?? 9);
  if (byKind !== 0) return byKind > 0;
  // The same moment twice: the order of provenance decides, so that the same rows always give the same label.
  return a.at === b.at ? a.provenance > b.provenance : a.at > b.at;
}
