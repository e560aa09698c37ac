/** Turns and the models they made. */
import { BadInputError } from '../../domain/errors.js';
import type { Catalog, ModelRecord, TurnRecord } from '../ports.js';
import type { CatalogDatabase, Synchronous } from './database.js';
import { builder } from './query.js';
import { json, toModel, toTurn } from './rows.js';

export function modelsPart(
  db: CatalogDatabase,
): Pick<Synchronous<Catalog>, 'startTurn' | 'patchTurn' | 'turn' | 'turns' | 'addModel' | 'setModelStatus' | 'model' | 'models'> {
  const self = {
    startTurn(id: string, at: number): TurnRecord {
      return db.change(() => {
        db.run(
          builder
            .insertInto('turns')
            .values({ id, started_at: at, finished_at: null, summary: '{}' })
            .onConflict((oc) => oc.column('id').doNothing()),
        );
        return self.turn(id)!;
      });
    },

    /** @throws BadInputError when the turn was never started */
    patchTurn(id: string, patch: Record<string, unknown>, finishedAt?: number): void {
      db.change(() => {
        const turn = self.turn(id);
        if (!turn) throw new BadInputError(`Turn ${id} is not in the catalog; nothing was changed.`);
        db.run(
          builder
            .updateTable('turns')
            .set({ summary: json({ ...turn.summary, ...patch }), ...(finishedAt === undefined ? {} : { finished_at: finishedAt }) })
            .where('id', '=', id),
        );
      });
    },

    turn(id: string): TurnRecord | null {
      const row = db.one(builder.selectFrom('turns').selectAll().where('id', '=', id));
      return row ? toTurn(row) : null;
    },

    /** Newest first. */
    turns(limit: number): TurnRecord[] {
      return db.all(builder.selectFrom('turns').selectAll().orderBy('started_at', 'desc').orderBy('id', 'desc').limit(limit)).map(toTurn);
    },

    /** @throws BadInputError when the name stands for another bundle already */
    addModel(model: ModelRecord): void {
      db.change(() => {
        const known = db.one(builder.selectFrom('models').selectAll().where('id', '=', model.id));
        if (known && known.bundle !== model.bundle) {
          throw new BadInputError(
            `Model ${model.id} is in the catalog with bundle ${known.bundle}, not ${model.bundle}. Nothing was changed; a new model needs a new name.`,
          );
        }
        if (known) return;
        db.run(
          builder.insertInto('models').values({
            id: model.id,
            bundle: model.bundle,
            trained: model.trained,
            parent: model.parent,
            turn: model.turn,
            status: model.status,
            created_at: model.createdAt,
            evidence: json(model.evidence),
          }),
        );
      });
    },

    /** Evidence that is an object is merged into the stored one, key by key. @throws BadInputError for an unknown model */
    setModelStatus(id: string, status: ModelRecord['status'], evidence?: unknown): void {
      db.change(() => {
        const row = db.one(builder.selectFrom('models').selectAll().where('id', '=', id));
        if (!row) throw new BadInputError(`Model ${id} is not in the catalog; nothing was changed.`);
        const before = JSON.parse(row.evidence) as unknown;
        const merged =
          evidence === undefined ? before : isPlainObject(before) && isPlainObject(evidence) ? { ...before, ...evidence } : evidence;
        db.run(
          builder
            .updateTable('models')
            .set({ status, evidence: json(merged) })
            .where('id', '=', id),
        );
      });
    },

    /** By name; else the newest with that bundle. */
    model(idOrBundle: string): ModelRecord | null {
      const row =
        db.one(builder.selectFrom('models').selectAll().where('id', '=', idOrBundle)) ??
        db.one(
          builder
            .selectFrom('models')
            .selectAll()
            .where('bundle', '=', idOrBundle)
            .orderBy('created_at', 'desc')
            .orderBy('id', 'desc')
            .limit(1),
        );
      return row ? toModel(row) : null;
    },

    /** Oldest first. */
    models(): ModelRecord[] {
      return db.all(builder.selectFrom('models').selectAll().orderBy('created_at').orderBy('id')).map(toModel);
    },
  };
  return self;
}

function isPlainObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
