/** `flywheel worker` as a process: finds Temporal, Python and the hotkey, then serves until it is told to stop. */
import { ensurePython } from '../platform/python/env.js';
import { locateTemporal } from '../platform/temporal/server.js';
import type { CommandContext } from './context.js';
import { ensureIdentity } from './identity.js';
import { runService } from './service.js';
import { startWorker } from './workerCommand.js';

/** @throws ServiceUnavailableError without Temporal or Python; OpenHistoryMismatchError after an upgrade that does not fit */
export async function workerCommand(context: CommandContext): Promise<void> {
  await runService(async () => {
    const temporal = await locateTemporal(context.paths);
    const { python } = await ensurePython();
    const { address: hotkey } = (await ensureIdentity(context.paths)).hotkey;
    const worker = await startWorker({ home: context.paths.root, config: context.config, temporal, python, hotkey });
    const failed = worker.done.then((): never => {
      throw new Error('The worker stopped by itself.');
    });
    failed.catch(() => undefined);
    return { info: {}, failed, stop: () => worker.stop() };
  });
}
