/** Commands that are a word to the workflows of a running flywheel. */
import { randomUUID } from 'node:crypto';
import type { Client } from '@temporalio/client';
import { BadInputError } from '../domain/errors.js';
import { openCatalogReadOnly } from '../platform/catalog/index.js';
import { connectTemporal, locateTemporal, type TemporalAddress } from '../platform/temporal/server.js';
import { TASK_QUEUE } from '../workflows/types.js';
import type { importImages } from '../workflows/index.js';
import type { CommandContext } from './context.js';
import { command, triggerTurn } from './controlCommands.js';
import { ensureIdentity } from './identity.js';
import { link } from './turnClient.js';

/** Runs `work` with a client of the running flywheel. @throws ServiceUnavailableError when none runs */
export async function withClient<T>(
  context: CommandContext,
  work: (client: Client, temporal: TemporalAddress, hotkey: string) => Promise<T>,
): Promise<T> {
  const temporal = await locateTemporal(context.paths);
  const { hotkey } = await ensureIdentity(context.paths);
  const client = await connectTemporal(temporal);
  try {
    return await work(client, temporal, hotkey.address);
  } finally {
    await client.connection.close();
  }
}

/** `flywheel turn` */
export async function turnCommand(context: CommandContext): Promise<void> {
  await withClient(context, async (client, temporal, hotkey) => {
    await triggerTurn(client, hotkey);
    await context.print(`A turn was asked for; one that runs already is not overtaken. Watch it: ${temporal.ui ?? temporal.address}`);
    await context.result({ asked: 'turn' });
  });
}

async function decide(context: CommandContext, verb: 'promote' | 'reject' | 'rollback', model: string | null): Promise<void> {
  if (model !== null) await refuseUnknown(context, model);
  await withClient(context, async (client, _temporal, hotkey) => {
    const id = await command(client, hotkey, verb, model);
    await context.print(`Accepted: ${verb}${model === null ? '' : ` ${model}`} (${id}). See \`flywheel status\`.`);
    await context.result({ accepted: verb, model, id });
  });
}

/** A name that the catalog does not know is refused at once, with the names it knows. */
async function refuseUnknown(context: CommandContext, model: string): Promise<void> {
  const catalog = await openCatalogReadOnly(context.paths.catalog);
  try {
    if ((await catalog.model(model)) !== null) return;
    const known = (await catalog.models()).map((m) => `${m.id} (${m.status})`);
    throw new BadInputError(`No model "${model}". Nothing was changed. Known: ${known.length > 0 ? known.join(', ') : 'none yet'}.`);
  } finally {
    await catalog.close();
  }
}

/** `flywheel promote MODEL` */
export const promoteCommand = (context: CommandContext, model: string): Promise<void> => decide(context, 'promote', model);
/** `flywheel reject MODEL` */
export const rejectCommand = (context: CommandContext, model: string): Promise<void> => decide(context, 'reject', model);
/** `flywheel rollback` */
export const rollbackCommand = (context: CommandContext): Promise<void> => decide(context, 'rollback', null);

/** `flywheel import DIR` */
export async function importCommand(context: CommandContext, data: string): Promise<void> {
  await withClient(context, async (client, temporal) => {
    const stage = context.progress.stage('import');
    const workflowId = `import-${randomUUID()}`;
    try {
      const handle = await client.workflow.start<typeof importImages>('importImages', {
        taskQueue: TASK_QUEUE,
        workflowId,
        staticSummary: `import ${data}`,
        args: [{ data }],
      });
      stage.update({ message: link(temporal, workflowId) ?? workflowId });
      const summary = await handle.result();
      stage.done();
      context.progress.close();
      await context.print(JSON.stringify(summary, null, 2));
      await context.result({ imported: summary });
    } catch (error) {
      stage.fail('failed');
      throw workflowFailure(error, 'import', link(temporal, workflowId));
    }
  });
}

/** The activity's own words: a failed workflow's outer message says only that it failed. */
export function workflowFailure(error: unknown, stage: string, where: string | null): unknown {
  let cause: unknown = error;
  while (cause instanceof Error && cause.cause instanceof Error) cause = cause.cause;
  if (!(cause instanceof Error) || cause === error) return error;
  const type = (cause as { type?: unknown }).type;
  const named = new Error(`${cause.message}${where === null ? '' : ` See ${where}`}`);
  named.name = typeof type === 'string' ? type : 'StageFailedError';
  return named.name === 'StageFailedError' ? Object.assign(named, { stage, link: where }) : named;
}
