import { describe, expect, it } from 'vitest';
import { ApplicationFailure, CancelledFailure, Context } from '@temporalio/activity';
import { gpuJob } from '../../src/workflows/index.js';
import type { GpuJobInput } from '../../src/workflows/types.js';
import { timeSkipping } from '../support/temporal.js';
import { play, withWorker } from './support.js';

const job: GpuJobInput = { kind: 'train', input: {}, turn: 'turn-1', summary: 'train', maxSeconds: 60 };

describe('gpuJob', () => {
  const server = timeSkipping();

  it('reserves before it launches, and ends the machine after it collected', async () => {
    const played = play();
    const result = await withWorker(server.env, played, (taskQueue) =>
      server.env.client.workflow.execute(gpuJob, { taskQueue, workflowId: 'job-order', args: [job] }),
    );
    expect(played.calls.map((c) => c.name)).toEqual(['reserveJob', 'launchJob', 'watchJob', 'collectJob', 'endJob']);
    expect(result.attempts).toBe(1);
  });

  it('starts an interrupted job again under the same name, so that it goes on from its checkpoint', async () => {
    let ends = 0;
    const played = play({
      watchJob: async () => (++ends < 3 ? { outcome: 'again', message: 'interrupted' } : { outcome: 'done', message: '' }),
    });
    const result = await withWorker(server.env, played, (taskQueue) =>
      server.env.client.workflow.execute(gpuJob, { taskQueue, workflowId: 'job-again', args: [job] }),
    );
    expect(result.attempts).toBe(3);
    expect(new Set(played.calls.filter((c) => c.name === 'launchJob').map((c) => (c.args as { name: string }).name))).toEqual(
      new Set(['job-again']),
    );
    expect(played.count('reserveJob')).toBe(1);
  });

  it('does not try bad input again, and still ends the machine', async () => {
    const played = play({ watchJob: async () => ({ outcome: 'bad-input', message: 'one class only' }) });
    await withWorker(server.env, played, async (taskQueue) => {
      await expect(server.env.client.workflow.execute(gpuJob, { taskQueue, workflowId: 'job-bad', args: [job] })).rejects.toMatchObject({
        cause: { message: expect.stringContaining('one class only'), type: 'JobFailedError' },
      });
    });
    expect(played.count('launchJob')).toBe(1);
    expect(played.count('endJob')).toBe(1);
  });

  it('launches nothing when the budget refuses', async () => {
    const played = play({
      reserveJob: async () => {
        throw ApplicationFailure.create({ message: 'the month is spent', type: 'BudgetExceededError' });
      },
    });
    await withWorker(server.env, played, async (taskQueue) => {
      await expect(server.env.client.workflow.execute(gpuJob, { taskQueue, workflowId: 'job-poor', args: [job] })).rejects.toThrow();
    });
    expect(played.count('reserveJob')).toBe(1);
    expect(played.count('launchJob')).toBe(0);
  });

  it('ends the machine when it is cancelled half-way', async () => {
    const played = play({
      watchJob: async () => {
        const context = Context.current();
        const beat = setInterval(() => context.heartbeat(), 100);
        try {
          return await context.cancelled;
        } finally {
          clearInterval(beat);
        }
      },
    });
    await withWorker(server.env, played, async (taskQueue) => {
      const handle = await server.env.client.workflow.start(gpuJob, { taskQueue, workflowId: 'job-cancel', args: [job] });
      await expect.poll(() => played.count('watchJob'), { timeout: 10_000 }).toBe(1);
      await handle.cancel();
      await expect(handle.result()).rejects.toMatchObject({ cause: expect.any(CancelledFailure) });
    });
    expect(played.count('endJob')).toBe(1);
  });

  it('gives up after a stated number of starts, and says what the last end was', async () => {
    const played = play({ watchJob: async () => ({ outcome: 'again', message: 'the host vanished' }) });
    await withWorker(server.env, played, async (taskQueue) => {
      await expect(server.env.client.workflow.execute(gpuJob, { taskQueue, workflowId: 'job-lost', args: [job] })).rejects.toMatchObject({
        cause: { message: expect.stringContaining('the host vanished') },
      });
    });
    expect(played.count('endJob')).toBe(1);
  });
});
