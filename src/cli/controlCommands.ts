/** `promote`, `reject`, `rollback`, `turn`: a word to the workflows of a running flywheel. */
import { WorkflowUpdateFailedError, type Client } from '@temporalio/client';
import { BadInputError } from '../domain/errors.js';
import { lifecycleId, scheduleId } from '../workflows/ids.js';
import { lifecycleStatus, promoteUpdate, rejectUpdate, rollbackUpdate } from '../workflows/messages.js';
import type { lifecycle } from '../workflows/index.js';
import type { LifecycleState } from '../workflows/types.js';

/**
 * @param model name or bundle digest; null: the candidate on trial
 * @returns id of the accepted command
 * @throws BadInputError with the lifecycle's own refusal
 */
export async function command(
  client: Client,
  hotkey: string,
  verb: 'promote' | 'reject' | 'rollback',
  model: string | null,
): Promise<string> {
  const owner = client.workflow.getHandle<typeof lifecycle>(lifecycleId(hotkey));
  try {
    if (verb === 'promote') return await owner.executeUpdate(promoteUpdate, { args: [model, 'command line'] });
    if (verb === 'reject') return await owner.executeUpdate(rejectUpdate, { args: [model, 'command line'] });
    return await owner.executeUpdate(rollbackUpdate, { args: ['command line'] });
  } catch (error) {
    if (error instanceof WorkflowUpdateFailedError)
      throw new BadInputError(`${error.cause?.message ?? error.message}. Nothing was changed.`);
    throw error;
  }
}

/** The lifecycle's state now. */
export async function lifecycleState(client: Client, hotkey: string): Promise<LifecycleState> {
  return (await client.workflow.getHandle<typeof lifecycle>(lifecycleId(hotkey)).query(lifecycleStatus)).state;
}

/** Starts the daily turn now, as the Schedule would. */
export async function triggerTurn(client: Client, hotkey: string): Promise<void> {
  await client.schedule.getHandle(scheduleId(hotkey)).trigger();
}
