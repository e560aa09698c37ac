/**
 * The catalog on SQLite, synchronous: it runs in the writer's thread (read and write) and in readers (read only).
 * kysely builds the statements, better-sqlite3 runs them, each change in one immediate transaction.
 */
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync } from 'node:fs';
import path from 'node:path';
import Database from 'better-sqlite3';
import { DummyDriver, Kysely, SqliteAdapter, SqliteIntrospector, SqliteQueryCompiler, type Compilable, type InferResult } from 'kysely';
import type { ImageRow, Label, Pool, TruthKind } from '../../domain/contracts/common.js';
import type { JournalRecord } from '../../domain/contracts/miner.js';
import { BadInputError, BudgetExceededError, LeakError, StaleGenerationError } from '../../domain/errors.js';
import { explainWriteError } from '../fsutil.js';
import type {
  Catalog,
  ChampionRecord,
  LabelRecord,
  LedgerEntry,
  ModelRecord,
  ReviewItem,
  TrafficRow,
  TrialRecord,
  TurnRecord,
} from '../ports.js';
import { CatalogError, CatalogTooNewError, explainSqlite } from './errors.js';
import { releaseLock, takeLock } from './lock.js';
import { MIGRATIONS, SCHEMA_VERSION, type CatalogTables, type Row } from './schema.js';

/** How long a statement waits for another connection's lock, ms. */
const BUSY_MS = 10_000;
/** Rows an INSERT statement carries at once, and values an IN list: below SQLite's limit of variables. */
const CHUNK = 500;

/** The same methods, synchronous. */
export type Synchronous<T> = { [K in keyof T]: T[K] extends (...args: infer A) => Promise<infer R> ? (...args: A) => R : T[K] };

const builder = new Kysely<CatalogTables>({
  dialect: {
    createAdapter: () => new SqliteAdapter(),
    createDriver: () => new DummyDriver(),
    createIntrospector: (db) => new SqliteIntrospector(db),
    createQueryCompiler: () => new SqliteQueryCompiler(),
  },
});

function* chunks<T>(rows: readonly T[], size = CHUNK): Generator<readonly T[]> {
  for (let i = 0; i < rows.length; i += size) yield rows.slice(i, i + size);
}

function isPlainObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

const toImage = (row: Row<'images'>): ImageRow => ({
  digest: row.digest,
  label: row.label as Label | null,
  truth: row.truth as TruthKind,
  pool: row.pool as Pool,
  group: row.grp,
  source: row.source,
  parents: JSON.parse(row.parents) as string[],
  provider: row.provider,
  intent: row.intent as Label | null,
  weight: row.weight,
  width: row.width,
  height: row.height,
});

const toLabel = (row: Row<'labels'>): LabelRecord => ({
  digest: row.digest,
  label: row.label as Label,
  kind: row.kind as TruthKind,
  provenance: row.provenance,
  weight: row.weight,
  at: row.at,
});

const toReview = (row: Row<'reviews'>): ReviewItem => ({
  digest: row.digest,
  turn: row.turn,
  reason: row.reason as ReviewItem['reason'],
  proposed: row.proposed as Label | null,
  votes: JSON.parse(row.votes) as Record<string, number>,
  askedAt: row.asked_at,
  answer: row.answer as Label | null,
  answeredAt: row.answered_at,
});

const toTurn = (row: Row<'turns'>): TurnRecord => ({
  id: row.id,
  startedAt: row.started_at,
  finishedAt: row.finished_at,
  summary: JSON.parse(row.summary) as Record<string, unknown>,
});

const toModel = (row: Row<'models'>): ModelRecord => ({
  id: row.id,
  bundle: row.bundle,
  trained: row.trained,
  parent: row.parent,
  turn: row.turn,
  status: row.status as ModelRecord['status'],
  createdAt: row.created_at,
  evidence: JSON.parse(row.evidence) as unknown,
});

const toChampion = (row: Row<'champions'>): ChampionRecord => ({
  hotkey: row.hotkey,
  pointer: { generation: row.generation, digest: row.digest, previous: row.previous },
  modelId: row.model_id,
  promotedAt: row.promoted_at,
  submittedAt: row.submitted_at,
});

const toTrial = (row: Row<'trials'>): TrialRecord => ({
  id: row.id,
  hotkey: row.hotkey,
  champion: row.champion,
  candidate: row.candidate,
  openedAt: row.opened_at,
  closedAt: row.closed_at,
  simulated: row.simulated === 1,
  decision: row.decision as TrialRecord['decision'],
  evidence: JSON.parse(row.evidence) as unknown,
});

const toLedger = (row: Row<'ledger'>): LedgerEntry => ({
  job: row.job,
  backend: row.backend,
  reservedCents: row.reserved_cents,
  actualCents: row.actual_cents,
  month: row.month,
  status: row.status as LedgerEntry['status'],
});

const json = (value: unknown): string => JSON.stringify(value ?? null);

/** Kinds of truth, the strongest first. */
const KIND_ORDER: Record<string, number> = { truth: 0, verified: 1, consensus: 2, none: 3 };

/**
 * All methods of `Catalog`, synchronous. What each promises is said at the port; orders of lists are said here.
 * Every method may be repeated with the same arguments.
 */
export class CatalogStore implements Synchronous<Catalog> {
  private readonly statements = new Map<string, Database.Statement>();

  private constructor(
    private readonly sqlite: Database.Database,
    readonly file: string,
    private readonly lock: { file: string; token: string } | null,
  ) {}

  /**
   * Opens for writing: takes the lock and brings the tables to this version, both in one transaction.
   * @throws CatalogLockedError, CatalogTooNewError, CatalogError
   */
  static open(file: string, lock: { file: string; token: string }): CatalogStore {
    let sqlite: Database.Database | undefined;
    try {
      mkdirSync(path.dirname(file), { recursive: true });
      sqlite = new Database(file, { timeout: BUSY_MS });
      sqlite.pragma('journal_mode = WAL');
      // FULL, not NORMAL: a champion, a submission or a bought machine that was reported as committed must survive a power
      // loss too. A turn commits some hundred times, so that the extra sync costs next to nothing.
      sqlite.pragma('synchronous = FULL');
      sqlite.pragma('foreign_keys = ON');
      const store = new CatalogStore(sqlite, file, lock);
      try {
        sqlite
          .transaction(() => {
            takeLock(lock.file, lock.token);
            store.migrate();
          })
          .immediate();
      } catch (error) {
        releaseLock(lock.file, lock.token);
        throw error;
      }
      return store;
    } catch (error) {
      sqlite?.close();
      throw explainWriteError(explainSqlite(error, file), file);
    }
  }

  /** Opens for reading beside a writer. @throws BadInputError when there is no catalog yet; CatalogTooNewError; CatalogError */
  static openReadOnly(file: string): CatalogStore {
    if (!existsSync(file))
      throw new BadInputError(`There is no catalog at ${file} yet. Start the flywheel once (flywheel up), or name the right --home.`);
    let sqlite: Database.Database | undefined;
    try {
      sqlite = new Database(file, { readonly: true, fileMustExist: true, timeout: BUSY_MS });
      const store = new CatalogStore(sqlite, file, null);
      const version = store.version();
      if (version < SCHEMA_VERSION) {
        throw new CatalogError(
          `The catalog ${file} has schema ${version}, this program reads ${SCHEMA_VERSION}. Nothing was changed. Start the flywheel (flywheel up), which brings it up to date.`,
        );
      }
      return store;
    } catch (error) {
      sqlite?.close();
      throw explainSqlite(error, file);
    }
  }

  /** As `backupTo`, of a catalog of any schema, beside its writer. @returns the schema version it has */
  static copy(file: string, target: string): number {
    let sqlite: Database.Database | undefined;
    try {
      sqlite = new Database(file, { readonly: true, fileMustExist: true, timeout: BUSY_MS });
      const version = sqlite.prepare('select max(version) from schema_version').pluck().get() as number;
      new CatalogStore(sqlite, file, null).backupTo(target);
      return version;
    } catch (error) {
      throw explainSqlite(error, file);
    } finally {
      sqlite?.close();
    }
  }

  // --- images and labels

  addImages(rows: readonly ImageRow[], importedAt: number): { added: number; known: number } {
    return this.change(() => {
      const batch = new Map<string, ImageRow>();
      for (const row of rows) if (!batch.has(row.digest)) batch.set(row.digest, row);
      const parents = [...new Set(rows.flatMap((row) => row.parents))];
      const stored = new Map(this.images({ digests: [...new Set([...batch.keys(), ...parents])] }).map((row) => [row.digest, row]));
      for (const row of rows) this.refuseLeak(row, (digest) => stored.get(digest) ?? batch.get(digest));
      let added = 0;
      for (const part of chunks([...batch.values()].filter((row) => !stored.has(row.digest)))) {
        added += this.run(
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
  }

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
    if (!filter.digests) return this.all(base()).map(toImage);
    const rows: ImageRow[] = [];
    // Sorted first, so that the parts are in order one after the other.
    for (const part of chunks([...new Set(filter.digests)].sort())) rows.push(...this.all(base(part)).map(toImage));
    return rows;
  }

  /** @returns how many said something new; a newer word of the same kind and provenance replaces the older */
  addLabels(rows: readonly LabelRecord[]): number {
    return this.change(() => {
      let changed = 0;
      for (const part of chunks(rows)) {
        // One row by one: the same image may be twice in a call, and an upsert can't touch one row twice.
        for (const row of part) {
          changed += this.run(
            builder
              .insertInto('labels')
              .values({ digest: row.digest, kind: row.kind, provenance: row.provenance, label: row.label, weight: row.weight, at: row.at })
              .onConflict((oc) =>
                oc
                  .columns(['digest', 'kind', 'provenance'])
                  .doUpdateSet((eb) => ({ label: eb.ref('excluded.label'), weight: eb.ref('excluded.weight'), at: eb.ref('excluded.at') }))
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
  }

  /** One row an image: the label that holds, the newest of the strongest kind. Sorted by digest. */
  labels(digests?: readonly string[]): LabelRecord[] {
    const base = builder.selectFrom('labels').selectAll();
    const rows = digests
      ? [...chunks([...new Set(digests)])].flatMap((part) => this.all(base.where('digest', 'in', [...part])))
      : this.all(base);
    const holding = new Map<string, LabelRecord>();
    for (const row of rows.map(toLabel)) {
      const other = holding.get(row.digest);
      if (!other || isStronger(row, other)) holding.set(row.digest, row);
    }
    return [...holding.values()].sort((a, b) => (a.digest < b.digest ? -1 : 1));
  }

  /** An image is asked about once; asking again changes nothing. @returns how many are new */
  askReview(rows: readonly Omit<ReviewItem, 'answer' | 'answeredAt'>[]): number {
    return this.change(() => {
      let added = 0;
      for (const part of chunks(rows)) {
        added += this.run(
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
  }

  /**
   * Takes a person's answer and, in the same transaction, the verified label it means. A later answer replaces an earlier.
   * @returns false when nothing was asked about the image, or this very answer is there already
   */
  answerReview(digest: string, answer: Label, at: number): boolean {
    return this.change(() => {
      const item = this.one(builder.selectFrom('reviews').selectAll().where('digest', '=', digest));
      if (!item || item.answer === answer || (item.answered_at !== null && item.answered_at > at)) return false;
      this.run(builder.updateTable('reviews').set({ answer, answered_at: at }).where('digest', '=', digest));
      this.addLabels([{ digest, label: answer, kind: 'verified', provenance: `review:${item.turn}`, weight: 1, at }]);
      return true;
    });
  }

  /** In the order they were asked. */
  reviews(filter: { turn?: string; open?: boolean } = {}): ReviewItem[] {
    let query = builder.selectFrom('reviews').selectAll().orderBy('asked_at').orderBy('digest');
    if (filter.turn !== undefined) query = query.where('turn', '=', filter.turn);
    if (filter.open !== undefined) query = query.where('answer', filter.open ? 'is' : 'is not', null);
    return this.all(query).map(toReview);
  }

  // --- challenges and traffic

  addChallengeSet(set: Parameters<Catalog['addChallengeSet']>[0], rows: Parameters<Catalog['addChallengeSet']>[1]): void {
    this.change(() => {
      const isNew = this.run(
        builder
          .insertInto('challenge_sets')
          .values({ digest: set.digest, profile: set.profile, seed: set.seed, purpose: set.purpose, turn: set.turn, at: set.at })
          .onConflict((oc) => oc.column('digest').doNothing()),
      );
      if (!isNew) return;
      let idx = 0;
      for (const part of chunks(rows)) {
        this.run(
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
  }

  addTraffic(rows: readonly JournalRecord[]): { added: number } {
    return this.change(() => {
      let added = 0;
      for (const part of chunks(rows)) {
        added += this.run(
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
  }

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
    const rows = this.all(query).reverse();
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
      for (const row of this.all(join)) {
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
  }

  journalOffsets(): Record<string, number> {
    return Object.fromEntries(
      this.all(builder.selectFrom('journal_offsets').selectAll().orderBy('segment')).map((row) => [row.segment, row.bytes]),
    );
  }

  /** Only ever forward: a late repetition of an older call changes nothing. */
  setJournalOffset(segment: string, bytes: number): void {
    this.change(() =>
      this.run(
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
  }

  // --- turns and models

  startTurn(id: string, at: number): TurnRecord {
    return this.change(() => {
      this.run(
        builder
          .insertInto('turns')
          .values({ id, started_at: at, finished_at: null, summary: '{}' })
          .onConflict((oc) => oc.column('id').doNothing()),
      );
      return this.turn(id)!;
    });
  }

  /** @throws BadInputError when the turn was never started */
  patchTurn(id: string, patch: Record<string, unknown>, finishedAt?: number): void {
    this.change(() => {
      const turn = this.turn(id);
      if (!turn) throw new BadInputError(`Turn ${id} is not in the catalog; nothing was changed.`);
      this.run(
        builder
          .updateTable('turns')
          .set({ summary: json({ ...turn.summary, ...patch }), ...(finishedAt === undefined ? {} : { finished_at: finishedAt }) })
          .where('id', '=', id),
      );
    });
  }

  turn(id: string): TurnRecord | null {
    const row = this.one(builder.selectFrom('turns').selectAll().where('id', '=', id));
    return row ? toTurn(row) : null;
  }

  /** Newest first. */
  turns(limit: number): TurnRecord[] {
    return this.all(builder.selectFrom('turns').selectAll().orderBy('started_at', 'desc').orderBy('id', 'desc').limit(limit)).map(toTurn);
  }

  /** @throws BadInputError when the name stands for another bundle already */
  addModel(model: ModelRecord): void {
    this.change(() => {
      const known = this.one(builder.selectFrom('models').selectAll().where('id', '=', model.id));
      if (known && known.bundle !== model.bundle) {
        throw new BadInputError(
          `Model ${model.id} is in the catalog with bundle ${known.bundle}, not ${model.bundle}. Nothing was changed; a new model needs a new name.`,
        );
      }
      if (known) return;
      this.run(
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
  }

  /** Evidence that is an object is merged into the stored one, key by key. @throws BadInputError for an unknown model */
  setModelStatus(id: string, status: ModelRecord['status'], evidence?: unknown): void {
    this.change(() => {
      const row = this.one(builder.selectFrom('models').selectAll().where('id', '=', id));
      if (!row) throw new BadInputError(`Model ${id} is not in the catalog; nothing was changed.`);
      const before = JSON.parse(row.evidence) as unknown;
      const merged =
        evidence === undefined ? before : isPlainObject(before) && isPlainObject(evidence) ? { ...before, ...evidence } : evidence;
      this.run(
        builder
          .updateTable('models')
          .set({ status, evidence: json(merged) })
          .where('id', '=', id),
      );
    });
  }

  /** By name; else the newest with that bundle. */
  model(idOrBundle: string): ModelRecord | null {
    const row =
      this.one(builder.selectFrom('models').selectAll().where('id', '=', idOrBundle)) ??
      this.one(
        builder
          .selectFrom('models')
          .selectAll()
          .where('bundle', '=', idOrBundle)
          .orderBy('created_at', 'desc')
          .orderBy('id', 'desc')
          .limit(1),
      );
    return row ? toModel(row) : null;
  }

  /** Oldest first. */
  models(): ModelRecord[] {
    return this.all(builder.selectFrom('models').selectAll().orderBy('created_at').orderBy('id')).map(toModel);
  }

  // --- champion, reminders, trials

  champion(hotkey: string): ChampionRecord | null {
    const row = this.one(builder.selectFrom('champions').selectAll().where('hotkey', '=', hotkey).orderBy('generation', 'desc').limit(1));
    return row ? toChampion(row) : null;
  }

  setChampion(next: ChampionRecord, expected: number): ChampionRecord {
    return this.change(() => {
      const stored = this.champion(next.hotkey);
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
      this.run(
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
      return this.champion(next.hotkey)!;
    });
  }

  /** @throws BadInputError when the hotkey has no champion */
  setSubmitted(hotkey: string, at: number): void {
    this.change(() => {
      const stored = this.champion(hotkey);
      if (!stored) throw new BadInputError(`Hotkey ${hotkey} has no champion that could have been submitted; nothing was changed.`);
      this.run(
        builder
          .updateTable('champions')
          .set({ submitted_at: at })
          .where('hotkey', '=', hotkey)
          .where('generation', '=', stored.pointer.generation),
      );
    });
  }

  recordReminder(hotkey: string, submittedAt: number, day: number, at: number): boolean {
    return this.change(
      () =>
        this.run(
          builder
            .insertInto('reminders')
            .values({ hotkey, submitted_at: submittedAt, day, at })
            .onConflict((oc) => oc.columns(['hotkey', 'submitted_at', 'day']).doNothing()),
        ) === 1,
    );
  }

  /** By submission, then day. */
  reminders(hotkey: string): { submittedAt: number; day: number; at: number }[] {
    return this.all(builder.selectFrom('reminders').selectAll().where('hotkey', '=', hotkey).orderBy('submitted_at').orderBy('day')).map(
      (row) => ({
        submittedAt: row.submitted_at,
        day: row.day,
        at: row.at,
      }),
    );
  }

  openTrial(trial: TrialRecord): void {
    this.change(() =>
      this.run(
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
  }

  /** The first decision holds. @throws BadInputError for an unknown trial, or one closed with another decision */
  closeTrial(id: string, decision: 'promote' | 'keep', evidence: unknown, at: number): void {
    this.change(() => {
      const trial = this.one(builder.selectFrom('trials').selectAll().where('id', '=', id));
      if (!trial) throw new BadInputError(`Trial ${id} is not in the catalog; nothing was changed.`);
      if (trial.closed_at !== null) {
        if (trial.decision === decision) return;
        throw new BadInputError(`Trial ${id} was closed with '${trial.decision}'; '${decision}' came too late and changed nothing.`);
      }
      this.run(
        builder
          .updateTable('trials')
          .set({ decision, closed_at: at, evidence: json(evidence) })
          .where('id', '=', id),
      );
    });
  }

  /** In the order they were opened. */
  trials(hotkey: string): TrialRecord[] {
    return this.all(builder.selectFrom('trials').selectAll().where('hotkey', '=', hotkey).orderBy('opened_at').orderBy('id')).map(toTrial);
  }

  // --- ledger

  reserve(entry: { job: string; backend: string; cents: number; month: string }, monthlyBudgetCents: number): LedgerEntry {
    return this.change(() => {
      const known = this.entry(entry.job);
      if (known) return known;
      if (!Number.isFinite(entry.cents) || entry.cents < 0 || !/^\d{4}-\d{2}$/.test(entry.month)) {
        throw new BadInputError(
          `Job ${entry.job} asked to reserve ${entry.cents} cents for month '${entry.month}'; expected cents >= 0 and YYYY-MM. Nothing was reserved.`,
        );
      }
      const spent = this.ledger(entry.month)
        .filter((row) => row.status !== 'released')
        .reduce((sum, row) => sum + (row.actualCents ?? row.reservedCents), 0);
      if (spent + entry.cents > monthlyBudgetCents) {
        throw new BudgetExceededError(
          `Job ${entry.job} may cost up to ${entry.cents} cents; of the ${monthlyBudgetCents} cents for ${entry.month}, ${spent} are spent or reserved. ` +
            'Nothing was bought. Raise gpu.monthlyBudgetCents, or wait for the next month.',
        );
      }
      this.run(
        builder.insertInto('ledger').values({
          job: entry.job,
          backend: entry.backend,
          reserved_cents: entry.cents,
          actual_cents: null,
          month: entry.month,
          status: 'reserved',
        }),
      );
      return this.entry(entry.job)!;
    });
  }

  /** The first settlement holds. @throws BadInputError when nothing was reserved for the job, or the amount is none */
  settle(job: string, actualCents: number): void {
    this.change(() => {
      const known = this.entry(job);
      if (!known) throw new BadInputError(`Nothing was reserved for job ${job}, so it cannot be settled; nothing was changed.`);
      if (!Number.isFinite(actualCents) || actualCents < 0)
        throw new BadInputError(`Job ${job} cannot be settled with ${actualCents} cents; expected >= 0. Nothing was changed.`);
      if (known.status === 'settled') return;
      this.run(builder.updateTable('ledger').set({ actual_cents: actualCents, status: 'settled' }).where('job', '=', job));
    });
  }

  /** Sorted by month, then job. */
  ledger(month?: string): LedgerEntry[] {
    let query = builder.selectFrom('ledger').selectAll().orderBy('month').orderBy('job');
    if (month !== undefined) query = query.where('month', '=', month);
    return this.all(query).map(toLedger);
  }

  // --- the file itself

  /** One consistent state in one file (no WAL beside it), written aside, synced and renamed. */
  backupTo(target: string): void {
    const temporary = `${target}.tmp-${process.pid}`;
    try {
      rmSync(temporary, { force: true });
      this.sqlite.prepare('VACUUM INTO ?').run(temporary);
      const handle = openSync(temporary, 'r');
      try {
        fsyncSync(handle);
      } finally {
        closeSync(handle);
      }
      renameSync(temporary, target);
    } catch (error) {
      rmSync(temporary, { force: true });
      throw explainWriteError(explainSqlite(error, target), target);
    }
  }

  close(): void {
    if (!this.sqlite.open) return;
    this.sqlite.close();
    if (this.lock) releaseLock(this.lock.file, this.lock.token);
  }

  // --- inside

  private entry(job: string): LedgerEntry | null {
    const row = this.one(builder.selectFrom('ledger').selectAll().where('job', '=', job));
    return row ? toLedger(row) : null;
  }

  /** A derived image stays where its parents are; nothing is ever synthesised from the test pool. */
  private refuseLeak(row: ImageRow, find: (digest: string) => ImageRow | undefined): void {
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

  private version(): number {
    const tables = this.sqlite
      .prepare(`select name from sqlite_master where type = 'table' and name not like 'sqlite_%'`)
      .pluck()
      .all() as string[];
    if (tables.length === 0) return 0;
    if (!tables.includes('schema_version')) {
      throw new CatalogError(
        `${this.file} is an SQLite file of some other program (tables ${tables.slice(0, 5).join(', ')}). It was left as it is. Choose another --home.`,
      );
    }
    const version = (this.sqlite.prepare('select max(version) from schema_version').pluck().get() as number | null) ?? 0;
    if (version > SCHEMA_VERSION) {
      throw new CatalogTooNewError(
        `The catalog ${this.file} has schema ${version}; this program knows up to ${SCHEMA_VERSION}. It was left as it is. Use the newer version of the flywheel that wrote it, or restore a backup of the older one.`,
      );
    }
    return version;
  }

  /** Forward only. Runs inside the opening transaction. */
  private migrate(): void {
    const version = this.version();
    if (version === 0) {
      this.sqlite.exec('create table schema_version (version integer primary key, applied_at integer not null)');
    }
    for (const migration of MIGRATIONS) {
      if (migration.version <= version) continue;
      for (const step of migration.up(builder)) {
        const compiled = step.compile();
        this.sqlite.prepare(compiled.sql).run(...compiled.parameters);
      }
      this.sqlite
        .prepare(`insert into schema_version (version, applied_at) values (?, cast(unixepoch('subsec') * 1000 as integer))`)
        .run(migration.version);
    }
  }

  /** One immediate transaction (a nested call joins the outer one): all of it or nothing. */
  private change<T>(work: () => T): T {
    try {
      return this.sqlite.transaction(work).immediate();
    } catch (error) {
      throw explainSqlite(error, this.file);
    }
  }

  private statement(query: Compilable): { statement: Database.Statement; parameters: unknown[] } {
    const compiled = query.compile();
    let statement = this.statements.get(compiled.sql);
    if (!statement) {
      statement = this.sqlite.prepare(compiled.sql);
      if (this.statements.size > 500) this.statements.clear();
      this.statements.set(compiled.sql, statement);
    }
    return { statement, parameters: [...compiled.parameters] };
  }

  /** @returns rows changed */
  private run(query: Compilable): number {
    const { statement, parameters } = this.statement(query);
    return statement.run(...parameters).changes;
  }

  private all<Q extends Compilable<unknown>>(query: Q): InferResult<Q> {
    try {
      const { statement, parameters } = this.statement(query);
      return statement.all(...parameters) as InferResult<Q>;
    } catch (error) {
      throw explainSqlite(error, this.file);
    }
  }

  private one<O>(query: Compilable<O>): O | undefined {
    return (this.all(query) as O[])[0];
  }
}

function isStronger(a: LabelRecord, b: LabelRecord): boolean {
  const byKind = (KIND_ORDER[b.kind] ?? 9) - (KIND_ORDER[a.kind] ?? 9);
  if (byKind !== 0) return byKind > 0;
  // The same moment twice: the order of provenance decides, so that the same rows always give the same label.
  return a.at === b.at ? a.provenance > b.provenance : a.at > b.at;
}
