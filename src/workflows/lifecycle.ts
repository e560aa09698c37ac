/**
 * The lifecycle of a hotkey: one workflow, years long, that alone owns the champion. It knows the champion's age,
 * sends reminders, runs one trial at a time (a newer candidate waits, the newest supersedes it), and promotes, rejects
 * and rolls back by the trial's verdict or an operator's word. What must survive is committed to the catalog first.
 */
import {
  allHandlersFinished,
  ApplicationFailure,
  condition,
  continueAsNew,
  getExternalWorkflowHandle,
  log,
  ParentClosePolicy,
  setCurrentDetails,
  setHandler,
  startChild,
  uuid4,
  workflowInfo,
} from '@temporalio/workflow';
import { WorkflowExecutionAlreadyStartedError } from '@temporalio/common';
import { decaySchedule, decayFactor, ageDays } from '../domain/decay.js';
import { trialId } from './ids.js';
import {
  candidateReady,
  lifecycleSettings,
  lifecycleStatus,
  promoteSignal,
  promoteUpdate,
  rejectSignal,
  rejectUpdate,
  rollbackSignal,
  rollbackUpdate,
  trialReport,
} from './messages.js';
import { quick } from './proxies.js';
import { shadowTrial } from './shadowTrial.js';
import type { CandidateMessage, Command, LifecycleInput, LifecycleSettings, LifecycleState, LifecycleStatus, ModelRef } from './types.js';

/** Decisions remembered for `flywheel status`; all of them are in the catalog. */
const DECISIONS_KEPT = 20;

export async function lifecycle(input: LifecycleInput): Promise<never> {
  const state: LifecycleState = input.state ?? {
    hotkey: input.hotkey,
    champion: null,
    trial: null,
    waiting: null,
    reminded: [],
    decided: [],
  };
  const commands: Command[] = [];
  let settings: LifecycleSettings = { decay: input.decay, trial: input.trial };

  setHandler(lifecycleStatus, (): LifecycleStatus => ({ state, settings, clock: clockOf(state) }));
  setHandler(lifecycleSettings, (changed) => void commands.push({ kind: 'settings', settings: changed }));
  setHandler(candidateReady, (message) => void commands.push({ kind: 'candidate', message }));
  setHandler(trialReport, (report) => void commands.push({ kind: 'report', report }));
  setHandler(promoteSignal, (model) => void commands.push({ kind: 'promote', model: model ?? null, by: 'signal' }));
  setHandler(rejectSignal, (model) => void commands.push({ kind: 'reject', model: model ?? null, by: 'signal' }));
  setHandler(rollbackSignal, () => void commands.push({ kind: 'rollback', by: 'signal' }));
  // Updates accept and return an id; validators only read.
  const accept = (command: Command): string => {
    commands.push(command);
    return uuid4();
  };
  setHandler(promoteUpdate, (model: string | null, by: string) => accept({ kind: 'promote', model, by }), {
    validator: (model: string | null, _by: string) => refuseUnknownTarget(model, 'promote'),
  });
  setHandler(rejectUpdate, (model: string | null, by: string) => accept({ kind: 'reject', model, by }), {
    validator: (model: string | null, _by: string) => refuseUnknownTarget(model, 'reject'),
  });
  setHandler(rollbackUpdate, (by) => accept({ kind: 'rollback', by }), {
    validator: (_by) => {
      if (!state.champion?.previous)
        throw ApplicationFailure.nonRetryable('there is no previous champion to roll back to', 'BadInputError');
    },
  });

  // A trial that was open when Temporal's database was lost is opened again; one that runs is left alone.
  if (state.trial) await startTrial(state.trial.message, state.trial.openedAt, state.trial.looks);

  for (;;) {
    describe();
    const due = nextReminder();
    // A condition with a time-out of zero would never yield; a due reminder is handled at once.
    if (due === null) await condition(() => commands.length > 0);
    else if (due.at > Date.now()) await condition(() => commands.length > 0, due.at - Date.now());
    const command = commands.shift();
    if (command) {
      try {
        await handle(command);
      } catch (error) {
        // A command that fails must not end the lifecycle: it is logged, told, and the next one is served.
        log.error('command failed; the champion stays as it was', { command: command.kind, error: String(error) });
        remember(modelOf(command), 'rejected', `${command.kind} failed: ${innermost(error)}`);
      }
    } else await remindDue();
    if (workflowInfo().continueAsNewSuggested && commands.length === 0) {
      await condition(allHandlersFinished);
      if (commands.length === 0) await continueAsNew<typeof lifecycle>({ ...input, ...settings, state });
    }
  }

  async function handle(command: Command): Promise<void> {
    switch (command.kind) {
      case 'candidate':
        return candidate(command.message);
      case 'settings':
        settings = command.settings;
        return;
      case 'report': {
        const { report } = command;
        if (state.trial?.id !== report.trial) return;
        state.trial.looks = report.looks;
        state.trial.last = report.verdict;
        if (!report.final) return;
        const { model } = state.trial.message;
        const decision = report.verdict?.decision === 'promote' && report.failure === null ? 'promote' : 'keep';
        const reason = report.failure !== null ? `the trial broke off: ${report.failure}` : (report.verdict?.reason ?? '');
        if (decision === 'promote') await promote(model);
        else await quick.rejectModel({ model: model.id, reason });
        remember(model.id, decision, reason);
        state.trial = null;
        return nextCandidate();
      }
      case 'promote': {
        const model = await target(command.model);
        await callOffTrial(model.id, 'promoted by the operator');
        await promote(model);
        remember(model.id, 'promote', `by ${command.by}`);
        return nextCandidate();
      }
      case 'reject': {
        const model = await target(command.model);
        await quick.rejectModel({ model: model.id, reason: `by ${command.by}` });
        remember(model.id, 'rejected', `by ${command.by}`);
        if (state.waiting?.model.id === model.id) state.waiting = null;
        if (state.trial?.message.model.id === model.id) await callOffTrial(model.id, 'rejected by the operator');
        return nextCandidate();
      }
      case 'rollback': {
        const previous = state.champion?.previous;
        if (!previous) throw ApplicationFailure.nonRetryable('there is no previous champion to roll back to', 'BadInputError');
        await callOffTrial(null, 'called off by a rollback');
        await promote(previous);
        remember(previous.id, 'promote', `rollback by ${command.by}`);
        return nextCandidate();
      }
    }
  }

  async function candidate(message: CandidateMessage): Promise<void> {
    if (state.champion?.model.bundle === message.model.bundle) return;
    if (!state.champion) {
      await promote(message.model);
      remember(message.model.id, 'promote', 'first champion');
      return;
    }
    if (message.first) return; // a turn that was repeated; there is a champion by now
    if (state.trial) {
      if (state.trial.message.model.id === message.model.id) return;
      if (state.waiting) remember(state.waiting.model.id, 'superseded', `by ${message.model.id}`);
      state.waiting = message;
      return;
    }
    await startTrial(message, Date.now(), 0);
  }

  async function startTrial(message: CandidateMessage, openedAt: number, looks: number): Promise<void> {
    const champion = state.champion;
    if (!champion) return;
    const id = trialId(input.hotkey, message.model.id);
    state.trial = { id, message, looks, openedAt, last: state.trial?.id === id ? state.trial.last : null };
    try {
      // Abandoned, not awaited: it reports by signal, so that this workflow can continue as new at any time.
      await startChild(shadowTrial, {
        workflowId: id,
        parentClosePolicy: ParentClosePolicy.PARENT_CLOSE_POLICY_ABANDON,
        staticSummary: `${message.model.id} against ${champion.model.id}${message.simulated ? ' (simulated traffic)' : ''}`,
        args: [
          {
            id,
            hotkey: input.hotkey,
            champion: champion.model,
            candidate: message.model,
            turn: message.turn,
            simulated: message.simulated,
            config: message.config,
            seed: message.seed,
            ...settings.trial,
            openedAt,
            looks,
          },
        ],
      });
    } catch (error) {
      if (!(error instanceof WorkflowExecutionAlreadyStartedError)) throw error;
    }
  }

  async function nextCandidate(): Promise<void> {
    if (state.trial || !state.waiting) return;
    const next = state.waiting;
    state.waiting = null;
    if (next.model.bundle !== state.champion?.model.bundle) await startTrial(next, Date.now(), 0);
  }

  /** Ends the running trial, if any, and closes it in the catalog. `except` is the model decided on: it needs no second word. */
  async function callOffTrial(except: string | null, reason: string): Promise<void> {
    if (!state.trial) return;
    const { id, message } = state.trial;
    try {
      await getExternalWorkflowHandle(id).cancel();
    } catch (error) {
      log.info('the trial had ended already', { id, error: String(error) });
    }
    await quick.closeTrial({ trial: id, decision: 'keep', verdict: null, reason });
    if (message.model.id !== except) remember(message.model.id, 'superseded', reason);
    state.trial = null;
  }

  async function promote(model: ModelRef): Promise<void> {
    const before = state.champion;
    const expected = before?.pointer.generation ?? 0;
    // Catalog, then pointer, then publication: whatever is lost in between is done again from the catalog.
    const moved = await quick.moveChampion.executeWithOptions({ summary: `champion: ${model.id}` }, [
      { hotkey: input.hotkey, model, expected, at: Date.now() },
    ]);
    await quick.writePointer({ hotkey: input.hotkey });
    const published = await quick.publishModel.executeWithOptions({ summary: `publish ${model.id}` }, [
      { hotkey: input.hotkey, model, at: Date.now() },
    ]);
    state.champion = { pointer: moved, model, previous: before?.model ?? null, submittedAt: published.submittedAt };
    state.reminded = [];
  }

  /** The model a command means: a named one, or the candidate on trial, or the one that waits. */
  async function target(name: string | null): Promise<ModelRef> {
    const known = [state.trial?.message.model, state.waiting?.model, state.champion?.previous].find(
      (m) => m && (name === null || m.id === name || m.bundle === name),
    );
    if (known && !(name === null && known === state.champion?.previous)) return known;
    if (name === null) throw ApplicationFailure.nonRetryable('no candidate is on trial or waiting', 'BadInputError');
    return quick.findModel({ model: name });
  }

  function refuseUnknownTarget(model: string | null, verb: string): void {
    if (model === null && !state.trial && !state.waiting) {
      throw ApplicationFailure.nonRetryable(
        `no candidate is on trial or waiting: name the model to ${verb} (flywheel status lists them)`,
        'BadInputError',
      );
    }
    if (model !== null && (model === state.champion?.model.id || model === state.champion?.model.bundle)) {
      throw ApplicationFailure.nonRetryable(`${model} is the champion already`, 'BadInputError');
    }
  }

  function nextReminder(): { day: number; at: number } | null {
    if (!state.champion) return null;
    const { reminders } = decaySchedule(settings.decay, state.champion.submittedAt);
    return reminders.find((r) => !state.reminded.includes(r.day)) ?? null;
  }

  async function remindDue(): Promise<void> {
    const due = nextReminder();
    if (!due || !state.champion || due.at > Date.now()) return;
    await quick.remind.executeWithOptions({ summary: `day ${due.day} of ${state.champion.model.id}` }, [
      { hotkey: input.hotkey, submittedAt: state.champion.submittedAt, day: due.day, model: state.champion.model.id, at: Date.now() },
    ]);
    state.reminded.push(due.day);
  }

  function clockOf(s: LifecycleState): LifecycleStatus['clock'] {
    if (!s.champion) return null;
    const { submittedAt } = s.champion;
    const day = ageDays(submittedAt, Date.now());
    const plan = decaySchedule(settings.decay, submittedAt);
    return {
      day,
      rewardFactor: decayFactor(settings.decay, day),
      retrainAt: plan.retrainAt,
      resubmitBy: plan.resubmitBy,
      nextReminder: nextReminder(),
    };
  }

  function describe(): void {
    const clock = clockOf(state);
    if (!clock || !state.champion) return setCurrentDetails('no champion yet');
    const date = (ms: number) => new Date(ms).toISOString().slice(0, 10);
    setCurrentDetails(
      [
        `champion **${state.champion.model.id}** (generation ${state.champion.pointer.generation}), submitted ${date(state.champion.submittedAt)}`,
        `day ${Math.floor(clock.day)}, reward factor ${clock.rewardFactor.toFixed(2)}; retrain from ${date(clock.retrainAt)}, resubmit by ${date(clock.resubmitBy)}`,
        `reminders: ${decaySchedule(settings.decay, state.champion.submittedAt)
          .reminders.map((r) => `day ${r.day} ${date(r.at)}${state.reminded.includes(r.day) ? ' (sent)' : ''}`)
          .join(', ')}`,
        state.trial
          ? `on trial: **${state.trial.message.model.id}**, ${state.trial.looks} looks${state.trial.message.simulated ? ', simulated traffic' : ''}`
          : 'no trial',
      ].join('\n\n'),
    );
  }

  function remember(model: string, decision: LifecycleState['decided'][number]['decision'], reason: string): void {
    state.decided.unshift({ model, decision, reason, at: Date.now() });
    state.decided.length = Math.min(state.decided.length, DECISIONS_KEPT);
  }

  function modelOf(command: Command): string {
    if (command.kind === 'candidate') return command.message.model.id;
    if (command.kind === 'settings') return '';
    if (command.kind === 'report') return state.trial?.message.model.id ?? command.report.trial;
    return command.kind === 'rollback' ? (state.champion?.previous?.id ?? '') : (command.model ?? state.trial?.message.model.id ?? '');
  }
}

function innermost(error: unknown): string {
  let at = error;
  while (at instanceof Error && at.cause instanceof Error) at = at.cause;
  return at instanceof Error ? at.message : String(at);
}
