import { describe, expect, it } from 'vitest';
import { answerReviews, dailyTurn } from '../../src/workflows/index.js';
import { turnProgress } from '../../src/workflows/messages.js';
import { timeSkipping } from '../support/temporal.js';
import { hex, play, withWorker } from './support.js';

const DAY = 86_400;
const taken = { taken: 1, known: 0, notAsked: 0, notAskedFirst: [], open: 1, finished: [] as string[], turns: ['turn-waits'] };

describe('answerReviews', () => {
  const server = timeSkipping();

  const waiting = (over: Parameters<typeof play>[0] = {}) =>
    play({
      planTurn: async ({ turn }) => ({
        turn,
        index: 1,
        seed: 1,
        config: hex(9),
        champion: { id: 'c', bundle: hex(50), trained: hex(51) },
        hasImages: true,
        // No retrain: the turn ends soon after its labels.
        retrainAbove: 1000,
        reviewTimeoutSeconds: 30 * DAY,
        maxJobSeconds: 60,
      }),
      ...over,
    });
  const turn = (taskQueue: string) =>
    server.env.client.workflow.start(dailyTurn, {
      taskQueue,
      workflowId: 'turn-waits',
      args: [{ hotkey: 'h', data: 'photographs', simulated: true }],
    });
  const answer = (taskQueue: string, workflowId: string, goOn: boolean) =>
    server.env.client.workflow.execute(answerReviews, { taskQueue, workflowId, args: [{ answers: hex(40), goOn }] });

  it('lets the turn that waits for them go on when all are answered, long before its time limit', async () => {
    const played = waiting({ answerReviews: async () => ({ ...taken, open: 0, finished: ['turn-waits'] }) });
    await withWorker(server.env, played, async (taskQueue) => {
      const began = await server.env.currentTimeMs();
      const handle = await turn(taskQueue);
      await expect
        .poll(async () => (await handle.query(turnProgress)).waitsFor, { timeout: 20_000 })
        .toMatch(/1 images \(flywheel review\)/);
      await answer(taskQueue, 'answers-1', false);
      await handle.result();
      expect((await server.env.currentTimeMs()) - began).toBeLessThan(29 * DAY * 1000);
    });
    expect(played.count('buildSnapshot')).toBe(1);
  });

  it('lets it wait while images are unanswered, unless told to go on', async () => {
    const played = waiting({ answerReviews: async () => taken });
    await withWorker(server.env, played, async (taskQueue) => {
      const handle = await turn(taskQueue);
      await expect.poll(async () => (await handle.query(turnProgress)).waitsFor, { timeout: 20_000 }).not.toBeNull();
      await answer(taskQueue, 'answers-2', false);
      expect((await handle.query(turnProgress)).waitsFor).not.toBeNull();
      await answer(taskQueue, 'answers-3', true);
      await handle.result();
    });
    expect(played.count('buildSnapshot')).toBe(1);
  });

  it('keeps the answers where the turn has ended meanwhile', async () => {
    const played = play({ answerReviews: async () => ({ ...taken, open: 0, finished: ['turn-long-gone'] }) });
    const said = await withWorker(server.env, played, (taskQueue) => answer(taskQueue, 'answers-4', false));
    expect(said.taken).toBe(1);
  });
});
