/** The last good metagraph on disk, so that a miner starts and serves while no node can be reached. */
import path from 'node:path';
import { z } from 'zod';
import { BadInputError } from '../../domain/errors.js';
import { readJsonIfExists, writeJsonAtomic } from '../fsutil.js';
import { ChainMetagraph } from './metagraph.js';

/** Also readable as a metagraph file: the neurons are where `--metagraph FILE` looks for them. */
const Cached = ChainMetagraph.extend({ v: z.literal(1), endpoint: z.string() });
export type Cached = z.infer<typeof Cached>;

/** `<home>/metagraph-<netuid>.json` */
export function cacheFile(home: string, netuid: number): string {
  return path.join(home, `metagraph-${netuid}.json`);
}

/** @returns null when there is none, or none of this subnet; `problem` says why one that is there cannot be used */
export async function readCache(file: string, netuid: number): Promise<{ cached: Cached | null; problem: string | null }> {
  try {
    const cached = await readJsonIfExists(file, Cached);
    if (cached !== null && cached.netuid !== netuid)
      return { cached: null, problem: `${file} holds subnet ${cached.netuid}, not ${netuid}: not used.` };
    return { cached, problem: null };
  } catch (error) {
    if (error instanceof BadInputError) return { cached: null, problem: error.message };
    throw error;
  }
}

/** Whole or not at all. @param endpoint name of the endpoint, without secrets */
export async function writeCache(file: string, metagraph: ChainMetagraph, endpoint: string): Promise<void> {
  await writeJsonAtomic(file, { v: 1, endpoint, ...metagraph } satisfies Cached);
}
