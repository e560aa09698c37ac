/** The subnet's metagraph from the chain, as the miner sees it: the last good list at any moment, whatever the chain does. */
import { existsSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import type { Hotkey } from '../bittensor/keys.js';
import { compiledEntry } from '../entry.js';
import type { MetagraphSource, Neuron } from '../ports.js';
import { ServiceUnavailableError } from '../unavailable.js';
import { endpointName, publicAddress } from './address.js';
import type { AxonOnChain } from './axon.js';
import { cacheFile, readCache, writeCache } from './cache.js';
import { withTimeout } from './connect.js';
import { ChainError } from './errors.js';
import { describeAdvertised, TIMINGS, type AdvertiseState, type Timings } from './follow.js';
import type { ChainMetagraph } from './metagraph.js';
import type { FromThread, ThreadData, ToThread } from './thread.js';

/** A pino logger fits. */
export interface ChainLogger {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

export interface ChainMetagraphOptions {
  /** folder of the kept list */
  home: string;
  /** ws:// or wss:// */
  endpoint: string;
  netuid: number;
  hotkey: Hotkey;
  /** of the jitter between readings */
  seed: number;
  logger: ChainLogger;
  timings?: Partial<Timings>;
  /** longest wait for the first reading when no list is kept, ms; default 20 s */
  firstMs?: number;
  /** ms since the epoch; default: the machine's clock */
  clock?: () => number;
}

export interface ChainMetagraphSource extends MetagraphSource {
  /** block of the list; null while there is none */
  readonly block: number | null;
  readonly advertised: AdvertiseState;
  /**
   * Sees to it that the chain sends validators to this address, now and whenever the chain says otherwise.
   * @throws BadInputError for an address that validators cannot reach
   */
  advertise(ip: string, port: number): void;
}

const EMPTY: readonly Neuron[] = [];
const FIRST_MS = 20_000;
/** A thread that ended by itself is started again after this, ms. */
const RESTART_MS = 5_000;
const STOP_MS = 3_000;
/** Of the thread; a runtime's metadata takes some 100 MB while it is read. */
const HEAP_MB = 512;

/**
 * @param printed what the library says about its connections: ours to log, not the operator's terminal's to show
 * @throws ServiceUnavailableError when the program was not built
 */
function startThread(data: ThreadData, printed: (text: string) => void): Worker {
  const entry = compiledEntry('platform/subtensor/thread');
  if (!existsSync(entry))
    throw new ServiceUnavailableError(`The compiled ${entry} is missing. Build the program (npm run build), then start again.`);
  const resourceLimits = { maxOldGenerationSizeMb: HEAP_MB };
  const thread = new Worker(entry, { workerData: data, name: 'chain', execArgv: [], stdout: true, stderr: true, resourceLimits });
  for (const stream of [thread.stdout, thread.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => printed(text.trim().slice(0, 500)));
  return thread;
}

/**
 * What the chain advertises for a hotkey, asked once.
 * @param timeoutMs for connecting and asking together, ms
 * @throws ChainError when the node cannot be asked
 */
export async function askAxon(options: { endpoint: string; netuid: number; hotkey: string; timeoutMs: number }): Promise<AxonOnChain> {
  const { endpoint, netuid, hotkey, timeoutMs } = options;
  const timings: Timings = { ...TIMINGS, connectMs: timeoutMs };
  const thread = startThread({ task: 'ask', endpoint, netuid, genesis: null, seed: 0, hotkey, timings }, () => undefined);
  try {
    const answer = new Promise<AxonOnChain>((resolve, reject) => {
      thread.on('message', (message: FromThread) => {
        if (message.kind === 'axon') resolve(message.found);
        else if (message.kind === 'failed') reject(new ChainError(message.error));
      });
      thread.on('error', (error) => reject(new ChainError(`The chain's thread failed: ${(error as Error).message}`)));
    });
    return await withTimeout(answer, timeoutMs, 'say what is advertised');
  } finally {
    await thread.terminate();
  }
}

/**
 * Begins to follow the chain. With a kept list it is there at once, however old, and the chain is asked meanwhile;
 * without one the first reading is waited for, and when it does not come the list stays empty until it does.
 * @throws ServiceUnavailableError when the program was not built
 */
export async function chainMetagraph(options: ChainMetagraphOptions): Promise<ChainMetagraphSource> {
  const { netuid, logger, hotkey } = options;
  const clock = options.clock ?? Date.now;
  const endpoint = endpointName(options.endpoint);
  const file = cacheFile(options.home, netuid);
  const timings: Timings = { ...TIMINGS, ...options.timings };

  let metagraph: ChainMetagraph | null = null;
  let trouble: string | null = null;
  let advertised: AdvertiseState = { state: 'off' };
  let target: { ip: string; port: number } | null = null;
  let closing: Promise<void> | null = null;
  let worker: Worker | null = null;
  let exited: Promise<void> = Promise.resolve();
  let restart: NodeJS.Timeout | undefined;
  let lastId = 0;
  let writing: Promise<void> = Promise.resolve();
  const looks = new Map<number, () => void>();
  const listeners = new Set<() => void>();
  const changed = (): void => {
    for (const listener of listeners) listener();
  };

  const kept = await readCache(file, netuid);
  if (kept.problem !== null) logger.warn({ file, error: kept.problem }, 'the kept metagraph cannot be used; the chain is asked');
  if (kept.cached !== null) {
    metagraph = kept.cached;
    logger.info({ file, block: metagraph.block, ageSeconds: Math.round((clock() - metagraph.at) / 1000) }, 'metagraph kept from before');
  }

  function receive(message: FromThread): void {
    switch (message.kind) {
      case 'metagraph': {
        const before = metagraph;
        metagraph = message.metagraph;
        writing = writing
          .then(() => writeCache(file, message.metagraph, endpoint))
          .catch((error: unknown) => logger.warn({ file, error: (error as Error).message }, 'the metagraph could not be kept on disk'));
        if (before === null || JSON.stringify(before.neurons) !== JSON.stringify(metagraph.neurons)) changed();
        break;
      }
      case 'problem': {
        const news = trouble !== message.problem;
        trouble = message.problem;
        if (news) changed();
        break;
      }
      case 'advertised':
        advertised = message.state;
        break;
      case 'looked':
        looks.get(message.id)?.();
        looks.delete(message.id);
        break;
      case 'sign':
        answer(message.id, message.payload);
        break;
      case 'axon':
      case 'failed':
        // Answers to a question asked once; a thread that follows gives none.
        break;
      case 'log':
        logger[message.level](message.fields, message.message);
        break;
    }
  }

  function tell(message: ToThread): void {
    worker?.postMessage(message);
  }

  function answer(id: number, payload: Uint8Array): void {
    let signature: Uint8Array | null = null;
    try {
      signature = hotkey.sign(payload);
    } catch (error) {
      logger.error({ error: (error as Error).message }, 'the advertisement could not be signed');
    }
    tell({ kind: 'signed', id, signature });
  }

  function begin(): void {
    const data: ThreadData = {
      task: 'follow',
      endpoint: options.endpoint,
      netuid,
      genesis: metagraph?.genesis ?? null,
      seed: `${options.seed}:${hotkey.address}`,
      hotkey: hotkey.address,
      timings,
    };
    const thread = startThread(data, (text) => logger.debug({ text }, 'chain library'));
    worker = thread;
    let crash: Error | null = null;
    thread.on('message', receive);
    thread.on('error', (error) => (crash = error as Error));
    exited = new Promise((resolve) => {
      thread.on('exit', () => {
        worker = null;
        for (const done of looks.values()) done();
        looks.clear();
        resolve();
        if (closing !== null) return;
        trouble = `The chain's thread ended unexpectedly${crash === null ? '' : `: ${crash.message}`}.`;
        logger.error({ error: trouble }, 'the chain is not followed; starting anew');
        changed();
        restart = setTimeout(begin, RESTART_MS);
      });
    });
    if (target !== null) tell({ kind: 'advertise', ...target });
  }

  function look(): Promise<void> {
    if (worker === null) return Promise.resolve();
    return new Promise((resolve) => {
      const id = ++lastId;
      looks.set(id, resolve);
      tell({ kind: 'look', id });
    });
  }

  const source: ChainMetagraphSource = {
    name: `chain ${endpoint} netuid ${netuid}`,
    get neurons(): readonly Neuron[] {
      return metagraph?.neurons ?? EMPTY;
    },
    get asOf() {
      return metagraph?.at ?? 0;
    },
    get problem() {
      if (trouble === null) return metagraph === null ? 'The chain was not read yet: nobody may ask so far.' : null;
      const holds =
        metagraph === null
          ? 'There is no kept list: nobody may ask until the chain was read.'
          : `The list of block ${metagraph.block}, ${Math.round((clock() - metagraph.at) / 60_000)} min old, holds.`;
      return `${trouble} ${holds}`;
    },
    get address() {
      return describeAdvertised(advertised);
    },
    get block() {
      return metagraph?.block ?? null;
    },
    get advertised() {
      return advertised;
    },
    onChange(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    reload: look,
    advertise(ip, port) {
      publicAddress(ip);
      target = { ip, port };
      tell({ kind: 'advertise', ip, port });
    },
    close() {
      closing ??= (async () => {
        clearTimeout(restart);
        const thread = worker;
        tell({ kind: 'stop' });
        const slow = setTimeout(() => void thread?.terminate(), STOP_MS);
        await exited;
        clearTimeout(slow);
        await writing;
      })();
      return closing;
    },
  };

  begin();
  if (metagraph === null) {
    let timer: NodeJS.Timeout | undefined;
    await Promise.race([look(), new Promise((resolve) => (timer = setTimeout(resolve, options.firstMs ?? FIRST_MS)))]);
    clearTimeout(timer);
  }
  return source;
}
