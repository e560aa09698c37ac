/**
 * Ports: what the flywheel needs of the world, as narrow interfaces. Adapters live in the folders beside this file;
 * activities are factories over these ports, so that a test hands them another adapter.
 */
import type { Digest, ImageRow, Pool, TruthKind, Label } from '../domain/contracts/common.js';
import type { ChampionPointer, JournalRecord } from '../domain/contracts/miner.js';
import type { JobSpec } from '../domain/contracts/jobs.js';

/** Content-addressed, immutable objects. `put` twice with the same bytes is one object. */
export interface ObjectStore {
  /** @returns the SHA-256 of the bytes. Durable when it resolves (written aside, synced, renamed). */
  put(bytes: Uint8Array): Promise<Digest>;
  /** Moves or copies a file in. */
  putFile(path: string): Promise<Digest>;
  /** @throws ObjectMissingError, ObjectCorruptError (bytes do not hash to the digest) */
  get(digest: Digest): Promise<Buffer>;
  has(digest: Digest): Promise<boolean>;
  /** Local path for readers in this machine; verified on first use. */
  path(digest: Digest): string;
  /** JSON Lines helpers: rows are written in the given order, one compact JSON object a line, '\n' after each. */
  putJsonl(rows: Iterable<unknown>): Promise<Digest>;
  getJsonl<T>(digest: Digest, parse: (row: unknown) => T): Promise<T[]>;
}

/** One neuron of the subnet's metagraph. */
export interface Neuron {
  uid: number;
  /** SS58 address */
  hotkey: string;
  validatorPermit: boolean;
  /** in TAO or alpha, as the source gives it; it orders validators and nothing else */
  stake: number;
}

/** Who is who on the subnet: a file, or the chain. The last good list holds whatever happens to the source. */
export interface MetagraphSource {
  /** what it is, for logs and status: `file PATH`, `chain ENDPOINT netuid N` */
  readonly name: string;
  /** the last good list, empty until there is one; replaced as a whole, never changed in place */
  readonly neurons: readonly Neuron[];
  /** when that list was read at its source, ms since the epoch; 0 while there is none */
  readonly asOf: number;
  /** why nothing newer can be had: what happened, and that the last good list holds; null when all is well */
  readonly problem: string | null;
  /** how the miner's own address stands on the chain, for people; absent or null where nothing is advertised */
  readonly address?: string | null;
  /** Calls back after `neurons` or `problem` changed. @returns ends it */
  onChange(listener: () => void): () => void;
  /** Looks at the source now. Never rejects: what is wrong is in `problem` afterwards. */
  reload(): Promise<void>;
  /** Ends watching, timers and connections. */
  close(): Promise<void>;
}

/** A model known to the catalog; its id is its name, its bytes the bundle. */
export interface ModelRecord {
  id: string;
  bundle: Digest;
  /** `trained` object: what an incremental retrain starts from */
  trained: Digest;
  parent: Digest | null;
  turn: string;
  status: 'candidate' | 'trial' | 'champion' | 'retired' | 'rejected';
  createdAt: number;
  /** JSON: metrics by split, gate evidence */
  evidence: unknown;
}

export interface ChampionRecord {
  hotkey: string;
  pointer: ChampionPointer;
  modelId: string;
  promotedAt: number;
  /** when it was last submitted to the subnet (or written to the publishable folder), ms; decay counts from here */
  submittedAt: number;
}

export interface TrialRecord {
  id: string;
  hotkey: string;
  champion: Digest;
  candidate: Digest;
  openedAt: number;
  closedAt: number | null;
  simulated: boolean;
  decision: 'promote' | 'keep' | 'continue' | null;
  evidence: unknown;
}

export interface TurnRecord {
  id: string;
  startedAt: number;
  finishedAt: number | null;
  /** JSON: the parts of the summary, filled in stage by stage */
  summary: Record<string, unknown>;
}

export interface LedgerEntry {
  /** the workflow id of the job: one entry a job, whatever is retried */
  job: string;
  backend: string;
  reservedCents: number;
  actualCents: number | null;
  /** month the cost counts for, YYYY-MM */
  month: string;
  status: 'reserved' | 'running' | 'settled' | 'released';
}

/** A label with its provenance; the newest of the highest kind (truth > verified > consensus) holds. */
export interface LabelRecord {
  digest: Digest;
  label: Label;
  kind: TruthKind;
  /** who says so: data set, person, or turn and members */
  provenance: string;
  weight: number;
  at: number;
}

export interface ReviewItem {
  digest: Digest;
  turn: string;
  reason: 'disagreement' | 'sample';
  /** what the models would say, null when they disagree */
  proposed: Label | null;
  votes: Record<string, number>;
  askedAt: number;
  answer: Label | null;
  answeredAt: number | null;
}

/** A journaled answer, as ingested. */
export interface TrafficRow extends JournalRecord {
  /** known when the image is one of our own simulated challenges */
  challenge: { set: Digest; parent: Digest; pool: Pool; group: string; label: Label | null; level: number } | null;
}

/**
 * Everything said about objects. One process writes, in a worker thread (WAL, busy time-out, immediate transactions);
 * all methods are idempotent. What must survive a lost Temporal database is here.
 */
export interface Catalog {
  /** Inserts images that are new (by digest); pool, group and label of a known one do not change. @throws LeakError when a derived row's parents are unknown, of two pools, or its pool is not theirs */
  addImages(rows: readonly ImageRow[], importedAt: number): Promise<{ added: number; known: number }>;
  images(filter?: { pools?: readonly Pool[]; provider?: string | null; digests?: readonly Digest[] }): Promise<ImageRow[]>;
  addLabels(rows: readonly LabelRecord[]): Promise<number>;
  labels(digests?: readonly Digest[]): Promise<LabelRecord[]>;
  askReview(rows: readonly Omit<ReviewItem, 'answer' | 'answeredAt'>[]): Promise<number>;
  answerReview(digest: Digest, answer: Label, at: number): Promise<boolean>;
  reviews(filter?: { turn?: string; open?: boolean }): Promise<ReviewItem[]>;

  addChallengeSet(
    set: { digest: Digest; profile: string; seed: number; purpose: string; turn: string; at: number },
    rows: readonly { digest: Digest; parent: Digest; pool: Pool; group: string; label: Label | null; level: number }[],
  ): Promise<void>;
  /** Idempotent by record id. */
  addTraffic(rows: readonly JournalRecord[]): Promise<{ added: number }>;
  traffic(filter?: { sinceMs?: number; set?: Digest; model?: Digest; trial?: string; limit?: number }): Promise<TrafficRow[]>;
  /** How far each journal segment was ingested, in bytes. */
  journalOffsets(): Promise<Record<string, number>>;
  setJournalOffset(segment: string, bytes: number): Promise<void>;

  startTurn(id: string, at: number): Promise<TurnRecord>;
  /** Merges the patch into the turn's summary, top-level key by key. */
  patchTurn(id: string, patch: Record<string, unknown>, finishedAt?: number): Promise<void>;
  turn(id: string): Promise<TurnRecord | null>;
  turns(limit: number): Promise<TurnRecord[]>;

  addModel(model: ModelRecord): Promise<void>;
  setModelStatus(id: string, status: ModelRecord['status'], evidence?: unknown): Promise<void>;
  model(idOrBundle: string): Promise<ModelRecord | null>;
  models(): Promise<ModelRecord[]>;

  champion(hotkey: string): Promise<ChampionRecord | null>;
  /** Compare-and-set: succeeds when the stored generation is `expected` (0: none yet), or when exactly this pointer is already stored. @throws StaleGenerationError */
  setChampion(next: ChampionRecord, expected: number): Promise<ChampionRecord>;
  setSubmitted(hotkey: string, at: number): Promise<void>;
  /** @returns true when this call recorded it, false when it was already sent */
  recordReminder(hotkey: string, submittedAt: number, day: number, at: number): Promise<boolean>;
  reminders(hotkey: string): Promise<{ submittedAt: number; day: number; at: number }[]>;

  openTrial(trial: TrialRecord): Promise<void>;
  closeTrial(id: string, decision: 'promote' | 'keep', evidence: unknown, at: number): Promise<void>;
  trials(hotkey: string): Promise<TrialRecord[]>;

  /** Reserves before anything is bought. The same job reserves once. @throws BudgetExceededError */
  reserve(entry: { job: string; backend: string; cents: number; month: string }, monthlyBudgetCents: number): Promise<LedgerEntry>;
  settle(job: string, actualCents: number): Promise<void>;
  ledger(month?: string): Promise<LedgerEntry[]>;

  /** Consistent online copy. */
  backupTo(path: string): Promise<void>;
  close(): Promise<void>;
}

/** A machine that runs jobs. Named before it is created; adopted, never launched twice. */
export interface GpuBackend {
  readonly kind: string;
  /** Cents an hour, and the cap that a reservation is made from. */
  offer(maxSeconds: number): Promise<{ centsPerHour: number; reserveCents: number }>;
  /** Starts the job, or adopts the running or finished one of that name. */
  launchOrAdopt(spec: JobSpec, limits: { maxSeconds: number; nice: number }): Promise<{ adopted: boolean }>;
  status(
    name: string,
  ): Promise<
    | { state: 'running'; progress: import('../domain/contracts/jobs.js').JobProgress | null }
    | { state: 'ended'; exitCode: number | null; logTail: string }
    | { state: 'unknown' }
  >;
  /** SIGTERM, a grace, SIGKILL. Resolves when it is gone. Ending what is gone is no error. */
  end(name: string, graceMs: number): Promise<void>;
  listOwned(): Promise<string[]>;
}

/** Where a public model repository is made. */
export interface ModelHub {
  readonly kind: string;
  /** Publishes a folder with weights, config and model_card.json. Idempotent by version. */
  publish(folder: string, version: string): Promise<{ repo: string; revision: string }>;
}

/** The subnet's application server, where a hotkey registers its model. */
export interface SubnetRegistry {
  readonly kind: string;
  register(submission: { hotkey: string; repo: string; version: string; submittedAt: number }): Promise<{ detail: string }>;
}

/** Tells the operator. Never throws: a message that cannot be delivered is logged. */
export interface Notifier {
  notify(message: { kind: 'reminder' | 'promotion' | 'trouble'; title: string; text: string; at: number }): Promise<void>;
}
