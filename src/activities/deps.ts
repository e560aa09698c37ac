/** What activities may use of the world: ports, handed in, so that a test hands in others. */
import { Context } from '@temporalio/activity';
import type { Logger } from 'pino';
import type { FlywheelConfig } from '../domain/config.js';
import type { MinerStatus } from '../domain/contracts/miner.js';
import type { Catalog, GpuBackend, ModelHub, Notifier, ObjectStore, SubnetRegistry } from '../platform/ports.js';
import type { HomePaths } from '../platform/home.js';

/** A challenge on its way to a miner: the validator's side of the axon protocol. */
export interface ValidatorClient {
  /** @returns the miner's answer; prediction null with an error where there was none */
  ask(image: Uint8Array, timeoutSeconds: number): Promise<{ prediction: number | null; status: number | null; error: string | null }>;
  close(): Promise<void>;
}

export interface ActivityDeps {
  home: HomePaths;
  catalog: Catalog;
  objects: ObjectStore;
  gpu: GpuBackend;
  hub: ModelHub;
  registry: SubnetRegistry;
  notifier: Notifier;
  /** configuration of this process; a turn works by the copy that was fixed when it began */
  config: FlywheelConfig;
  clock: () => number;
  log: Logger;
  /** state of the miner from its loopback control port; null while it does not answer */
  minerStatus: () => Promise<MinerStatus | null>;
  /** built-in validator, pointed at our own miner */
  validator: () => Promise<ValidatorClient>;
  /** compute threads for evaluation beside the miner */
  threads: number;
}

/** Progress of the work at hand, for heartbeats and for the bars of `flywheel up`. */
export interface StageProgress {
  turn: string;
  what: string;
  done: number;
  total: number;
  unit: string;
}

/** @returns a function that beats, and throws when the activity was cancelled */
export function beating(): (details?: StageProgress) => void {
  const context = Context.current();
  return (details) => {
    context.heartbeat(details);
    if (context.cancellationSignal.aborted) throw context.cancellationSignal.reason;
  };
}

/** Beats while a promise that reports nothing is under way. */
export async function beatWhile<T>(work: Promise<T>, details?: StageProgress): Promise<T> {
  const context = Context.current();
  const timer = setInterval(() => context.heartbeat(details), 2000);
  try {
    return await Promise.race([work, context.cancelled]);
  } finally {
    clearInterval(timer);
  }
}
