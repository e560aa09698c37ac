/**
 * Tables of the catalog and the forward-only migrations that make them. Written with kysely's builder, so that the same
 * steps can serve another SQL dialect. A step that was ever released is never edited: add the next one.
 */
import type { Compilable, Kysely, Selectable } from 'kysely';
import { sql } from 'kysely';

export interface ImagesTable {
  digest: string;
  label: number | null;
  truth: string;
  pool: string;
  grp: string;
  source: string;
  /** JSON array of digests */
  parents: string;
  provider: string | null;
  intent: number | null;
  weight: number;
  width: number;
  height: number;
  imported_at: number;
}
export interface LabelsTable {
  digest: string;
  kind: string;
  provenance: string;
  label: number;
  weight: number;
  at: number;
}
export interface ReviewsTable {
  digest: string;
  turn: string;
  reason: string;
  proposed: number | null;
  /** JSON object */
  votes: string;
  asked_at: number;
  answer: number | null;
  answered_at: number | null;
}
export interface ChallengeSetsTable {
  digest: string;
  profile: string;
  seed: number;
  purpose: string;
  turn: string;
  at: number;
}
export interface ChallengesTable {
  set_digest: string;
  /** place in the set: the same image may be drawn twice */
  idx: number;
  digest: string;
  parent: string;
  pool: string;
  grp: string;
  label: number | null;
  level: number;
}
export interface TrafficTable {
  id: string;
  at: number;
  image: string;
  bytes: number;
  prediction: number;
  votes: string;
  latency_ms: number;
  validator: string;
  model: string;
  generation: number;
  shadow: string | null;
  shadow_trial: string | null;
}
export interface JournalOffsetsTable {
  segment: string;
  bytes: number;
}
export interface TurnsTable {
  id: string;
  started_at: number;
  finished_at: number | null;
  summary: string;
}
export interface ModelsTable {
  id: string;
  bundle: string;
  trained: string;
  parent: string | null;
  turn: string;
  status: string;
  created_at: number;
  evidence: string;
}
export interface ChampionsTable {
  hotkey: string;
  generation: number;
  digest: string;
  previous: string | null;
  model_id: string;
  promoted_at: number;
  submitted_at: number;
}
export interface RemindersTable {
  hotkey: string;
  submitted_at: number;
  day: number;
  at: number;
}
export interface TrialsTable {
  id: string;
  hotkey: string;
  champion: string;
  candidate: string;
  opened_at: number;
  closed_at: number | null;
  simulated: number;
  decision: string | null;
  evidence: string;
}
export interface LedgerTable {
  job: string;
  backend: string;
  reserved_cents: number;
  actual_cents: number | null;
  month: string;
  status: string;
}

export interface CatalogTables {
  schema_version: { version: number; applied_at: number };
  images: ImagesTable;
  labels: LabelsTable;
  reviews: ReviewsTable;
  challenge_sets: ChallengeSetsTable;
  challenges: ChallengesTable;
  traffic: TrafficTable;
  journal_offsets: JournalOffsetsTable;
  turns: TurnsTable;
  models: ModelsTable;
  /** every champion there was; the one of the highest generation is the champion */
  champions: ChampionsTable;
  reminders: RemindersTable;
  trials: TrialsTable;
  ledger: LedgerTable;
}
export type Row<T extends keyof CatalogTables> = Selectable<CatalogTables[T]>;

export interface Migration {
  version: number;
  name: string;
  up(db: Kysely<CatalogTables>): Compilable[];
}

const first: Migration = {
  version: 1,
  name: 'first tables',
  up: (db) => [
    db.schema
      .createTable('images')
      .addColumn('digest', 'text', (c) => c.primaryKey())
      .addColumn('label', 'integer', (c) => c.check(sql`label in (0, 1)`))
      .addColumn('truth', 'text', (c) => c.notNull())
      .addColumn('pool', 'text', (c) => c.notNull().check(sql`pool in ('train', 'calibrate', 'validate', 'test', 'traffic')`))
      .addColumn('grp', 'text', (c) => c.notNull())
      .addColumn('source', 'text', (c) => c.notNull())
      .addColumn('parents', 'text', (c) => c.notNull())
      .addColumn('provider', 'text')
      .addColumn('intent', 'integer')
      .addColumn('weight', 'real', (c) => c.notNull())
      .addColumn('width', 'integer', (c) => c.notNull())
      .addColumn('height', 'integer', (c) => c.notNull())
      .addColumn('imported_at', 'integer', (c) => c.notNull()),
    db.schema.createIndex('images_pool').on('images').columns(['pool', 'digest']),
    db.schema
      .createTable('labels')
      .addColumn('digest', 'text', (c) => c.notNull())
      .addColumn('kind', 'text', (c) => c.notNull())
      .addColumn('provenance', 'text', (c) => c.notNull())
      .addColumn('label', 'integer', (c) => c.notNull().check(sql`label in (0, 1)`))
      .addColumn('weight', 'real', (c) => c.notNull())
      .addColumn('at', 'integer', (c) => c.notNull())
      .addPrimaryKeyConstraint('labels_key', ['digest', 'kind', 'provenance']),
    db.schema
      .createTable('reviews')
      .addColumn('digest', 'text', (c) => c.primaryKey())
      .addColumn('turn', 'text', (c) => c.notNull())
      .addColumn('reason', 'text', (c) => c.notNull())
      .addColumn('proposed', 'integer')
      .addColumn('votes', 'text', (c) => c.notNull())
      .addColumn('asked_at', 'integer', (c) => c.notNull())
      .addColumn('answer', 'integer', (c) => c.check(sql`answer in (0, 1)`))
      .addColumn('answered_at', 'integer'),
    db.schema
      .createTable('challenge_sets')
      .addColumn('digest', 'text', (c) => c.primaryKey())
      .addColumn('profile', 'text', (c) => c.notNull())
      .addColumn('seed', 'integer', (c) => c.notNull())
      .addColumn('purpose', 'text', (c) => c.notNull())
      .addColumn('turn', 'text', (c) => c.notNull())
      .addColumn('at', 'integer', (c) => c.notNull()),
    db.schema
      .createTable('challenges')
      .addColumn('set_digest', 'text', (c) => c.notNull().references('challenge_sets.digest'))
      .addColumn('idx', 'integer', (c) => c.notNull())
      .addColumn('digest', 'text', (c) => c.notNull())
      .addColumn('parent', 'text', (c) => c.notNull())
      .addColumn('pool', 'text', (c) => c.notNull())
      .addColumn('grp', 'text', (c) => c.notNull())
      .addColumn('label', 'integer')
      .addColumn('level', 'integer', (c) => c.notNull())
      .addPrimaryKeyConstraint('challenges_key', ['set_digest', 'idx']),
    db.schema.createIndex('challenges_digest').on('challenges').column('digest'),
    db.schema
      .createTable('traffic')
      .addColumn('id', 'text', (c) => c.primaryKey())
      .addColumn('at', 'real', (c) => c.notNull())
      .addColumn('image', 'text', (c) => c.notNull())
      .addColumn('bytes', 'integer', (c) => c.notNull())
      .addColumn('prediction', 'real', (c) => c.notNull())
      .addColumn('votes', 'text', (c) => c.notNull())
      .addColumn('latency_ms', 'real', (c) => c.notNull())
      .addColumn('validator', 'text', (c) => c.notNull())
      .addColumn('model', 'text', (c) => c.notNull())
      .addColumn('generation', 'integer', (c) => c.notNull())
      .addColumn('shadow', 'text')
      .addColumn('shadow_trial', 'text'),
    db.schema.createIndex('traffic_at').on('traffic').columns(['at', 'id']),
    db.schema.createIndex('traffic_image').on('traffic').column('image'),
    db.schema.createIndex('traffic_trial').on('traffic').column('shadow_trial'),
    db.schema
      .createTable('journal_offsets')
      .addColumn('segment', 'text', (c) => c.primaryKey())
      .addColumn('bytes', 'integer', (c) => c.notNull()),
    db.schema
      .createTable('turns')
      .addColumn('id', 'text', (c) => c.primaryKey())
      .addColumn('started_at', 'integer', (c) => c.notNull())
      .addColumn('finished_at', 'integer')
      .addColumn('summary', 'text', (c) => c.notNull()),
    db.schema
      .createTable('models')
      .addColumn('id', 'text', (c) => c.primaryKey())
      .addColumn('bundle', 'text', (c) => c.notNull())
      .addColumn('trained', 'text', (c) => c.notNull())
      .addColumn('parent', 'text')
      .addColumn('turn', 'text', (c) => c.notNull())
      .addColumn('status', 'text', (c) => c.notNull())
      .addColumn('created_at', 'integer', (c) => c.notNull())
      .addColumn('evidence', 'text', (c) => c.notNull()),
    db.schema.createIndex('models_bundle').on('models').column('bundle'),
    db.schema
      .createTable('champions')
      .addColumn('hotkey', 'text', (c) => c.notNull())
      .addColumn('generation', 'integer', (c) => c.notNull())
      .addColumn('digest', 'text', (c) => c.notNull())
      .addColumn('previous', 'text')
      .addColumn('model_id', 'text', (c) => c.notNull())
      .addColumn('promoted_at', 'integer', (c) => c.notNull())
      .addColumn('submitted_at', 'integer', (c) => c.notNull())
      .addPrimaryKeyConstraint('champions_key', ['hotkey', 'generation']),
    db.schema
      .createTable('reminders')
      .addColumn('hotkey', 'text', (c) => c.notNull())
      .addColumn('submitted_at', 'integer', (c) => c.notNull())
      .addColumn('day', 'integer', (c) => c.notNull())
      .addColumn('at', 'integer', (c) => c.notNull())
      .addPrimaryKeyConstraint('reminders_key', ['hotkey', 'submitted_at', 'day']),
    db.schema
      .createTable('trials')
      .addColumn('id', 'text', (c) => c.primaryKey())
      .addColumn('hotkey', 'text', (c) => c.notNull())
      .addColumn('champion', 'text', (c) => c.notNull())
      .addColumn('candidate', 'text', (c) => c.notNull())
      .addColumn('opened_at', 'integer', (c) => c.notNull())
      .addColumn('closed_at', 'integer')
      .addColumn('simulated', 'integer', (c) => c.notNull())
      .addColumn('decision', 'text')
      .addColumn('evidence', 'text', (c) => c.notNull()),
    db.schema.createIndex('trials_hotkey').on('trials').columns(['hotkey', 'opened_at']),
    db.schema
      .createTable('ledger')
      .addColumn('job', 'text', (c) => c.primaryKey())
      .addColumn('backend', 'text', (c) => c.notNull())
      .addColumn('reserved_cents', 'real', (c) => c.notNull())
      .addColumn('actual_cents', 'real')
      .addColumn('month', 'text', (c) => c.notNull())
      .addColumn('status', 'text', (c) => c.notNull()),
    db.schema.createIndex('ledger_month').on('ledger').column('month'),
  ],
};

export const MIGRATIONS: readonly Migration[] = [first];
export const SCHEMA_VERSION = MIGRATIONS[MIGRATIONS.length - 1]!.version;
