/** Keeps at the chain: reads the subnet again and again, advertises when the chain has something else, comes back when cut off. */
import { seededRng, type Rng } from '../../domain/rng.js';
import { endpointName, publicAddress } from './address.js';
import { blocksToWait, isCurrent, readAxon, serveAxon, type PayloadSigner } from './axon.js';
import { connectChain, withTimeout, type Chain } from './connect.js';
import { ChainError, explainRpcError } from './errors.js';
import { readMetagraph, type ChainMetagraph } from './metagraph.js';

/** How the miner's advertised address stands. */
export type AdvertiseState =
  /** no external address is configured: nothing is sent */
  | { state: 'off' }
  /** the chain has what is configured */
  | { state: 'current'; ip: string; port: number; block: number }
  /** just sent, and in a block */
  | { state: 'sent'; ip: string; port: number; blockHash: string }
  /** the chain's rate limit is not over: sent again then */
  | { state: 'waiting'; reason: string; blocks: number }
  /** the chain will not have it before the operator does something */
  | { state: 'refused'; reason: string }
  /** it did not work this time: tried again at the next look */
  | { state: 'failed'; reason: string };

/** The state in one line; null when nothing is advertised. */
export function describeAdvertised(advertised: AdvertiseState): string | null {
  switch (advertised.state) {
    case 'off':
      return null;
    case 'current':
      return `the chain has ${advertised.ip} port ${advertised.port}, since block ${advertised.block}`;
    case 'sent':
      return `${advertised.ip} port ${advertised.port} was just sent`;
    default:
      return advertised.reason;
  }
}

export type LogLevel = 'debug' | 'info' | 'warn' | 'error';

export interface Timings {
  /** between two readings, ms */
  refreshMs: number;
  /** for connecting and learning the runtime, ms */
  connectMs: number;
  /** for one reading of the subnet, ms */
  readMs: number;
  /** for one advertisement, ms */
  serveMs: number;
  /** the first wait after a failure, doubled with each further one, ms */
  backoffMs: number;
  backoffMaxMs: number;
  /** what a block takes, ms */
  blockMs: number;
}

export const TIMINGS: Timings = {
  refreshMs: 300_000,
  connectMs: 45_000,
  readMs: 60_000,
  serveMs: 60_000,
  backoffMs: 1_000,
  backoffMaxMs: 120_000,
  blockMs: 12_000,
};

export interface FollowOptions {
  endpoint: string;
  netuid: number;
  /** genesis hash that the chain must have; null: the first one seen is held on to */
  genesis: string | null;
  /** of the jitter, so that many miners do not ask all at once */
  seed: number | string;
  signer: PayloadSigner;
  timings: Timings;
  /** ms since the epoch */
  clock: () => number;
  onMetagraph(metagraph: ChainMetagraph): void;
  onAdvertise(state: AdvertiseState): void;
  /** why the last look failed; null when it did not */
  onProblem(problem: string | null): void;
  log(level: LogLevel, fields: Record<string, unknown>, message: string): void;
}

/** Share by which waits are longer or shorter, at most. */
const JITTER = 0.2;

export class Follower {
  private readonly rng: Rng;
  private readonly name: string;
  private genesis: string | null;
  private target: { ip: string; port: number } | null = null;
  private advertised: AdvertiseState = { state: 'off' };
  private stopped = false;
  private running: Promise<void> | null = null;
  /** ends the wait under way */
  private wake: (() => void) | null = null;
  private asked = false;
  private roundDone: (() => void)[] = [];
  /** ends the connection under way */
  private fail: ((error: Error) => void) | null = null;

  constructor(private readonly options: FollowOptions) {
    this.rng = seededRng(options.seed);
    this.name = endpointName(options.endpoint);
    this.genesis = options.genesis;
  }

  start(): void {
    this.running ??= this.run();
  }

  /** What the chain is to say from now on. Looks at once. @throws BadInputError for an address that validators cannot reach */
  advertise(ip: string, port: number): void {
    publicAddress(ip);
    this.target = { ip, port };
    void this.look();
  }

  /** Looks now rather than at the next turn. Resolves when a look that began after the call has ended, however. */
  look(): Promise<void> {
    if (this.stopped) return Promise.resolve();
    this.asked = true;
    this.wake?.();
    return new Promise((resolve) => this.roundDone.push(resolve));
  }

  /** The connection is good for nothing any more (the library choked on what it was sent): it is given up. */
  giveUp(error: Error): void {
    this.fail?.(new ChainError(`The node sent what cannot be read: ${error.message}`, null, { cause: error }));
  }

  async stop(): Promise<void> {
    this.stopped = true;
    this.wake?.();
    this.fail?.(new ChainError('The miner stops.'));
    await this.running;
    for (const done of this.roundDone.splice(0)) done();
  }

  private async run(): Promise<void> {
    const { timings } = this.options;
    let failures = 0;
    while (!this.stopped) {
      let chain: Chain | null = null;
      const over = new AbortController();
      const given = new Promise<never>((_, reject) => over.signal.addEventListener('abort', () => reject(over.signal.reason as Error)));
      given.catch(() => undefined);
      this.fail = (error) => over.abort(error);
      try {
        chain = await connectChain(this.options.endpoint, timings.connectMs, over.signal);
        this.checkGenesis(chain);
        this.options.log('info', { endpoint: this.name, genesis: chain.genesis }, 'connected to the chain');
        for (;;) {
          await Promise.race([this.round(chain, over.signal), given]);
          failures = 0;
          if (this.stopped || (await this.pause(this.untilNextLook(), chain.lost))) break;
        }
        if (!this.stopped) this.options.log('info', { endpoint: this.name }, 'the connection to the chain was lost; connecting anew');
      } catch (error) {
        failures += 1;
        if (!this.stopped) this.report(explainRpcError(error).message, failures);
      } finally {
        this.fail = null;
        await chain?.close();
      }
      for (const done of this.roundDone.splice(0)) done();
      this.asked = false;
      if (!this.stopped)
        await this.pause(this.jitter(Math.min(timings.backoffMs * 2 ** Math.max(0, failures - 1), timings.backoffMaxMs)), null);
    }
  }

  private report(problem: string, failures: number): void {
    this.options.onProblem(problem);
    this.options.log('warn', { endpoint: this.name, failures, error: problem }, 'the chain cannot be read; trying again');
  }

  /** One look. @throws ChainError when the metagraph cannot be had; a failed advertisement is a state, not an error */
  private async round(chain: Chain, over: AbortSignal): Promise<void> {
    const { timings, netuid } = this.options;
    const waiting = this.roundDone.length;
    this.asked = false;
    const metagraph = await withTimeout(
      readMetagraph(chain.api, chain.genesis, netuid, this.options.clock()),
      timings.readMs,
      'give the metagraph',
    );
    // Given up meanwhile: another look is under way, and this one has no say any more.
    if (over.aborted) return;
    this.genesis = chain.genesis;
    this.options.onMetagraph(metagraph);
    this.options.onProblem(null);
    await this.tell(chain, over);
    if (over.aborted) return;
    // Who came later waits for a look of his own. After a failure all are told, once the problem is.
    for (const done of this.roundDone.splice(0, waiting)) done();
  }

  private checkGenesis(chain: Chain): void {
    if (this.genesis !== null && chain.genesis !== this.genesis) {
      throw new ChainError(
        `${this.name} belongs to another chain (genesis ${chain.genesis}) than the one that was read before (genesis ${this.genesis}). Nothing of it is used. Check the endpoint; if the network was changed on purpose, remove the kept metagraph file and start again.`,
      );
    }
  }

  private async tell(chain: Chain, over: AbortSignal): Promise<void> {
    const { target } = this;
    if (target === null) return;
    const state = await this.advertiseOnce(chain, target).catch((error: unknown): AdvertiseState => {
      const known = explainRpcError(error);
      if (known.code === 'ServingRateLimitExceeded') return { state: 'waiting', reason: known.message, blocks: 1 };
      return known.code === null ? { state: 'failed', reason: known.message } : { state: 'refused', reason: known.message };
    });
    if (over.aborted) return;
    const news = JSON.stringify(state) !== JSON.stringify(this.advertised);
    this.advertised = state;
    if (!news) return;
    this.options.onAdvertise(state);
    const level = state.state === 'current' || state.state === 'sent' ? 'info' : state.state === 'waiting' ? 'warn' : 'error';
    this.options.log(level, { ...state, netuid: this.options.netuid }, 'address on the chain');
  }

  private async advertiseOnce(chain: Chain, target: { ip: string; port: number }): Promise<AdvertiseState> {
    const { netuid, signer, timings } = this.options;
    const address = publicAddress(target.ip);
    const { port } = target;
    const found = await withTimeout(readAxon(chain.api, netuid, signer.address), timings.readMs, 'say what is advertised');
    if (found.uid === null) {
      return {
        state: 'refused',
        reason: `The hotkey ${signer.address} is not registered on subnet ${netuid}: nothing was sent, and validators do not know this miner. Register it (btcli subnet register), or choose the netuid it is registered on.`,
      };
    }
    if (isCurrent(found, address, port)) return { state: 'current', ip: address.text, port, block: found.axon?.block ?? 0 };
    const blocks = blocksToWait(found);
    if (blocks > 0) {
      const was = found.axon === null ? 'nothing' : `${found.axon.ip}:${found.axon.port}`;
      return {
        state: 'waiting',
        blocks,
        reason: `The chain still has ${was}; it takes one advertisement in ${found.rateLimit} blocks, and the last was in block ${found.axon?.block ?? 0}. ${address.text}:${port} is sent in ${blocks} blocks (about ${Math.ceil((blocks * timings.blockMs) / 60_000)} min).`,
      };
    }
    const { blockHash } = await serveAxon(chain, signer, { netuid, address, port, timeoutMs: timings.serveMs });
    return { state: 'sent', ip: address.text, port, blockHash };
  }

  private untilNextLook(): number {
    const { refreshMs, blockMs } = this.options.timings;
    const usual = this.jitter(refreshMs);
    return this.advertised.state === 'waiting' ? Math.min(usual, (this.advertised.blocks + 1) * blockMs) : usual;
  }

  private jitter(ms: number): number {
    return ms * (1 - JITTER + 2 * JITTER * this.rng.next());
  }

  /** @returns true when `lost` ended it */
  private async pause(ms: number, lost: Promise<void> | null): Promise<boolean> {
    if (this.stopped || this.asked) return false;
    let timer: NodeJS.Timeout | undefined;
    try {
      return await Promise.race([
        new Promise<false>((resolve) => {
          timer = setTimeout(() => resolve(false), ms);
          this.wake = () => resolve(false);
        }),
        ...(lost === null ? [] : [lost.then(() => true)]),
      ]);
    } finally {
      clearTimeout(timer);
      this.wake = null;
    }
  }
}
