import { describe, expect, it } from 'vitest';
import { shadowTrial } from '../../src/workflows/index.js';
import type { TrialInput } from '../../src/workflows/types.js';
import { timeSkipping } from '../support/temporal.js';
import { hex, play, verdict, withWorker } from './support.js';
import { listen } from './listener.js';

const HOUR = 3600;

describe('shadowTrial', () => {
  const server = timeSkipping();
  let run = 0;

  async function input(over: Partial<TrialInput> = {}): Promise<TrialInput> {
    run += 1;
    return {
      id: `trial-${run}`,
      hotkey: `hotkey-trial-${run}`,
      champion: { id: 'old', bundle: hex(50), trained: hex(51) },
      candidate: { id: 'new', bundle: hex(60), trained: hex(61) },
      turn: 'turn-1',
      simulated: true,
      config: hex(9),
      seed: 1,
      lookEverySeconds: HOUR,
      maxSeconds: 7 * 24 * HOUR,
      maxJobSeconds: 60,
      openedAt: await server.env.currentTimeMs(),
      looks: 0,
      ...over,
    };
  }

  it('goes on looking, at its interval, until the evidence decides', async () => {
    let looks = 0;
    const played = play({ judgePair: async () => verdict(++looks < 4 ? 'continue' : 'promote') });
    const order = await input();
    const started = await server.env.currentTimeMs();
    await listen(server.env, order.hotkey, async (reports) =>
      withWorker(server.env, played, async (taskQueue) => {
        const outcome = await server.env.client.workflow.execute(shadowTrial, { taskQueue, workflowId: order.id, args: [order] });
        expect(outcome).toMatchObject({ decision: 'promote', looks: 4 });
        // The last report is on its way when the trial has ended.
        await expect
          .poll(async () => (await reports()).map((r) => [r.looks, r.final]), { timeout: 10_000 })
          .toEqual([
            [1, false],
            [2, false],
            [3, false],
            [4, true],
          ]);
      }),
    );
    expect((await server.env.currentTimeMs()) - started).toBeGreaterThanOrEqual(3 * HOUR * 1000);
    expect(played.count('closeShadow')).toBe(1);
    // every look has challenges of its own
    const seeds = played.calls.filter((c) => c.name === 'challengesInput').map((c) => (c.args as { seed: number }).seed);
    expect(new Set(seeds).size).toBe(4);
  });

  it('keeps the champion when its longest time is over, through as many runs as that takes', async () => {
    const played = play({ judgePair: async () => verdict('continue') });
    const order = await input({ lookEverySeconds: 4 * HOUR });
    await listen(server.env, order.hotkey, async () =>
      withWorker(server.env, played, async (taskQueue) => {
        const outcome = await server.env.client.workflow.execute(shadowTrial, { taskQueue, workflowId: order.id, args: [order] });
        expect(outcome.decision).toBe('keep');
        expect(outcome.verdict?.reason).toMatch(/longest time is over/);
        // 7 days at 6 looks a day: more than one run's worth
        expect(outcome.looks).toBeGreaterThan(24);
      }),
    );
  });

  it('sends no traffic of its own on a live trial', async () => {
    const played = play();
    const order = await input({ simulated: false });
    await listen(server.env, order.hotkey, async () =>
      withWorker(server.env, played, (taskQueue) =>
        server.env.client.workflow.execute(shadowTrial, { taskQueue, workflowId: order.id, args: [order] }),
      ),
    );
    expect(played.count('sendTraffic')).toBe(0);
    expect(played.count('shadowStatistics')).toBe(1);
  });

  it('takes the candidate out of the shadow when it is called off', async () => {
    const played = play({ judgePair: async () => verdict('continue') });
    const order = await input({ lookEverySeconds: 30 * 24 * HOUR, maxSeconds: 300 * 24 * HOUR });
    await listen(server.env, order.hotkey, async (reports) =>
      withWorker(server.env, played, async (taskQueue) => {
        const handle = await server.env.client.workflow.start(shadowTrial, { taskQueue, workflowId: order.id, args: [order] });
        await expect.poll(async () => (await reports()).length, { timeout: 10_000 }).toBe(1);
        await handle.cancel();
        await expect(handle.result()).rejects.toThrow();
        expect((await reports()).every((r) => !r.final)).toBe(true);
      }),
    );
    expect(played.count('closeShadow')).toBe(1);
  });

  it('reports why it broke off', async () => {
    const { ApplicationFailure } = await import('@temporalio/activity');
    const played = play({
      evaluateModel: async () => {
        throw ApplicationFailure.create({ message: 'bundle is corrupt', type: 'ObjectCorruptError' });
      },
    });
    const order = await input();
    await listen(server.env, order.hotkey, async (reports) =>
      withWorker(server.env, played, async (taskQueue) => {
        await expect(server.env.client.workflow.execute(shadowTrial, { taskQueue, workflowId: order.id, args: [order] })).rejects.toThrow();
        await expect.poll(reports, { timeout: 10_000 }).toMatchObject([{ final: true, failure: 'bundle is corrupt' }]);
      }),
    );
  });
});
