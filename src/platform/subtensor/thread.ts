/**
 * Entry of the chain's thread, started by `source.ts`, never imported: learning a runtime's metadata takes the better part
 * of a second of computing, which must not stand in the way of a validator's request. The hotkey stays outside: what is
 * to be signed is sent out, and the signature comes back.
 */
import { parentPort, workerData, type MessagePort } from 'node:worker_threads';
import { readAxon, type AxonOnChain } from './axon.js';
import { connectChain, type Chain } from './connect.js';
import { explainRpcError } from './errors.js';
import { Follower, type AdvertiseState, type LogLevel, type Timings } from './follow.js';
import type { ChainMetagraph } from './metagraph.js';

export interface ThreadData {
  /** `follow` until told to stop, or `ask` once what the chain advertises for the hotkey */
  task: 'follow' | 'ask';
  endpoint: string;
  netuid: number;
  genesis: string | null;
  seed: number | string;
  /** SS58 address of the miner's hotkey */
  hotkey: string;
  timings: Timings;
}
export type ToThread =
  | { kind: 'advertise'; ip: string; port: number }
  | { kind: 'look'; id: number }
  /** signature null: refused */
  | { kind: 'signed'; id: number; signature: Uint8Array | null }
  | { kind: 'stop' };
export type FromThread =
  | { kind: 'metagraph'; metagraph: ChainMetagraph }
  | { kind: 'advertised'; state: AdvertiseState }
  | { kind: 'problem'; problem: string | null }
  | { kind: 'looked'; id: number }
  | { kind: 'axon'; found: AxonOnChain }
  | { kind: 'failed'; error: string }
  | { kind: 'sign'; id: number; payload: Uint8Array }
  | { kind: 'log'; level: LogLevel; fields: Record<string, unknown>; message: string };

/** The library loses a promise or two when a connection breaks; every wait here has a time-out of its own. */
function onLostPromise(then: (error: string) => void): void {
  process.on('unhandledRejection', (reason) => then(reason instanceof Error ? reason.message : String(reason)));
}

async function ask(data: ThreadData, tell: (message: FromThread) => void): Promise<void> {
  const fail = (error: unknown): void => tell({ kind: 'failed', error: explainRpcError(error).message });
  onLostPromise(() => undefined);
  process.on('uncaughtException', fail);
  let chain: Chain | null = null;
  try {
    chain = await connectChain(data.endpoint, data.timings.connectMs);
    tell({ kind: 'axon', found: await readAxon(chain.api, data.netuid, data.hotkey) });
  } catch (error) {
    fail(error);
  } finally {
    await chain?.close();
  }
}

function follow(port: MessagePort, data: ThreadData, tell: (message: FromThread) => void): void {
  const signing = new Map<number, { resolve(signature: Uint8Array): void; reject(error: Error): void }>();
  let lastId = 0;
  const follower = new Follower({
    endpoint: data.endpoint,
    netuid: data.netuid,
    genesis: data.genesis,
    seed: data.seed,
    timings: data.timings,
    clock: Date.now,
    signer: {
      address: data.hotkey,
      sign: (payload) =>
        new Promise((resolve, reject) => {
          const id = ++lastId;
          signing.set(id, { resolve, reject });
          tell({ kind: 'sign', id, payload });
        }),
    },
    onMetagraph: (metagraph) => tell({ kind: 'metagraph', metagraph }),
    onAdvertise: (state) => tell({ kind: 'advertised', state }),
    onProblem: (problem) => tell({ kind: 'problem', problem }),
    log: (level, fields, message) => tell({ kind: 'log', level, fields, message }),
  });
  onLostPromise((error) => tell({ kind: 'log', level: 'debug', fields: { error }, message: 'a call was lost with the connection' }));
  // It parses what a node sends where nobody can catch it.
  process.on('uncaughtException', (error) => follower.giveUp(error));
  port.on('message', (message: ToThread) => {
    switch (message.kind) {
      case 'advertise':
        follower.advertise(message.ip, message.port);
        break;
      case 'look':
        void follower.look().then(() => tell({ kind: 'looked', id: message.id }));
        break;
      case 'signed': {
        const waiting = signing.get(message.id);
        signing.delete(message.id);
        if (message.signature === null) waiting?.reject(new Error('the hotkey did not sign'));
        else waiting?.resolve(message.signature);
        break;
      }
      case 'stop':
        void follower.stop().then(() => port.close());
        break;
    }
  });
  follower.start();
}

function serve(): void {
  const port = parentPort;
  if (port === null) throw new Error('The chain is followed in a worker thread only.');
  const data = workerData as ThreadData;
  const tell = (message: FromThread): void => port.postMessage(message);
  if (data.task === 'follow') follow(port, data, tell);
  else void ask(data, tell).finally(() => port.close());
}

serve();
