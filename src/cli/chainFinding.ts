/** What `flywheel doctor` says of the chain: whether validators are sent to this miner, and whether something answers there. */
import { existsSync } from 'node:fs';
import type { FlywheelConfig } from '../domain/config.js';
import { askAxon, cacheFile, ChainError, endpointName, isCurrent, probeAxon, publicAddress } from '../platform/subtensor/index.js';
import type { Finding } from './doctor.js';
import { minerHotkey } from './hotkeyFinding.js';
import { chainEndpoint } from './metagraph.js';

const ASK_MS = 30_000;
const PROBE_MS = 8_000;
const NAME = 'Axon on the chain';

/**
 * Asks the chain what it advertises for the miner's hotkey, and connects there. Only where the chain is used at all: it is
 * followed by configuration, FLYWHEEL_CHAIN_ENDPOINT is set, or a miner of this home has followed it before.
 */
export async function chainFinding(home: string, config: Pick<FlywheelConfig, 'chain' | 'netuid'>): Promise<Finding> {
  const { netuid, chain } = config;
  const finding = (state: Finding['state'], detail: string): Finding => ({ name: NAME, state, version: null, detail });
  const environment = process.env.FLYWHEEL_CHAIN_ENDPOINT ?? '';
  if (!chain.follow && environment === '' && !existsSync(cacheFile(home, netuid)))
    return finding('optional', 'not checked: no chain is configured (`flywheel miner --metagraph chain`)');
  try {
    const key = await minerHotkey(home);
    if (key === null) return finding('optional', 'not checked: there is no hotkey yet');
    const hotkey = key.address;
    const endpoint = chainEndpoint(config);
    const found = await askAxon({ endpoint, netuid, hotkey, timeoutMs: ASK_MS });
    const where = `${endpointName(endpoint)}, subnet ${netuid}`;
    if (found.uid === null)
      return finding('missing', `not registered: ${where} does not know ${hotkey}; register it with btcli subnet register`);
    const { axon } = found;
    if (axon === null || axon.value === 0n)
      return finding(
        'missing',
        `uid ${found.uid}, but nothing is advertised: start the miner with --metagraph chain --external-ip ADDRESS`,
      );
    const there = `${axon.ip} port ${axon.port} (uid ${found.uid}, block ${axon.block})`;
    if (chain.externalIp !== '') {
      const wanted = publicAddress(chain.externalIp);
      const port = chain.externalPort === 0 ? axon.port : chain.externalPort;
      if (!isCurrent(found, wanted, port))
        return finding(
          'missing',
          `differs from configured: the chain has ${there}, the configuration ${wanted.text} port ${port}; start the miner`,
        );
    }
    const probe = await probeAxon(axon.ip, axon.port, PROBE_MS);
    return probe.answers
      ? finding('found', `${there} answers`)
      : finding(
          'missing',
          `${there} does not answer: ${probe.why}. Is the miner running? Check firewall and port forwarding; some routers do not let a machine reach its own public address, then try from elsewhere`,
        );
  } catch (error) {
    return finding('missing', error instanceof ChainError ? `the chain cannot be asked: ${error.message}` : (error as Error).message);
  }
}
