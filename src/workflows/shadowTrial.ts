/**
 * The shadow trial of one candidate: a share of live traffic also runs on it, which judges latency and errors; quality
 * is judged on challenge sets of known truth and by replaying all journaled images through the production code.
 * It looks at intervals and reports every look to the lifecycle, which alone decides what is served.
 */
import {
  CancellationScope,
  continueAsNew,
  executeChild,
  getExternalWorkflowHandle,
  isCancellation,
  ParentClosePolicy,
  setCurrentDetails,
  sleep,
  workflowInfo,
} from '@temporalio/workflow';
import { gpuJob } from './gpuJob.js';
import { lifecycleId } from './ids.js';
import type { ChallengesOutput } from './jobTypes.js';
import { trialReport } from './messages.js';
import { heavy, quick } from './proxies.js';
import type { TrialInput, TrialOutcome, VerdictNumbers } from './types.js';

/** History stays small: a look is some hundred events. */
const LOOKS_A_RUN = 24;

export async function shadowTrial(input: TrialInput): Promise<TrialOutcome> {
  const trial = workflowInfo().workflowId;
  const owner = getExternalWorkflowHandle(lifecycleId(input.hotkey));
  let looks = input.looks;
  let last: VerdictNumbers | null = null;
  const kind = input.simulated ? 'simulated traffic' : 'live traffic';
  try {
    await quick.openTrial({
      trial,
      hotkey: input.hotkey,
      champion: input.champion.bundle,
      candidate: input.candidate.bundle,
      simulated: input.simulated,
      openedAt: input.openedAt,
    });
    await quick.openShadow({ trial, bundle: input.candidate.bundle, config: input.config });
    for (let run = 0; run < LOOKS_A_RUN; run++) {
      setCurrentDetails(`${input.candidate.id} against ${input.champion.id} on ${kind}; ${looks} looks so far`);
      last = await look(looks + 1);
      looks += 1;
      const late = Date.now() - input.openedAt >= input.maxSeconds * 1000;
      const decision = last.decision === 'continue' && late ? 'keep' : last.decision;
      const verdict: VerdictNumbers =
        decision === last.decision
          ? last
          : {
              ...last,
              decision,
              reason: `the trial's longest time is over without enough evidence, so the champion is kept; ${last.reason}`,
            };
      if (decision !== 'continue') {
        await CancellationScope.nonCancellable(() => quick.closeShadow({ trial }));
        await quick.closeTrial({ trial, decision, verdict });
      }
      await owner.signal(trialReport, { trial, looks, verdict, final: decision !== 'continue', failure: null });
      if (decision !== 'continue') return { decision, verdict, looks };
      await sleep(input.lookEverySeconds * 1000);
    }
  } catch (error) {
    await CancellationScope.nonCancellable(async () => {
      await quick.closeShadow({ trial });
      // A trial that was called off is answered for by whoever called it off; one that broke must say so.
      if (!isCancellation(error)) {
        await owner.signal(trialReport, {
          trial,
          looks,
          verdict: last,
          final: true,
          failure: error instanceof Error ? innermost(error) : String(error),
        });
      }
    });
    throw error;
  }
  return continueAsNew<typeof shadowTrial>({ ...input, looks });

  async function look(number: number): Promise<VerdictNumbers> {
    await heavy.awaitShadow.executeWithOptions({ summary: 'wait until the miner runs the candidate in the shadow' }, [
      { trial, bundle: input.candidate.bundle },
    ]);
    const manifests = await quick.buildManifests({ turn: input.turn });
    const order = await quick.challengesInput({
      config: input.config,
      manifest: manifests.test,
      purpose: 'trial',
      seed: input.seed + number,
    });
    const set = await executeChild(gpuJob, {
      workflowId: `${trial}/challenges-${number}`,
      args: [
        {
          kind: 'challenges',
          input: order,
          turn: input.turn,
          summary: `challenges of known truth for look ${number}`,
          maxSeconds: input.maxJobSeconds,
        },
      ],
      parentClosePolicy: ParentClosePolicy.PARENT_CLOSE_POLICY_REQUEST_CANCEL,
    });
    const challenges = (set.output as ChallengesOutput).set;
    await quick.registerChallenges({ set: challenges, turn: input.turn, purpose: 'trial', seed: order.seed });
    if (input.simulated) {
      await heavy.sendTraffic.executeWithOptions({ summary: 'accelerated, simulated traffic through the miner' }, [
        { set: challenges, config: input.config, round: 0 },
      ]);
    }
    const shadow = await heavy.shadowStatistics.executeWithOptions({ summary: 'ingest the journal; latency and errors of the shadow' }, [
      { trial, sinceMs: input.openedAt },
    ]);
    const champion = await heavy.evaluateModel.executeWithOptions({ summary: 'champion on the challenges' }, [
      { turn: input.turn, bundle: input.champion.bundle, manifest: challenges },
    ]);
    const candidate = await heavy.evaluateModel.executeWithOptions({ summary: 'candidate on the challenges' }, [
      { turn: input.turn, bundle: input.candidate.bundle, manifest: challenges },
    ]);
    const replay = await heavy.replayTraffic.executeWithOptions({ summary: 'candidate on all journaled images' }, [
      { turn: input.turn, trial, bundle: input.candidate.bundle, sinceMs: input.openedAt },
    ]);
    return heavy.judgePair.executeWithOptions({ summary: `verdict of look ${number}` }, [
      {
        turn: input.turn,
        config: input.config,
        sets: [{ set: challenges, champion, candidate }],
        candidate: input.candidate.bundle,
        shadow: { ...shadow, disagreement: replay.disagreement, replayed: replay.n },
        look: number,
        seed: input.seed,
        champion: input.champion.bundle,
        trial: {
          id: trial,
          last: Date.now() - input.openedAt + input.lookEverySeconds * 1000 >= input.maxSeconds * 1000,
          late: Date.now() - input.openedAt >= input.maxSeconds * 1000,
        },
      },
    ]);
  }
}

function innermost(error: Error): string {
  let at = error;
  while (at.cause instanceof Error) at = at.cause;
  return at.message;
}
