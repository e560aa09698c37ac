/** Rows of the tables as the port gives them. */
import type { ImageRow, Label, Pool, TruthKind } from '../../domain/contracts/common.js';
import type { ChampionRecord, LabelRecord, LedgerEntry, ModelRecord, ReviewItem, TrialRecord, TurnRecord } from '../ports.js';
import type { Row } from './schema.js';

export const toImage = (row: Row<'images'>): ImageRow => ({
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

export const toLabel = (row: Row<'labels'>): LabelRecord => ({
  digest: row.digest,
  label: row.label as Label,
  kind: row.kind as TruthKind,
  provenance: row.provenance,
  weight: row.weight,
  at: row.at,
});

export const toReview = (row: Row<'reviews'>): ReviewItem => ({
  digest: row.digest,
  turn: row.turn,
  reason: row.reason as ReviewItem['reason'],
  proposed: row.proposed as Label | null,
  votes: JSON.parse(row.votes) as Record<string, number>,
  askedAt: row.asked_at,
  answer: row.answer as Label | null,
  answeredAt: row.answered_at,
});

export const toTurn = (row: Row<'turns'>): TurnRecord => ({
  id: row.id,
  startedAt: row.started_at,
  finishedAt: row.finished_at,
  summary: JSON.parse(row.summary) as Record<string, unknown>,
});

export const toModel = (row: Row<'models'>): ModelRecord => ({
  id: row.id,
  bundle: row.bundle,
  trained: row.trained,
  parent: row.parent,
  turn: row.turn,
  status: row.status as ModelRecord['status'],
  createdAt: row.created_at,
  evidence: JSON.parse(row.evidence) as unknown,
});

export const toChampion = (row: Row<'champions'>): ChampionRecord => ({
  hotkey: row.hotkey,
  pointer: { generation: row.generation, digest: row.digest, previous: row.previous },
  modelId: row.model_id,
  promotedAt: row.promoted_at,
  submittedAt: row.submitted_at,
});

export const toTrial = (row: Row<'trials'>): TrialRecord => ({
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

export const toLedger = (row: Row<'ledger'>): LedgerEntry => ({
  job: row.job,
  backend: row.backend,
  reservedCents: row.reserved_cents,
  actualCents: row.actual_cents,
  month: row.month,
  status: row.status as LedgerEntry['status'],
});

export const json = (value: unknown): string => JSON.stringify(value ?? null);
