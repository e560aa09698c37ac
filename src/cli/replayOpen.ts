/** Proves that the code at hand fits every open history, before it is let near them. */
import type { Client } from '@temporalio/client';
import { Worker } from '@temporalio/worker';

/** New code does not fit a history that is still open; nothing was started. */
export class OpenHistoryMismatchError extends Error {
  override name = 'OpenHistoryMismatchError';
}

/**
 * @param workflowBundle code of the bundled workflows
 * @returns how many open histories were replayed
 * @throws OpenHistoryMismatchError naming the workflows that do not fit, and what to do
 */
export async function replayOpenHistories(client: Client, workflowBundle: { code: string }): Promise<number> {
  const open = client.workflow.list({ query: 'ExecutionStatus = "Running"' });
  const misfits: string[] = [];
  let count = 0;
  for await (const result of Worker.runReplayHistories({ workflowBundle }, open.intoHistories({ concurrency: 4 }))) {
    count += 1;
    if (result.error) misfits.push(`${result.workflowId}: ${result.error.message.split('\n')[0]}`);
  }
  if (misfits.length > 0) {
    throw new OpenHistoryMismatchError(
      [
        `This version's workflows do not fit ${misfits.length} of ${count} open workflows:`,
        ...misfits.map((m) => `  ${m}`),
        'Nothing was started and nothing was changed. Either start the version that ran them and let them finish,',
        'or end them (temporal workflow terminate --workflow-id ID) and start again: champion, labels and ledger are in the',
        'catalog, and the lifecycle is rebuilt from it.',
      ].join('\n'),
    );
  }
  return count;
}
