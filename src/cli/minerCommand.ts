/** `flywheel miner` as a process: serves the champion until it is told to stop. */
import { BadInputError } from '../domain/errors.js';
import { runMiner, type Miner } from '../miner/index.js';
import { choosePort } from '../platform/network.js';
import { sets } from '../platform/config.js';
import type { CommandContext } from './context.js';
import { writeOut } from './exit.js';
import { ensureIdentity } from './identity.js';
import type { MinerOptions } from './main.js';
import { isEmbedded, openMetagraph } from './metagraph.js';
import { runService } from './service.js';

const CONTROL_HOST = '127.0.0.1';

/**
 * The ports that a miner is to have. Asked for by name (option or configuration file): exactly that one; otherwise the
 * preset's, or a free one.
 * @throws ServiceUnavailableError when a port asked for is in use
 */
export async function minerPorts(
  context: CommandContext,
  options: { host?: string; port?: number; controlPort?: number; validatorPort?: number },
): Promise<{ port: number; controlPort: number; validatorPort: number }> {
  const { port } = context.config.miner;
  const host = options.host ?? context.config.miner.host;
  const byName = options.port !== undefined || sets(context.configFile, ['miner', 'port']);
  const chosen = await choosePort(host, options.port ?? port, byName, 'by name for the miner');
  const taken = [chosen];
  const loopback = async (wanted: number | undefined, what: string): Promise<number> => {
    let port = await choosePort(CONTROL_HOST, wanted ?? 0, wanted !== undefined, `by name for ${what}`);
    while (taken.includes(port)) port = await choosePort(CONTROL_HOST, 0, false, `for ${what}`);
    taken.push(port);
    return port;
  };
  const controlPort = await loopback(options.controlPort, "the miner's control");
  return { port: chosen, controlPort, validatorPort: await loopback(options.validatorPort, 'the built-in validator') };
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
    if (identity.warning !== null) {
      context.logger.warn({ hotkey: identity.hotkey.address }, identity.warning);
      await writeOut(process.stderr, `flywheel: warning: ${identity.warning}\n`);
    }
    const host = options.host ?? config.miner.host;
    const { port, controlPort, validatorPort } = await minerPorts(context, { ...options, host });
    const metagraph = options.open === true ? null : await openMetagraph(context, identity, options, port);
    // The embedded metagraph lists the built-in validator; any other does not, and must not have to.
    const alone = options.open !== true && !isEmbedded(config, options);
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
        ...(alone ? { ownValidator: { hotkey: identity.validator, port: validatorPort } } : {}),
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
    const { url, controlUrl, validatorUrl } = miner;
    const info = { url, controlUrl, hotkey: identity.hotkey.address, ...(validatorUrl === null ? {} : { validatorUrl }) };
    return { info, stop: () => miner.stop() };
  });
}
