/**
 * One turn of the wheel: import -> first champion -> traffic -> hard cases -> synthesis -> labels -> snapshot ->
 * train -> export -> gate -> hand over to the lifecycle. It ends there: a trial of many days never blocks the next turn.
 */
import {
  ApplicationFailure,
  condition,
  executeChild,
  getExternalWorkflowHandle,
  ParentClosePolicy,
  setCurrentDetails,
  setHandler,
  workflowInfo,
} from '@temporalio/workflow';
import type {
  ChallengesOutput,
  ExportOutput,
  JobKind,
  LabelOutput,
  NeighboursOutput,
  RenderOutput,
  SynthesizeOutput,
  TrainOutput,
} from './jobTypes.js';
import { candidateReady, reviewsAnswered, turnProgress } from './messages.js';
import { heavy, quick } from './proxies.js';
import { gpuJob } from './gpuJob.js';
import { lifecycleId } from './ids.js';
import type { ModelRef, TurnInput, TurnOutcome, TurnPlan, TurnProgress } from './types.js';

/** Traffic is sent again for challenges whose answers the journal lost, at most this often. */
const TRAFFIC_ROUNDS = 3;

export async function dailyTurn(input: TurnInput): Promise<TurnOutcome> {
  const turn = workflowInfo().workflowId;
  const progress: TurnProgress = { turn, stage: 'plan', seconds: {}, child: null, waitsFor: null };
  let answered = false;
  setHandler(turnProgress, () => progress);
  setHandler(reviewsAnswered, () => {
    answered = true;
  });

  /** Runs one stage under its name: time, progress and the failure's name come from here. */
  async function stage<T>(name: string, work: () => Promise<T>): Promise<T> {
    progress.stage = name;
    setCurrentDetails(`stage: ${name}`);
    const began = Date.now();
    try {
      return await work();
    } catch (error) {
      await quick.recordTurn({ turn, patch: { failedStage: name } });
      throw error instanceof Error && error.name === 'CancelledFailure'
        ? error
        : ApplicationFailure.create({
            message: `stage "${name}" failed: ${deepestMessage(error)}`,
            type: 'StageFailed',
            nonRetryable: true,
            details: [name],
            cause: error as Error,
          });
    } finally {
      progress.seconds[name] = (progress.seconds[name] ?? 0) + (Date.now() - began) / 1000;
      progress.child = null;
    }
  }
  const plan: TurnPlan = await quick.planTurn.executeWithOptions({ summary: 'plan the turn' }, [
    { turn, hotkey: input.hotkey, startedAt: workflowInfo().startTime.getTime() },
  ]);
  const record = (patch: Record<string, unknown>) => quick.recordTurn({ turn, patch: { ...patch, seconds: progress.seconds } });

  async function job<T>(kind: JobKind, name: string, jobInput: Record<string, unknown>, summary: string): Promise<T> {
    const workflowId = `${turn}/${name}`;
    progress.child = workflowId;
    const result = await executeChild(gpuJob, {
      workflowId,
      args: [{ kind, input: jobInput, turn, summary, maxSeconds: plan.maxJobSeconds }],
      parentClosePolicy: ParentClosePolicy.PARENT_CLOSE_POLICY_REQUEST_CANCEL,
      staticSummary: summary,
    });
    progress.child = null;
    return result.output as T;
  }

  // 1. Import -------------------------------------------------------------------------------------------------------
  await stage('import', async () => {
    if (input.data !== null) {
      await record({
        dataset: await heavy.importDataset.executeWithOptions({ summary: `import ${input.data}` }, [
          { turn, data: input.data, seed: plan.seed },
        ]),
      });
    } else if (!plan.hasImages) {
      const order = await quick.renderInput({ config: plan.config, seed: plan.seed });
      const rendered = await job<RenderOutput>('render', 'render', order, `render ${order.count} street scenes: there is no data set`);
      await record({
        dataset: await quick.registerRendered.executeWithOptions({ summary: 'import the rendered scenes' }, [
          { images: rendered.images, seed: plan.seed },
        ]),
      });
    } else {
      await record({ dataset: await quick.describeDataset() });
    }
  });
  const manifests = await quick.buildManifests.executeWithOptions({ summary: 'write manifests of the pools' }, [{ turn }]);

  /** Trains, exports and registers one model. */
  async function makeModel(prefix: string, snapshot: string, parent: ModelRef | null): Promise<ModelRef> {
    const trained = await stage(prefix === '' ? 'train' : prefix, async () => {
      const order = await quick.trainInput({ config: plan.config, snapshot, initFrom: parent?.trained ?? null, seed: plan.seed });
      return job<TrainOutput>(
        'train',
        `${prefix === '' ? '' : `${prefix}-`}train`,
        order,
        'probe, fine-tune when below the gate, calibrate',
      );
    });
    return stage(prefix === '' ? 'export' : prefix, async () => {
      const order = await quick.exportInput({
        turn,
        trained: trained.trained,
        snapshot,
        parent: parent?.bundle ?? null,
        parity: manifests.train,
        first: parent === null,
        seed: plan.seed,
      });
      const exported = await job<ExportOutput>(
        'export',
        `${prefix === '' ? '' : `${prefix}-`}export`,
        order,
        'ONNX with parity check against PyTorch',
      );
      return quick.registerModel.executeWithOptions({ summary: 'verify and register the bundle' }, [
        { turn, bundle: exported.bundle, trained: trained.trained, parent: parent?.bundle ?? null, name: order.name, training: trained },
      ]);
    });
  }

  // 2. First champion -----------------------------------------------------------------------------------------------
  let champion = plan.champion;
  if (champion === null) {
    const first = await stage('first champion', () =>
      quick.buildSnapshot.executeWithOptions({ summary: 'real photographs only' }, [{ turn, config: plan.config, synthetic: null }]),
    );
    champion = await makeModel('first champion', first.snapshot, null);
    const model = champion;
    await stage('first champion', async () => {
      await getExternalWorkflowHandle(lifecycleId(input.hotkey)).signal(candidateReady, {
        model,
        turn,
        first: true,
        simulated: input.simulated,
        config: plan.config,
        seed: plan.seed,
      });
    });
  }
  await stage('first champion', () =>
    heavy.awaitServing.executeWithOptions({ summary: 'wait until the miner serves the champion' }, [
      { hotkey: input.hotkey, bundle: champion.bundle },
    ]),
  );
  const parent = champion;

  // 3. Traffic ------------------------------------------------------------------------------------------------------
  const traffic = await stage('traffic', async () => {
    const order = await quick.challengesInput({ config: plan.config, manifest: manifests.traffic, purpose: 'traffic', seed: plan.seed });
    const set = await job<ChallengesOutput>('challenges', 'traffic-challenges', order, 'challenge images as validators make them');
    await quick.registerChallenges({ set: set.set, turn, purpose: 'traffic', seed: order.seed });
    let sent = { asked: 0, answered: 0, failed: 0, missing: 0 };
    for (let round = 0; round < TRAFFIC_ROUNDS; round++) {
      sent = await heavy.sendTraffic.executeWithOptions({ summary: 'built-in validator: signed challenges over HTTP' }, [
        { set: set.set, config: plan.config, round },
      ]);
      if (sent.missing === 0) break;
    }
    await record({ traffic: { ...sent, set: set.set } });
    return set;
  });

  // 4. Hard cases ---------------------------------------------------------------------------------------------------
  const hard = await stage('hard cases', async () => {
    const views = await quick.viewsInput({ config: plan.config, turn, set: traffic.set, seed: plan.seed });
    const viewSet = await job<ChallengesOutput>('challenges', 'views', views, 'augmented views, to measure instability');
    const seen = await heavy.evaluateModel.executeWithOptions({ summary: 'champion on the augmented views' }, [
      { turn, bundle: parent.bundle, manifest: viewSet.set },
    ]);
    const crossfit = await quick.labelInput({ config: plan.config, candidates: manifests.train, train: manifests.train, seed: plan.seed });
    const oof = await job<LabelOutput>('label', 'out-of-fold', crossfit, 'out-of-fold votes on labelled photographs');
    const found = await quick.mineHardCases.executeWithOptions({ summary: 'rank hard cases' }, [
      { turn, config: plan.config, set: traffic.set, viewSet: viewSet.set, viewPredictions: seen.predictions, outOfFold: oof.votes },
    ]);
    await record({ hardCases: found });
    return found;
  });
  if (hard.count === 0) return finish(null, 'no hard case was found: the champion is right and sure of everything it saw');

  // 5. Synthesis ----------------------------------------------------------------------------------------------------
  const made = await stage('synthesis', async () => {
    const order = await quick.neighboursInput({ config: plan.config, queries: hard.failures, corpus: hard.corpus });
    const near = await job<NeighboursOutput>('neighbours', 'neighbours', order, `nearest ${order.k} of each hard case by embedding`);
    const plan2 = await quick.synthesizeInput({
      config: plan.config,
      failures: hard.failures,
      corpus: hard.corpus,
      neighbours: near.neighbours,
      seed: plan.seed,
    });
    const out = await job<SynthesizeOutput>('synthesize', 'synthesize', plan2, 'composites and weather variants of the hard cases');
    await quick.registerSynthetic.executeWithOptions({ summary: 'check provenance and register' }, [{ turn, manifest: out.manifest }]);
    await record({ synthetic: { count: out.count, byProvider: out.byProvider, byIntent: out.byIntent, skipped: out.skipped.length } });
    return out;
  });

  // 6. Labels -------------------------------------------------------------------------------------------------------
  await stage('labels', async () => {
    const candidates = await quick.labelCandidates({ turn, synthetic: made.manifest, hard: hard.failures });
    const order = await quick.labelInput({ config: plan.config, candidates: candidates.manifest, train: manifests.train, seed: plan.seed });
    const votes = await job<LabelOutput>('label', 'label', order, "votes of two members that never saw the image's group");
    const labelled = await quick.decideLabels.executeWithOptions({ summary: 'consensus, review list' }, [
      { turn, config: plan.config, candidates: candidates.manifest, votes: votes.votes, seed: plan.seed },
    ]);
    await record({ labelled: { ...labelled, errorCorrelation: votes.errorCorrelation, voters: votes.outOfFold } });
    // A person may answer; the turn does not wait for ever. Late answers count in the next turn.
    if (labelled.toVerify > 0 && plan.reviewTimeoutSeconds > 0) {
      progress.waitsFor = `a person's answers to ${labelled.toVerify} images (flywheel review), at most ${plan.reviewTimeoutSeconds} s`;
      setCurrentDetails(`stage: labels; waits for ${progress.waitsFor}`);
      await condition(() => answered, plan.reviewTimeoutSeconds * 1000);
      progress.waitsFor = null;
    }
  });

  // 7. Snapshot -----------------------------------------------------------------------------------------------------
  const snapshot = await stage('snapshot', async () => {
    const out = await quick.buildSnapshot.executeWithOptions({ summary: 'immutable manifest of the training set' }, [
      { turn, config: plan.config, synthetic: made.manifest },
    ]);
    await record({ snapshot: out });
    return out;
  });
  if (hard.count <= plan.retrainAbove) {
    return finish(null, `${hard.count} new hard cases: a retrain starts above ${plan.retrainAbove} (hardCases.retrainAbove)`);
  }

  // 8, 9. Train and export ------------------------------------------------------------------------------------------
  const candidate = await makeModel('', snapshot.snapshot, parent);
  if (candidate.bundle === parent.bundle) return finish(null, 'the retrain gave the very model that serves already');

  // 10. Gate --------------------------------------------------------------------------------------------------------
  const gate = await stage('gate', async () => {
    const order = await quick.challengesInput({ config: plan.config, manifest: manifests.test, purpose: 'gate', seed: plan.seed });
    const set = await job<ChallengesOutput>('challenges', 'gate-challenges', order, 'challenges from the held-out pool');
    await quick.registerChallenges({ set: set.set, turn, purpose: 'gate', seed: order.seed });
    const evidence = [];
    for (const [who, model] of [
      ['champion', parent],
      ['candidate', candidate],
    ] as const) {
      const challenges = await heavy.evaluateModel.executeWithOptions({ summary: `${who} on the gate's challenges` }, [
        { turn, bundle: model.bundle, manifest: set.set },
      ]);
      const heldOut = await heavy.evaluateModel.executeWithOptions({ summary: `${who} on the held-out photographs` }, [
        { turn, bundle: model.bundle, manifest: manifests.test },
      ]);
      evidence.push({ challenges, heldOut });
    }
    const verdict = await heavy.judgePair.executeWithOptions({ summary: 'paired verdict' }, [
      {
        turn,
        config: plan.config,
        sets: [{ set: set.set, champion: evidence[0]!.challenges, candidate: evidence[1]!.challenges }],
        candidate: candidate.bundle,
        shadow: null,
        look: 1,
        seed: plan.seed,
        champion: parent.bundle,
        heldOut: evidence[1]!.heldOut,
      },
    ]);
    await record({
      champion: {
        ...parent,
        figures: evidence[0]!.heldOut.figures,
        heldOut: evidence[0]!.heldOut.metrics,
        challenges: evidence[0]!.challenges.metrics,
      },
      candidate: {
        ...candidate,
        figures: evidence[1]!.heldOut.figures,
        heldOut: evidence[1]!.heldOut.metrics,
        challenges: evidence[1]!.challenges.metrics,
      },
      gate: verdict,
    });
    return verdict;
  });
  // A candidate that the gate already refuses costs no trial.
  if (gate.decision === 'keep') {
    await quick.rejectModel({ model: candidate.id, reason: `gate: ${gate.reason}` });
    return finish(candidate, null, gate);
  }

  // 11. Hand over ---------------------------------------------------------------------------------------------------
  await stage('hand over', () =>
    getExternalWorkflowHandle(lifecycleId(input.hotkey)).signal(candidateReady, {
      model: candidate,
      turn,
      first: false,
      simulated: input.simulated,
      config: plan.config,
      seed: plan.seed,
    }),
  );
  return finish(candidate, null, gate);

  async function finish(made: ModelRef | null, why: string | null, verdict: TurnOutcome['gate'] = null): Promise<TurnOutcome> {
    if (made === null) {
      // Without a candidate there was no gate: the summary still says how good the champion is.
      const heldOut = await stage('gate', () =>
        heavy.evaluateModel.executeWithOptions({ summary: 'champion on the held-out photographs' }, [
          { turn, bundle: parent.bundle, manifest: manifests.test },
        ]),
      );
      await record({ champion: { ...parent, figures: heldOut.figures, heldOut: heldOut.metrics, challenges: null } });
    }
    progress.stage = 'done';
    setCurrentDetails(why ?? (made ? `candidate ${made.id}` : 'done'));
    await quick.recordTurn({ turn, patch: { seconds: progress.seconds, withoutCandidate: why, failedStage: null }, finished: true });
    return { turn, champion, candidate: made, gate: verdict, withoutCandidate: why };
  }
}

/** The innermost cause says what happened; the outer ones only that an activity or a child failed. */
function deepestMessage(error: unknown): string {
  let at = error;
  while (at instanceof Error && at.cause instanceof Error) at = at.cause;
  return at instanceof Error ? at.message : String(at);
}
