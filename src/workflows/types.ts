/** Inputs, results and messages of the workflows. Small by contract: ids, digests, numbers. */
import type { Digest, Metrics } from '../domain/contracts/common.js';
import type { ChampionPointer } from '../domain/contracts/miner.js';
import type { Figure } from '../domain/figures.js';
import type { JobKind } from '../domain/contracts/jobs.js';

/** Queue of everything but GPU work's watchers; one worker process serves it in the embedded set-up. */
export const TASK_QUEUE = 'flywheel';

export interface GpuJobInput<K extends JobKind = JobKind> {
  kind: K;
  /** the contract's input of that kind, validated again where the job starts */
  input: Record<string, unknown>;
  turn: string;
  /** one line for the Temporal UI */
  summary: string;
  /** wall-clock limit, s: travels with the machine as its dead-man timer */
  maxSeconds: number;
}

export interface GpuJobResult {
  output: Record<string, unknown>;
  /** seconds the job itself took, its last attempt */
  seconds: number;
  attempts: number;
}

export interface ModelRef {
  /** the model's name in the catalog */
  id: string;
  bundle: Digest;
  trained: Digest;
}

export interface TurnInput {
  hotkey: string;
  /** data set folder to import first, or null: what the catalog holds */
  data: string | null;
  /** the trial runs on accelerated traffic of the built-in validator: no real validator comes here */
  simulated: boolean;
}

/** Numbers of the configuration that the turn's order depends on; fixed when the turn begins. */
export interface TurnPlan {
  turn: string;
  /** how many turns came before */
  index: number;
  seed: number;
  /** object with the configuration this turn follows to its end */
  config: Digest;
  champion: ModelRef | null;
  hasImages: boolean;
  retrainAbove: number;
  reviewTimeoutSeconds: number;
  maxJobSeconds: number;
}

export type VerdictDecision = 'promote' | 'keep' | 'continue';

/** A verdict with its numbers; the rows behind it are an object. */
export interface VerdictNumbers {
  decision: VerdictDecision;
  reason: string;
  predictedReward: { champion: number; candidate: number; ci95: [number, number] };
  accuracy: { champion: number; candidate: number; difference: number; ci95: [number, number] };
  groups: { positive: number; negative: number };
  needGroups: number | null;
  n: number;
}

export interface TurnOutcome {
  turn: string;
  champion: ModelRef | null;
  candidate: ModelRef | null;
  /** the gate's verdict; the trial's follows in the lifecycle */
  gate: VerdictNumbers | null;
  /** what ended the turn without a candidate, null when there is one */
  withoutCandidate: string | null;
}

export interface TurnProgress {
  turn: string;
  stage: string;
  /** finished stages with their seconds */
  seconds: Record<string, number>;
  /** child workflow that runs now, null between them */
  child: string | null;
  /** what the turn waits for that is not of its own making, null when it works */
  waitsFor: string | null;
}

export interface CandidateMessage {
  model: ModelRef;
  turn: string;
  /** promoted without a trial because there is no champion yet */
  first: boolean;
  /** accelerated, simulated trial */
  simulated: boolean;
  /** configuration object of the turn */
  config: Digest;
  seed: number;
}

export interface TrialInput {
  id: string;
  hotkey: string;
  champion: ModelRef;
  candidate: ModelRef;
  turn: string;
  simulated: boolean;
  config: Digest;
  seed: number;
  lookEverySeconds: number;
  maxSeconds: number;
  maxJobSeconds: number;
  /** when the trial was opened, ms since the epoch; looks so far (carried over continue-as-new) */
  openedAt: number;
  looks: number;
}

export interface TrialOutcome {
  decision: VerdictDecision;
  verdict: VerdictNumbers | null;
  looks: number;
}

export interface ChampionState {
  pointer: ChampionPointer;
  model: ModelRef;
  previous: ModelRef | null;
  /** decay counts from here, ms since the epoch */
  submittedAt: number;
}

export interface LifecycleState {
  hotkey: string;
  champion: ChampionState | null;
  trial: { id: string; message: CandidateMessage; looks: number; openedAt: number; last: VerdictNumbers | null } | null;
  /** the newest candidate that waits for the running trial; a newer one supersedes it */
  waiting: CandidateMessage | null;
  /** reminders sent for this submission, by day */
  reminded: number[];
  /** last word on each of the last candidates, newest first */
  decided: { model: string; decision: VerdictDecision | 'superseded' | 'rejected'; reason: string; at: number }[];
}

export interface TrialReport {
  trial: string;
  looks: number;
  verdict: VerdictNumbers | null;
  final: boolean;
  /** why the trial broke off, null when it did not */
  failure: string | null;
}

/** What the operator's configuration says to the lifecycle; told anew at every start of the worker. */
export interface LifecycleSettings {
  /** decay policy preset, see domain/decay */
  decay: 'plan-90-180' | 'docs-45-90';
  /** of trials opened from now on */
  trial: { lookEverySeconds: number; maxSeconds: number; maxJobSeconds: number };
}

export interface LifecycleInput extends LifecycleSettings {
  hotkey: string;
  /** from the catalog when Temporal's database is new; carried over continue-as-new; null: nothing yet */
  state: LifecycleState | null;
}

export interface LifecycleStatus {
  state: LifecycleState;
  settings: LifecycleSettings;
  /** age of the submission in days, reward factor [0, 1] and dates (ms since the epoch); null without a champion */
  clock: {
    day: number;
    rewardFactor: number;
    retrainAt: number;
    resubmitBy: number;
    nextReminder: { day: number; at: number } | null;
  } | null;
}

/** What the lifecycle is asked to do; handled one at a time, in order of arrival. */
export type Command =
  | { kind: 'candidate'; message: CandidateMessage }
  | { kind: 'report'; report: TrialReport }
  | { kind: 'settings'; settings: LifecycleSettings }
  | { kind: 'promote'; model: string | null; by: string }
  | { kind: 'reject'; model: string | null; by: string }
  | { kind: 'rollback'; by: string };

export interface Evaluation {
  /** JSON Lines of {digest, prediction, votes, ms} */
  predictions: Digest;
  /** null where no row has a label */
  metrics: Metrics | null;
  /** accuracy overall and by source, with intervals by group; empty where no row has a label */
  figures: Figure[];
  n: number;
  failed: number;
  p99Ms: number;
}
