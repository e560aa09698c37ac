/**
 * Records the histories that replay.test.ts replays, on a real Temporal server with played activities:
 * `npm run histories`. Without RECORD_HISTORIES nothing is written, so there is nothing to run.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { findTemporal } from '../../src/platform/temporal/server.js';
import { answerReviews, dailyTurn, gpuJob, importImages, lifecycle } from '../../src/workflows/index.js';
import { candidateReady, lifecycleStatus, promoteSignal, rollbackUpdate } from '../../src/workflows/messages.js';
import { createLocalEnv } from '../support/temporal.js';
import { hex, play, verdict, withWorker } from './support.js';

const folder = fileURLToPath(new URL('./histories/', import.meta.url));

describe.runIf(process.env['RECORD_HISTORIES'])('recording histories', () => {
  it('writes one or more of each workflow', { timeout: 120_000 }, async () => {
    mkdirSync(folder, { recursive: true });
    const { env, address, teardown } = await createLocalEnv();
    const save = async (id: string, name: string) => {
      // The command line's own JSON: what the Temporal UI exports, too.
      const shown = execFileSync(
        findTemporal()!.path,
        ['workflow', 'show', '--address', address, '--workflow-id', id, '--output', 'json'],
        { encoding: 'utf8', maxBuffer: 1e8 },
      );
      writeFileSync(path.join(folder, `${name}.json`), `${JSON.stringify(JSON.parse(shown), null, 1)}\n`);
    };
    try {
      let ends = 0;
      let looks = 0;
      const played = play({
        planTurn: async ({ turn }) => ({
          turn,
          index: 0,
          seed: 1,
          config: hex(9),
          champion: null,
          hasImages: true,
          retrainAbove: 5,
          reviewTimeoutSeconds: 1,
          maxJobSeconds: 60,
        }),
        watchJob: async () => (++ends === 2 ? { outcome: 'again', message: 'interrupted' } : { outcome: 'done', message: '' }),
        judgePair: async () => verdict(++looks === 3 ? 'promote' : 'continue'),
      });
      await withWorker(env, played, async (taskQueue) => {
        const { workflow } = env.client;
        await workflow.execute(importImages, { taskQueue, workflowId: 'import-recorded', args: [{ data: 'photographs' }] });
        await save('import-recorded', 'importImages.folder');
        await workflow.execute(answerReviews, { taskQueue, workflowId: 'answers-recorded', args: [{ answers: hex(40), goOn: false }] });
        await save('answers-recorded', 'answerReviews.turnEnded');
        await workflow.execute(gpuJob, {
          taskQueue,
          workflowId: 'job-recorded',
          args: [{ kind: 'train', input: {}, turn: 'turn-1', summary: 'train', maxSeconds: 60 }],
        });
        await save('job-recorded', 'gpuJob.trained');
        const hotkey = 'hotkey-recorded';
        const owner = await workflow.start(lifecycle, {
          taskQueue,
          workflowId: `lifecycle-${hotkey}`,
          args: [{ hotkey, decay: 'plan-90-180', trial: { lookEverySeconds: 1, maxSeconds: 600, maxJobSeconds: 60 }, state: null }],
        });
        await workflow.execute(dailyTurn, {
          taskQueue,
          workflowId: 'turn-recorded',
          args: [{ hotkey, data: 'photographs', simulated: true }],
        });
        await save('turn-recorded', 'dailyTurn.firstChampion');
        await expect.poll(async () => (await owner.query(lifecycleStatus)).state.champion?.model.id, { timeout: 30_000 }).toBe('model-2');
        await save('trial-model-2-hotkey-r', 'shadowTrial.promoted');
        looks = 10; // from here on only 'continue'
        await owner.signal(candidateReady, {
          model: { id: 'm3', bundle: hex(33), trained: hex(34) },
          turn: 'turn-2',
          first: false,
          simulated: true,
          config: hex(9),
          seed: 2,
        });
        await expect
          .poll(async () => (await owner.query(lifecycleStatus)).state.trial?.looks ?? 0, { timeout: 30_000 })
          .toBeGreaterThanOrEqual(1);
        await owner.signal(promoteSignal);
        await expect.poll(async () => (await owner.query(lifecycleStatus)).state.champion?.model.id, { timeout: 30_000 }).toBe('m3');
        await save('trial-m3-hotkey-r', 'shadowTrial.calledOff');
        await owner.executeUpdate(rollbackUpdate, { args: ['recorder'] });
        await sleep(1000);
        await save(`lifecycle-${hotkey}`, 'lifecycle.promotedAndRolledBack');
        await owner.terminate('recorded');
      });
    } finally {
      await teardown();
    }
  });
});
