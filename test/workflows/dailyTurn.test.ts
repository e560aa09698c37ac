import { describe, expect, it } from 'vitest';
import { ApplicationFailure } from '@temporalio/activity';
import type { WorkflowHandle } from '@temporalio/client';
import { dailyTurn, lifecycle } from '../../src/workflows/index.js';
import { lifecycleStatus } from '../../src/workflows/messages.js';
import type { TurnInput, TurnOutcome, TurnPlan } from '../../src/workflows/types.js';
import { timeSkipping } from '../support/temporal.js';
import { hex, play, verdict, withWorker, type Played } from './support.js';

const plan: TurnPlan = {
  turn: 't',
  index: 3,
  seed: 7,
  config: hex(9),
  champion: { id: 'old', bundle: hex(50), trained: hex(51) },
  hasImages: true,
  retrainAbove: 5,
  reviewTimeoutSeconds: 0,
  maxJobSeconds: 60,
};
const standing = {
  pointer: { generation: 4, digest: hex(50), previous: null },
  model: { id: 'old', bundle: hex(50), trained: hex(51) },
  previous: null,
  submittedAt: Date.UTC(2026, 0, 1),
};

describe('dailyTurn', () => {
  const server = timeSkipping();
  let run = 0;

  /** Runs a turn beside the hotkey's lifecycle. */
  async function turn(played: Played, options: { input?: Partial<TurnInput>; champion?: boolean } = {}) {
    const hotkey = `${++run}-hotkey-turn`;
    return withWorker(server.env, played, async (taskQueue) => {
      const owner = await server.env.client.workflow.start(lifecycle, {
        taskQueue,
        workflowId: `lifecycle-${hotkey}`,
        args: [
          {
            hotkey,
            decay: 'plan-90-180',
            trial: { lookEverySeconds: 3600, maxSeconds: 86_400, maxJobSeconds: 60 },
            state:
              options.champion === false ? null : { hotkey, champion: standing, trial: null, waiting: null, reminded: [], decided: [] },
          },
        ],
      });
      try {
        const handle: WorkflowHandle<typeof dailyTurn> = await server.env.client.workflow.start(dailyTurn, {
          taskQueue,
          workflowId: `turn-${run}`,
          args: [{ hotkey, data: null, simulated: true, ...options.input }],
        });
        const outcome = await handle.result().catch((error: unknown) => error);
        // What was handed over is on its way when the turn has ended.
        const handedOver = (outcome as TurnOutcome).candidate && (outcome as TurnOutcome).gate?.decision !== 'keep';
        if (handedOver) {
          await expect
            .poll(
              async () => {
                const { state } = await owner.query(lifecycleStatus);
                return state.trial !== null || state.decided.length > (options.champion === false ? 1 : 0);
              },
              { timeout: 10_000 },
            )
            .toBe(true);
        }
        return { outcome, owner, status: await owner.query(lifecycleStatus), hotkey };
      } finally {
        await owner.terminate('the test is over').catch(() => undefined);
      }
    });
  }

  it('goes from import to the gate in order and hands the candidate to the lifecycle', async () => {
    const played = play({ planTurn: async () => plan, judgePair: async () => verdict('continue') });
    const { outcome, status } = await turn(played, { input: { data: 'photographs' } });
    expect(outcome).toMatchObject({ candidate: { id: 'model-1' }, gate: { decision: 'continue' }, withoutCandidate: null });
    const order = [
      'importDataset',
      'sendTraffic',
      'mineHardCases',
      'registerSynthetic',
      'decideLabels',
      'buildSnapshot',
      'registerModel',
      'judgePair',
    ];
    const seen = played.calls.map((c) => c.name).filter((n) => order.includes(n));
    expect([...new Set(seen)]).toEqual(order);
    expect(status.state.trial?.message.model.id).toBe('model-1');
  });

  it("starts the retrain from the champion's last checkpoint", async () => {
    const played = play({ planTurn: async () => plan });
    await turn(played);
    const trained = played.calls.filter((c) => c.name === 'trainInput').map((c) => (c.args as { initFrom: string | null }).initFrom);
    expect(trained).toEqual([hex(51)]);
  });

  it('trains a first champion from photographs alone when there is none, and has it promoted before traffic', async () => {
    const played = play({ planTurn: async () => ({ ...plan, champion: null }) });
    const { outcome } = await turn(played, { champion: false });
    expect(outcome).toMatchObject({ champion: { id: 'model-1' }, candidate: { id: 'model-2' } });
    expect(played.calls.find((c) => c.name === 'buildSnapshot')?.args).toMatchObject({ synthetic: null });
    const names = played.calls.map((c) => c.name);
    expect(names.indexOf('awaitServing')).toBeLessThan(names.indexOf('sendTraffic'));
    expect(played.count('moveChampion')).toBeGreaterThanOrEqual(1);
  });

  it('renders scenes when the machine holds no photographs', async () => {
    const played = play({ planTurn: async () => ({ ...plan, hasImages: false }) });
    await turn(played);
    expect(played.count('registerRendered')).toBe(1);
    expect(played.count('importDataset')).toBe(0);
  });

  it('ends without a retrain when there are too few new hard cases, and says so', async () => {
    const few = {
      count: 5,
      failures: hex(15),
      corpus: hex(16),
      fromTruth: 5,
      fromTraffic: 0,
      hardest: [],
      considered: { truth: 6, traffic: 10 },
      unseen: [],
    };
    const played = play({ planTurn: async () => plan, mineHardCases: async () => few });
    const { outcome } = await turn(played);
    expect(outcome).toMatchObject({ candidate: null, withoutCandidate: expect.stringContaining('5 new hard cases') });
    expect(played.count('trainInput')).toBe(0);
  });

  it('keeps a candidate that the gate refuses out of the trial', async () => {
    const played = play({ planTurn: async () => plan, judgePair: async () => verdict('keep') });
    const { status } = await turn(played);
    expect(played.count('rejectModel')).toBe(1);
    expect(status.state.trial).toBeNull();
  });

  it('waits for the review list no longer than its time limit', () =>
    server.onOwnServer(async () => {
      const limit = 24 * 3600;
      const played = play({ planTurn: async () => ({ ...plan, reviewTimeoutSeconds: limit }) });
      const before = await server.env.currentTimeMs();
      const { outcome } = await turn(played);
      expect(outcome).toMatchObject({ candidate: { id: 'model-1' } });
      expect((await server.env.currentTimeMs()) - before).toBeGreaterThanOrEqual(limit * 1000);
    }));

  it('sends the challenges again whose answers the journal lost', async () => {
    let round = 0;
    const played = play({
      planTurn: async () => plan,
      sendTraffic: async () => ({ asked: 10, answered: 10, failed: 0, missing: round++ === 0 ? 3 : 0 }),
    });
    await turn(played);
    const rounds = played.calls.filter((c) => c.name === 'sendTraffic').map((c) => (c.args as { round: number }).round);
    expect(rounds.slice(0, 2)).toEqual([0, 1]);
  });

  it('names the stage that failed', async () => {
    const played = play({
      planTurn: async () => plan,
      registerSynthetic: async () => {
        throw ApplicationFailure.create({ message: 'parents from two pools', type: 'LeakError' });
      },
    });
    const { outcome } = await turn(played);
    expect(outcome).toMatchObject({
      cause: { type: 'StageFailed', message: expect.stringMatching(/stage "synthesis" failed: parents from two pools/) },
    });
    expect(played.calls.filter((c) => c.name === 'recordTurn').map((c) => c.args)).toContainEqual(
      expect.objectContaining({ patch: { failedStage: 'synthesis' } }),
    );
  });
});
