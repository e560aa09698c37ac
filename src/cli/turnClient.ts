/** The command line's side of a turn: start or go on, show progress, wait for the verdict, put the result together. */
import { setTimeout as sleep } from 'node:timers/promises';
import { WorkflowFailedError, WorkflowIdConflictPolicy, type Client, type WorkflowHandle } from '@temporalio/client';
import { defaultPayloadConverter, TemporalFailure } from '@temporalio/common';
import { z } from 'zod';
import { GateResult, Label, Metrics } from '../domain/contracts/common.js';
import { figures, type Figure } from '../domain/figures.js';
import { TurnResult, type SummaryExtra } from '../domain/turnSummary.js';
import { openCatalogReadOnly, type CatalogReader } from '../platform/catalog/index.js';
import { readServices, type HomePaths } from '../platform/home.js';
import { FileObjectStore } from '../platform/objects/index.js';
import type { TemporalAddress } from '../platform/temporal/connect.js';
import { lifecycleId } from '../workflows/ids.js';
import { lifecycleStatus, turnProgress } from '../workflows/messages.js';
import { TASK_QUEUE, type LifecycleState, type TurnInput, type TurnOutcome, type VerdictNumbers } from '../workflows/types.js';
import type { dailyTurn, lifecycle } from '../workflows/index.js';
import type { TrainOutput } from '../workflows/jobTypes.js';

/** A stage failed: its name and where to look. */
export class StageFailedError extends Error {
  override name = 'StageFailedError';
  constructor(
    readonly stage: string,
    message: string,
    readonly link: string | null,
  ) {
    super(message);
  }
}

export interface StageView {
  stage: string;
  what: string;
  done: number;
  total: number;
  unit: string;
  seconds: Record<string, number>;
}

export interface TurnContext {
  client: Client;
  home: HomePaths;
  temporal: TemporalAddress;
  hotkey: string;
  /** data set folder, absolute, or null */
  data: string | null;
  onProgress: (view: StageView) => void;
  signal: AbortSignal;
}

/** Name of the trial's first look among the stages. */
const TRIAL_STAGE = 'trial (simulated)';
/** How often progress is asked for. */
const POLL_MS = 400;

/**
 * Goes on with the turn that is open, or starts the next one; waits for it and for the first word of its trial.
 * @throws StageFailedError naming the stage; AbortError when `signal` fires (the turn stays open and goes on next time)
 */
export async function runTurnAndWait(context: TurnContext): Promise<{ result: TurnResult; extra: SummaryExtra }> {
  const handle = await openTurn(context);
  const outcome = await watchTurn(context, handle);
  const trial = outcome.candidate && outcome.gate?.decision !== 'keep' ? await awaitTrial(context, outcome.candidate.id) : null;
  return composeResult(context, handle.workflowId, trial);
}

/** @returns the turn that runs, or a new one named by its number */
async function openTurn(context: TurnContext): Promise<WorkflowHandle<typeof dailyTurn>> {
  const { client, hotkey } = context;
  for await (const open of client.workflow.list({ query: 'WorkflowType = "dailyTurn" AND ExecutionStatus = "Running"' })) {
    return client.workflow.getHandle<typeof dailyTurn>(open.workflowId);
  }
  const input: TurnInput = { hotkey, data: context.data, simulated: true };
  for (let number = (await countTurns(context.home)) + 1; ; number++) {
    const workflowId = `turn-${String(number).padStart(4, '0')}`;
    try {
      return await client.workflow.start<typeof dailyTurn>('dailyTurn', {
        taskQueue: TASK_QUEUE,
        workflowId,
        workflowIdReusePolicy: 'REJECT_DUPLICATE',
        workflowIdConflictPolicy: WorkflowIdConflictPolicy.FAIL,
        staticSummary: `one turn of the wheel${context.data ? ` on ${context.data}` : ''}`,
        args: [input],
      });
    } catch (error) {
      if (!(error instanceof Error) || error.name !== 'WorkflowExecutionAlreadyStartedError') throw error;
    }
  }
}

async function countTurns(home: HomePaths): Promise<number> {
  const catalog = await reader(home);
  if (!catalog) return 0;
  try {
    return (await catalog.turns(1_000_000)).length;
  } finally {
    await catalog.close();
  }
}

async function reader(home: HomePaths): Promise<CatalogReader | null> {
  try {
    return await openCatalogReadOnly(home.catalog);
  } catch (error) {
    if ((error as Error).name === 'ObjectMissingError' || /does not exist|no such|not there/i.test((error as Error).message)) return null;
    throw error;
  }
}

async function watchTurn(context: TurnContext, handle: WorkflowHandle<typeof dailyTurn>): Promise<TurnOutcome> {
  let settled = false;
  const result = handle.result().finally(() => {
    settled = true;
  });
  result.catch(() => undefined);
  while (!settled) {
    context.signal.throwIfAborted();
    try {
      const progress = await handle.query(turnProgress);
      // At its very end a turn names no stage.
      const beat = progress.stage === 'done' ? null : await latestBeat(context.client, progress.child ?? handle.workflowId);
      if (progress.stage !== 'done')
        context.onProgress({
          stage: progress.stage,
          seconds: progress.seconds,
          what: progress.waitsFor ? `waits for ${progress.waitsFor}` : (beat?.what ?? ''),
          done: beat?.done ?? 0,
          total: beat?.total ?? 0,
          unit: beat?.unit ?? '',
        });
    } catch {
      // Only the view is behind: a worker that restarts answers the next one. The turn's own failure comes by its result.
    }
    await Promise.race([result.catch(() => undefined), sleep(POLL_MS)]);
  }
  try {
    return await result;
  } catch (error) {
    throw stageFailure(error, link(context.temporal, handle.workflowId));
  }
}

const Beat = z.object({ what: z.string(), done: z.number(), total: z.number(), unit: z.string() });

/** Progress of the activity that runs in a workflow, from its last heartbeat. */
async function latestBeat(client: Client, workflowId: string): Promise<z.infer<typeof Beat> | null> {
  const { raw } = await client.workflow.getHandle(workflowId).describe();
  for (const activity of raw.pendingActivities ?? []) {
    const payload = activity.heartbeatDetails?.payloads?.[0];
    if (!payload) continue;
    const beat = Beat.safeParse(defaultPayloadConverter.fromPayload(payload));
    if (beat.success) return beat.data;
  }
  return null;
}

export function link(temporal: TemporalAddress, workflowId: string): string | null {
  return temporal.ui === null ? null : `${temporal.ui}/namespaces/${temporal.namespace}/workflows/${encodeURIComponent(workflowId)}`;
}

function stageFailure(error: unknown, where: string | null): Error {
  if (!(error instanceof WorkflowFailedError)) return error as Error;
  const cause = error.cause;
  const message = cause instanceof TemporalFailure ? cause.message : error.message;
  const stage = /^stage "([^"]+)" failed/.exec(message)?.[1] ?? 'turn';
  return new StageFailedError(stage, message, where);
}

interface TrialWord {
  decision: 'promote' | 'keep' | 'continue';
  reason: string;
  verdict: VerdictNumbers | null;
  promoted: boolean;
  /** how long it was waited for */
  seconds: number;
}

/** Waits until the lifecycle said something of the candidate: decided, a first look done, or waiting behind another trial. */
async function awaitTrial(context: TurnContext, candidate: string): Promise<TrialWord> {
  const owner = context.client.workflow.getHandle<typeof lifecycle>(lifecycleId(context.hotkey));
  const began = Date.now();
  const elapsed = () => (Date.now() - began) / 1000;
  for (;;) {
    context.signal.throwIfAborted();
    let state: LifecycleState | null = null;
    try {
      state = (await owner.query(lifecycleStatus)).state;
    } catch {
      // The worker restarts; the lifecycle is still there.
    }
    if (state) {
      const decided = state.decided.find((d) => d.model === candidate);
      const promoted = state.champion?.model.id === candidate;
      if (decided)
        return {
          decision: promoted ? 'promote' : 'keep',
          reason: decided.reason,
          verdict: await lastVerdict(context, candidate),
          promoted,
          seconds: elapsed(),
        };
      // A look that decides is followed by the decision itself: that is what is waited for then.
      if (state.trial?.message.model.id === candidate && state.trial.last?.decision === 'continue') {
        const { last } = state.trial;
        return { decision: last.decision, reason: last.reason, verdict: last, promoted: false, seconds: elapsed() };
      }
      if (state.waiting?.model.id === candidate) {
        return {
          decision: 'continue',
          reason: `the candidate waits for the trial of ${state.trial?.message.model.id ?? 'another'} to end`,
          verdict: null,
          promoted: false,
          seconds: elapsed(),
        };
      }
    }
    const trial = state?.trial ? await latestBeat(context.client, state.trial.id).catch(() => null) : null;
    context.onProgress({
      stage: TRIAL_STAGE,
      seconds: { [TRIAL_STAGE]: elapsed() },
      what: trial?.what ?? '',
      done: trial?.done ?? 0,
      total: trial?.total ?? 0,
      unit: trial?.unit ?? '',
    });
    await sleep(POLL_MS);
  }
}

async function lastVerdict(context: TurnContext, candidate: string): Promise<VerdictNumbers | null> {
  const catalog = await reader(context.home);
  if (!catalog) return null;
  try {
    const model = await catalog.model(candidate);
    const trial = (await catalog.trials(context.hotkey)).filter((t) => t.candidate === model?.bundle && t.closedAt !== null).at(-1);
    return (trial?.evidence as { verdict: VerdictNumbers | null } | undefined)?.verdict ?? null;
  } finally {
    await catalog.close();
  }
}

const Judged = z.object({ id: z.string(), heldOut: Metrics.nullable(), challenges: Metrics.nullable() });

/** The `--json` object, from the catalog's rows of the turn. */
async function composeResult(
  context: TurnContext,
  turn: string,
  trial: TrialWord | null,
): Promise<{ result: TurnResult; extra: SummaryExtra }> {
  const catalog = await reader(context.home);
  if (!catalog) throw new Error(`the catalog ${context.home.catalog} is gone`);
  try {
    const record = await catalog.turn(turn);
    if (!record) throw new Error(`the catalog knows nothing of ${turn}`);
    const s = record.summary;
    const gate = (s['gate'] ?? null) as VerdictNumbers | null;
    const model = (key: string) => {
      if (!s[key]) return null;
      const { id, heldOut, challenges } = Judged.parse(s[key]);
      const main = heldOut ?? challenges;
      return { id, metrics: { ...(main ?? { accuracy: 0, mcc: 0, brier: 1, n: 0 }), heldOut, challenges } };
    };
    const figuresOf = (key: string, name: string) => (s[key] as Record<string, unknown> | undefined)?.[name] ?? [];
    const numbers = trial?.verdict ?? gate;
    const verdict = trial
      ? { decision: trial.decision, reason: trial.reason, predictedReward: numbers?.predictedReward ?? null }
      : gate
        ? { decision: gate.decision, reason: gate.reason, predictedReward: gate.predictedReward }
        : {
            decision: 'keep' as const,
            reason: typeof s['withoutCandidate'] === 'string' ? s['withoutCandidate'] : 'no candidate',
            predictedReward: null,
          };
    const services = readServices(context.home);
    const result = TurnResult.parse({
      turn,
      dataset: s['dataset'],
      hardCases: (s['hardCases'] as { count: number } | undefined)?.count ?? 0,
      synthetic: (s['synthetic'] as { count: number } | undefined)?.count ?? 0,
      labelled: s['labelled'] ?? { consensus: 0, rejected: 0, toVerify: 0 },
      champion: model('champion'),
      candidate: model('candidate'),
      verdict,
      figures: {
        champion: figuresOf('champion', 'figures'),
        candidate: figuresOf('candidate', 'figures'),
        unseen: figuresOf('hardCases', 'unseen'),
        ...(await leftOutOf(context, catalog, s)),
      },
      promoted: trial?.promoted ?? false,
      gates: z.array(GateResult).safeParse(s['gates']).data ?? [],
      seconds: { ...(s['seconds'] as Record<string, number> | undefined), ...(trial ? { [TRIAL_STAGE]: trial.seconds } : {}) },
      miner: { url: services.miner?.url ?? null, hotkey: context.hotkey },
      temporal: { address: context.temporal.address, ui: context.temporal.ui },
    });
    return { result, extra: await extraOf(catalog, s, trial !== null) };
  } finally {
    await catalog.close();
  }
}

const LeftOut = z.object({ label: Label, prediction: z.number(), group: z.string(), source: z.string() });

/** Leave one city out, of champion and candidate, from the predictions that their training left; nothing where it left none. */
async function leftOutOf(context: TurnContext, catalog: CatalogReader, summary: Record<string, unknown>) {
  const objects = new FileObjectStore(context.home.objects);
  const seed = (summary['plan'] as { seed: number } | undefined)?.seed ?? 0;
  let places = 0;
  const of = async (key: string): Promise<Figure[]> => {
    const { id } = (summary[key] ?? {}) as { id?: string };
    const model = id === undefined ? null : await catalog.model(id);
    const unseen = (model?.evidence as { training?: TrainOutput | null } | undefined)?.training?.unseen;
    if (!unseen) return [];
    places = Math.max(places, unseen.places);
    return figures(await objects.getJsonl(unseen.predictions, (row) => LeftOut.parse(row)), seed);
  };
  const [champion, candidate] = [await of('champion'), await of('candidate')];
  return places > 0 ? { leftOut: { champion, candidate, places } } : {};
}

/** What the plain summary tells beyond the result. */
async function extraOf(catalog: CatalogReader, summary: Record<string, unknown>, trialSimulated: boolean): Promise<SummaryExtra> {
  const dataset = summary['dataset'] as Pick<SummaryExtra, 'from' | 'problems' | 'warnings'> | undefined;
  const hard = summary['hardCases'] as Pick<SummaryExtra, 'hardest' | 'fromTruth' | 'fromTraffic'> | undefined;
  const synthetic = summary['synthetic'] as Pick<SummaryExtra, 'byProvider'> | undefined;
  const snapshot = summary['snapshot'] as Pick<SummaryExtra, 'byTruth'> | undefined;
  const candidate = (summary['candidate'] ?? summary['champion']) as { id: string } | undefined;
  const model = candidate ? await catalog.model(candidate.id) : null;
  const training = (model?.evidence as { training?: TrainOutput | null } | undefined)?.training ?? null;
  return {
    ...(dataset?.from ? { from: dataset.from } : {}),
    problems: dataset?.problems ?? [],
    warnings: dataset?.warnings ?? [],
    hardest: hard?.hardest ?? [],
    ...(hard ? { fromTruth: hard.fromTruth ?? 0, fromTraffic: hard.fromTraffic ?? 0 } : {}),
    ...(synthetic?.byProvider ? { byProvider: synthetic.byProvider } : {}),
    ...(snapshot?.byTruth ? { byTruth: snapshot.byTruth } : {}),
    ...(training ? { members: training.members, ablation: training.ablation, errorCorrelation: training.errorCorrelation } : {}),
    trialSimulated,
  };
}
