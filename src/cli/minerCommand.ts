/** `flywheel miner` as a process: serves the champion until it is told to stop. */
import { runMiner } from '../miner/index.js';
import { choosePort } from '../platform/network.js';
import { sets } from '../platform/config.js';
import type { CommandContext } from './context.js';
import { ensureIdentity } from './identity.js';
import { openMetagraph, type MetagraphOptions } from './metagraph.js';
import { runService } from './service.js';

const CONTROL_HOST = '127.0.0.1';

/**
 * The ports that a miner is to have. Asked for by name (option or configuration file): exactly that one; otherwise the
 * preset's, or a free one.
 * @throws ServiceUnavailableError when a port asked for is in use
 */
export async function minerPorts(
  context: CommandContext,
  options: { port?: number; controlPort?: number },
): Promise<{ port: number; controlPort: number }> {
  const { host, port } = context.config.miner;
  const byName = options.port !== undefined || sets(context.configFile, ['miner', 'port']);
  const chosen = await choosePort(host, options.port ?? port, byName, 'by name for the miner');
  let control = await choosePort(
    CONTROL_HOST,
    options.controlPort ?? 0,
    options.controlPort !== undefined,
    "by name for the miner's control",
  );
  while (control === chosen) control = await choosePort(CONTROL_HOST, 0, false, "for the miner's control");
  return { port: chosen, controlPort: control };
}

/** @throws ServiceUnavailableError when a port asked for is in use; BadInputError for a metagraph or address that cannot be used */
export async function minerCommand(
  context: CommandContext,
  options: MetagraphOptions & { port?: number; controlPort?: number },
): Promise<void> {
  await runService(async () => {
    const { config, paths } = context;
    const identity = await ensureIdentity(paths);
    const { port, controlPort } = await minerPorts(context, options);
    const metagraph = await openMetagraph(context, identity, options, port);
    const miner = await runMiner({
      home: paths.root,
      host: config.miner.host,
      port,
      controlPort,
      hotkey: identity.hotkey,
      metagraph,
      minStake: config.miner.minStake,
      open: false,
      processes: config.miner.processes,
      threads: config.miner.threads,
      providers: config.miner.providers,
      latencyBudgetMs: config.miner.latencyBudgetMs,
      keepPrevious: config.miner.keepPrevious,
      journalMaxBytes: config.miner.journalMaxBytes,
      logger: context.logger,
    }).catch(async (error: unknown) => {
      await metagraph.close();
      throw error;
    });
    if (process.send === undefined) await context.print(`Miner ${identity.hotkey.address} at ${miner.url} (control ${miner.controlUrl})`);
    return { info: { url: miner.url, controlUrl: miner.controlUrl, hotkey: identity.hotkey.address }, stop: () => miner.stop() };
  });
}
