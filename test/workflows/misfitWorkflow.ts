/** An `importImages` of another version: it waits before it imports. */
import { sleep } from '@temporalio/workflow';

export async function importImages(): Promise<void> {
  await sleep('30 days');
}
