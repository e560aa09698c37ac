/** What `up` does before new code may touch what runs, and the Schedule it keeps; on a real server. */
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ScheduleOverlapPolicy } from '@temporalio/client';
import { bundleWorkflowCode, Worker } from '@temporalio/worker';
import { OpenHistoryMismatchError, replayOpenHistories } from '../../src/cli/replayOpen.js';
import { ensureSchedule } from '../../src/cli/workerCommand.js';
import { loadConfig } from '../../src/platform/config.js';
import { lifecycle } from '../../src/workflows/index.js';
import { lifecycleStatus } from '../../src/workflows/messages.js';
import { scheduleId } from '../../src/workflows/ids.js';
import { createLocalEnv, type LocalEnv } from '../support/temporal.js';
import { play, resolveTypeScript, withWorker, workflowBundle } from './support.js';

describe('an upgrade', () => {
  let local: LocalEnv;
  beforeAll(async () => {
    local = await createLocalEnv();
  });
  afterAll(() => local?.teardown());

  it('lets code in that fits every open history, and refuses it, naming the workflow, when one does not fit', async () => {
    const { client, nativeConnection } = local.env;
    const { code } = await workflowBundle();
    await withWorker(local.env, play(), async (taskQueue) => {
      const fits = await client.workflow.start(lifecycle, {
        taskQueue,
        workflowId: 'lifecycle-fits',
        args: [
          { hotkey: 'fits', decay: 'plan-90-180', trial: { lookEverySeconds: 3600, maxSeconds: 86_400, maxJobSeconds: 60 }, state: null },
        ],
      });
      expect((await fits.query(lifecycleStatus)).state.hotkey).toBe('fits');
    });
    await expect.poll(() => replayOpenHistories(client, { code }), { timeout: 20_000 }).toBe(1);

    const other = await bundleWorkflowCode({
      workflowsPath: fileURLToPath(new URL('./misfitWorkflow.ts', import.meta.url)),
      webpackConfigHook: resolveTypeScript,
    });
    const worker = await Worker.create({ connection: nativeConnection, taskQueue: 'other-version', workflowBundle: other });
    const handle = await worker.runUntil(async () => {
      const started = await client.workflow.start('importImages', { taskQueue: 'other-version', workflowId: 'import-of-other-version' });
      await expect
        .poll(async () => (await started.fetchHistory()).events?.some((e) => e.timerStartedEventAttributes), { timeout: 20_000 })
        .toBe(true);
      return started;
    });
    // Visibility is a moment behind.
    let refusal: unknown;
    await expect
      .poll(
        async () => {
          refusal = await replayOpenHistories(client, { code }).catch((error: unknown) => error);
          return refusal instanceof OpenHistoryMismatchError;
        },
        { timeout: 20_000 },
      )
      .toBe(true);
    expect((refusal as Error).message).toMatch(/import-of-other-version/);
    expect((refusal as Error).message).not.toMatch(/lifecycle-fits/);
    await handle.terminate('the test is over');
  });

  it('keeps one Schedule of the daily turn: at 02:00, never overtaking a running one, paused when the operator paused it', async () => {
    const { client } = local.env;
    const config = loadConfig({});
    const hotkey = '5SchedulesOwnHotkey';
    await ensureSchedule(client, { config, hotkey });
    const handle = client.schedule.getHandle(scheduleId(hotkey));
    const first = await handle.describe();
    expect(first.policies.overlap).toBe(ScheduleOverlapPolicy.SKIP);
    expect(first.spec.calendars?.[0]).toMatchObject({ hour: [{ start: 2 }], minute: [{ start: 0 }] });
    expect(first.action).toMatchObject({ workflowType: 'dailyTurn' });

    await handle.pause('the operator is away');
    await ensureSchedule(client, { config: { ...config, schedule: { cron: '30 3 * * *', timezone: 'UTC' } }, hotkey });
    const second = await handle.describe();
    expect(second.spec.calendars?.[0]).toMatchObject({ hour: [{ start: 3 }], minute: [{ start: 30 }] });
    expect(second.state.paused).toBe(true);
    await handle.delete();
  });
});
