import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ApplicationFailure } from '@temporalio/activity';
import type { TestWorkflowEnvironment } from '@temporalio/testing';
import { importImages } from '../../src/workflows/index.js';
import { createTimeSkippingEnv } from '../support/temporal.js';
import { play, withWorker } from './support.js';

describe('importImages', () => {
  let env: TestWorkflowEnvironment;
  beforeAll(async () => {
    env = await createTimeSkippingEnv();
  });
  afterAll(() => env?.teardown());

  it('imports the folder it is given', async () => {
    const played = play();
    const summary = await withWorker(env, played, (taskQueue) =>
      env.client.workflow.execute(importImages, { taskQueue, workflowId: 'import-1', args: [{ data: 'photographs' }] }),
    );
    expect(summary.train).toBe(6);
    expect(played.calls).toEqual([{ name: 'importDataset', args: { turn: 'import', data: 'photographs', seed: 0 } }]);
  });

  it('does not try again what retrying cannot mend', async () => {
    const played = play({
      importDataset: async () => {
        throw ApplicationFailure.create({ message: 'labels.csv has no column "label"', type: 'BadInputError' });
      },
    });
    await withWorker(env, played, async (taskQueue) => {
      await expect(
        env.client.workflow.execute(importImages, { taskQueue, workflowId: 'import-2', args: [{ data: 'x' }] }),
      ).rejects.toThrow();
    });
    expect(played.count('importDataset')).toBe(1);
  });
});
