/** `flywheel miner` as a process: serves the champion until it is told to stop. */
import { BadInputError } from '../domain/errors.js';
import { runMiner, type Miner } from '../miner/index.js';
import { choosePort } from '../platform/network.js';
import { sets } from '../platform/config.js';
import type { CommandContext } from './context.js';
import { ensureIdentity } from './identity.js';
import type { MinerOptions } from './main.js';
import { openMetagraph } from './metagraph.js';
import { runService } from './service.js';

const CONTROL_HOST = '127.0.0.1';

/**
 * The ports that a miner is to have. Asked for by name (option or configuration file): exactly that one; otherwise the
 * preset's, or a free one.
 * @throws ServiceUnavailableError when a port asked for is in use
 */
export async function minerPorts(
  context: CommandContext,
  options: { host?: string; port?: number; controlPort?: number },
): Promise<{ port: number; controlPort: number }> {
  const { port } = context.config.miner;
  const host = options.host ?? context.config.miner.host;
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

/**
 * @throws BadInputError for options that cannot be, keys and metagraphs that cannot be used; ServiceUnavailableError when a
 * port asked for is in use. Nothing is left running then
 */
export async function minerCommand(context: CommandContext, options: MinerOptions): Promise<void> {
  await runService(async () => {
    const { config, paths } = context;
    if (options.open === true && [options.metagraph, options.externalIp, options.externalPort].some((option) => option !== undefined))
      throw new BadInputError(
        '--open lets everybody in on loopback, so --metagraph, --external-ip and --external-port would say nothing. Nothing was started. Leave one or the other out.',
      );
    const identity = await ensureIdentity(paths, options, true);
    const host = options.host ?? config.miner.host;
    const { port, controlPort } = await minerPorts(context, { ...options, host });
    const metagraph = options.open === true ? null : await openMetagraph(context, identity, options, port);
    let miner: Miner;
    try {
      miner = await runMiner({
        home: paths.root,
        host,
        port,
        controlPort,
        hotkey: identity.hotkey,
        bundle: options.bundle ?? null,
        metagraph,
        minStake: config.miner.minStake,
        open: options.open === true,
        rate: config.miner.rate,
        processes: config.miner.processes,
        threads: config.miner.threads,
        providers: config.miner.providers,
        latencyBudgetMs: config.miner.latencyBudgetMs,
        keepPrevious: config.miner.keepPrevious,
        journalMaxBytes: config.miner.journalMaxBytes,
        journalMaxAgeMs: config.miner.journalMaxAgeDays * 86_400_000,
        journalSync: config.miner.journalSync,
        logger: context.logger,
      });
    } catch (error) {
      await metagraph?.close();
      throw error;
    }
    if (process.send === undefined) await context.print(`Miner ${identity.hotkey.address} at ${miner.url} (control ${miner.controlUrl})`);
    return { info: { url: miner.url, controlUrl: miner.controlUrl, hotkey: identity.hotkey.address }, stop: () => miner.stop() };
  });
}
