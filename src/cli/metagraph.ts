/** Where the miner's metagraph comes from: a file, or the chain, which is then told where validators find the miner. */
import type { FlywheelConfig } from '../domain/config.js';
import { BadInputError } from '../domain/errors.js';
import { fileMetagraph } from '../platform/metagraph/index.js';
import type { MetagraphSource } from '../platform/ports.js';
import { chainMetagraph, publicAddress } from '../platform/subtensor/index.js';
import type { CommandContext } from './context.js';
import type { Identity } from './identity.js';

export interface MetagraphOptions {
  /** a file's path, or `chain` */
  metagraph?: string;
  externalIp?: string;
  externalPort?: number;
}

const CHAIN = 'chain';

/** FLYWHEEL_CHAIN_ENDPOINT, else the configuration's. @throws BadInputError when it is no ws:// or wss:// address */
export function chainEndpoint(config: Pick<FlywheelConfig, 'chain'>): string {
  const own = process.env.FLYWHEEL_CHAIN_ENDPOINT;
  if (own === undefined || own === '') return config.chain.endpoint;
  if (!/^wss?:\/\/[^\s]+$/.test(own) || !URL.canParse(own))
    throw new BadInputError('FLYWHEEL_CHAIN_ENDPOINT: a ws:// or wss:// address expected. Nothing was started.');
  return own;
}

/** Whether the chain is to be followed: by option, by environment, by configuration, in this order. */
function followsChain(config: Pick<FlywheelConfig, 'chain'>, options: Pick<MetagraphOptions, 'metagraph'>): boolean {
  if (options.metagraph !== undefined) return options.metagraph === CHAIN;
  const file = process.env.FLYWHEEL_METAGRAPH_FILE;
  return file === undefined || file === '' ? config.chain.follow : false;
}

/** Whether the metagraph is the one that was made for this home, with the built-in validator in it. */
export function isEmbedded(config: Pick<FlywheelConfig, 'chain'>, options: Pick<MetagraphOptions, 'metagraph'>): boolean {
  return options.metagraph === undefined && (process.env.FLYWHEEL_METAGRAPH_FILE ?? '') === '' && !config.chain.follow;
}

/**
 * Opens the metagraph and, on the chain, sees to it that validators are sent to the external address.
 * @param port the axon's own, which is advertised unless another is named
 * @throws BadInputError when a file cannot be used, the address cannot be reached, or one is given without a chain
 */
export async function openMetagraph(
  context: Pick<CommandContext, 'config' | 'paths' | 'logger' | 'print'>,
  identity: Identity,
  options: MetagraphOptions,
  port: number,
): Promise<MetagraphSource> {
  const { config, paths, logger, print } = context;
  if (!followsChain(config, options)) {
    if (options.externalIp !== undefined || options.externalPort !== undefined) {
      throw new BadInputError(
        '--external-ip and --external-port are told to the chain: give --metagraph chain with them (or "chain": {"follow": true}). Nothing was started.',
      );
    }
    return fileMetagraph(options.metagraph ?? identity.metagraphFile);
  }
  const ip = options.externalIp ?? config.chain.externalIp;
  const externalPort = options.externalPort ?? (config.chain.externalPort === 0 ? port : config.chain.externalPort);
  // Before anything is opened: a wrong address is to be known now, not when the chain is there.
  if (ip !== '') publicAddress(ip);
  const source = await chainMetagraph({
    home: paths.root,
    endpoint: chainEndpoint(config),
    netuid: config.netuid,
    hotkey: identity.hotkey,
    seed: config.seed,
    logger,
    timings: { refreshMs: config.chain.refreshSeconds * 1000 },
  });
  if (ip !== '') source.advertise(ip, externalPort);
  if (process.send === undefined) {
    if (source.problem !== null) await print(`${source.name}: ${source.problem}`);
    else await print(`${source.name}: ${source.neurons.length} neurons at block ${source.block ?? 0}`);
    if (ip === '') await print('Nothing is advertised: give --external-ip for that.');
  }
  return source;
}
