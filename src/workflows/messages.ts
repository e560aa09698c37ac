/** Signals, queries and updates, defined once for workflows, worker and command line. */
import { defineQuery, defineSignal, defineUpdate } from '@temporalio/workflow';
import type { CandidateMessage, LifecycleStatus, TrialReport, TurnProgress, LifecycleSettings } from './types.js';

export const turnProgress = defineQuery<TurnProgress>('progress');
/** A person answered the review list; the turn goes on without waiting for its time limit. */
export const reviewsAnswered = defineSignal('reviewsAnswered');

export const lifecycleStatus = defineQuery<LifecycleStatus>('status');
/** The configuration as it is now, at every start of the worker: a changed decay policy or trial holds from then on. */
export const lifecycleSettings = defineSignal<[LifecycleSettings]>('settings');
export const candidateReady = defineSignal<[CandidateMessage]>('candidateReady');

/**
 * `promote`, `reject` and `rollback` as signals, for the Temporal UI and `temporal workflow signal`
 * (`--name promote --input '"MODEL"'`; without input the candidate on trial is meant), and as updates for the
 * command line, which wants an answer and a refusal.
 */
export const promoteSignal = defineSignal<[string?]>('promote');
export const rejectSignal = defineSignal<[string?]>('reject');
export const rollbackSignal = defineSignal('rollback');
/** @returns an id of the accepted command; the work is done by the lifecycle's own loop */
export const promoteUpdate = defineUpdate<string, [string | null, string]>('promoteModel');
export const rejectUpdate = defineUpdate<string, [string | null, string]>('rejectModel');
export const rollbackUpdate = defineUpdate<string, [string]>('rollbackChampion');
/** Every look of a trial, from the trial to the lifecycle. */
export const trialReport = defineSignal<[TrialReport]>('trialReport');
