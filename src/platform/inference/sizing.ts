/** Sizes of a pool: how many inference processes, and threads each, by what is configured, the cores, the GPUs and the model. */
import os from 'node:os';
import { graphBytes, type Bundle } from '../../domain/contracts/bundle.js';

/**
 * A model whose largest graph is no larger gains little from a second thread, since its operations are too short to share:
 * another process with another image gains more. Measured on two cores: two EfficientNet-Lite0 (13 MB each) answer 125
 * images/s in two processes of one thread and 70 to 91 in one of two; a ViT-B (340 MB) as many either way, and in half
 * the time each with two threads. Bytes of ONNX.
 */
const SMALL_BYTES = 32 * 1024 * 1024;
/** More than any miner is asked for; each process takes memory. */
const MOST_SMALL = 4;

/** What the derivation of processes and threads looks at. */
export interface Machine {
  cores: number;
  /** GPUs that will be used; 0: the CPU computes */
  gpus: number;
  /** bytes of the largest graph of the bundle; Infinity: unknown, taken as large */
  graphBytes: number;
}

/**
 * Processes and threads from the GPUs, or from the cores and the model. One process a GPU: a second would only share it.
 * On more than two cores one is left to the HTTP front. Small models: one thread a process; large ones: about four.
 * @param processes as configured; 0: derived
 * @param threads as configured, a process; 0: derived
 */
export function deriveSizes(processes: number, threads: number, machine: Partial<Machine> = {}): { processes: number; threads: number } {
  const { cores = os.availableParallelism(), gpus = 0, graphBytes = Number.POSITIVE_INFINITY } = machine;
  const usable = cores <= 2 ? cores : cores - 1;
  const small = graphBytes <= SMALL_BYTES;
  const per = threads > 0 ? threads : small ? 1 : 4;
  const byCores = Math.max(1, Math.floor(usable / per));
  const many = processes > 0 ? processes : gpus > 0 ? gpus : small ? Math.min(MOST_SMALL, byCores) : byCores;
  return { processes: many, threads: threads > 0 ? threads : small && gpus === 0 ? 1 : Math.max(1, Math.floor(usable / many)) };
}

/** Bytes of the largest graph of a bundle; Infinity when it cannot be told, which the process that loads it explains. */
export function largestGraphBytes(bundle: Pick<Bundle, 'members'> | null): number {
  return bundle === null ? Number.POSITIVE_INFINITY : Math.max(...bundle.members.map(graphBytes));
}
