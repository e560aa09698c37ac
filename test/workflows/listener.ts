/** Runs the listener workflow under a lifecycle's id while `body` runs. */
import { fileURLToPath } from 'node:url';
import { WorkflowNotFoundError } from '@temporalio/client';
import type { TestWorkflowEnvironment } from '@temporalio/testing';
import { bundleWorkflowCode, Worker, type WorkflowBundleWithSourceMap } from '@temporalio/worker';
import type { TrialReport } from '../../src/workflows/types.js';
import { listener, reportsQuery } from './listenerWorkflow.js';
import { resolveTypeScript } from './support.js';

let bundle: Promise<WorkflowBundleWithSourceMap> | undefined;

export async function listen<T>(
  env: TestWorkflowEnvironment,
  hotkey: string,
  body: (reports: () => Promise<TrialReport[]>) => Promise<T>,
): Promise<T> {
  bundle ??= bundleWorkflowCode({
    workflowsPath: fileURLToPath(new URL('./listenerWorkflow.ts', import.meta.url)),
    webpackConfigHook: resolveTypeScript,
  });
  const taskQueue = `listener-${hotkey}`;
  const worker = await Worker.create({ connection: env.nativeConnection, taskQueue, workflowBundle: await bundle });
  return worker.runUntil(async () => {
    const handle = await env.client.workflow.start(listener, { taskQueue, workflowId: `lifecycle-${hotkey}` });
    try {
      return await body(() => handle.query(reportsQuery));
    } finally {
      // Skipped time may have gone past the server's own limit for a run that waits for ever.
      await handle.terminate('the test is over').catch((error: unknown) => {
        if (!(error instanceof WorkflowNotFoundError)) throw error;
      });
    }
  });
}
