/**
 * The home folder: all state of one instance. Two instances with two homes run beside each other.
 * Also the note of what runs now.
 */
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { z } from 'zod';
import { BadInputError } from '../domain/errors.js';
import { writeJsonAtomic } from './fsutil.js';

/** Every path below a home; folders exist with mode 0700 once `homePaths` returned. */
export interface HomePaths {
  readonly root: string;
  /** SQLite catalog; written by the worker only */
  readonly catalog: string;
  /** content-addressed store */
  readonly objects: string;
  /** bundles laid out as folders for the miner */
  readonly bundles: string;
  /** a folder a job */
  readonly jobs: string;
  /** features and the like: may be deleted at any time */
  readonly cache: string;
  /** the miner's journal: segments/ and images/ */
  readonly journal: string;
  readonly keys: string;
  /** publishable model folders */
  readonly published: string;
  readonly temporal: string;
  readonly temporalDb: string;
  readonly logs: string;
  readonly run: string;
  readonly services: string;
  readonly lock: string;
  /** champion's pointer, written by the lifecycle only */
  readonly champion: string;
  /** shadow order; absent when no trial runs */
  readonly shadow: string;
  /** metagraph of the embedded set-up */
  readonly metagraph: string;
  readonly minerKey: string;
  readonly validatorKey: string;
}

/**
 * @param home absolute or relative folder; made, with its folders, readable by its owner alone
 * @throws BadInputError when it cannot be made
 */
export function homePaths(home: string): HomePaths {
  const root = path.resolve(home);
  const below = (...parts: string[]): string => path.join(root, ...parts);
  const paths: HomePaths = {
    root,
    catalog: below('catalog.db'),
    objects: below('objects'),
    bundles: below('bundles'),
    jobs: below('jobs'),
    cache: below('cache'),
    journal: below('journal'),
    keys: below('keys'),
    published: below('published'),
    temporal: below('temporal'),
    temporalDb: below('temporal', 'temporal.db'),
    logs: below('logs'),
    run: below('run'),
    services: below('run', 'services.json'),
    lock: below('run', 'up.lock'),
    champion: below('champion.json'),
    shadow: below('shadow.json'),
    metagraph: below('metagraph.json'),
    minerKey: below('keys', 'miner.json'),
    validatorKey: below('keys', 'validator.json'),
  };
  try {
    for (const folder of [
      root,
      paths.objects,
      paths.bundles,
      paths.jobs,
      paths.cache,
      paths.journal,
      paths.keys,
      paths.published,
      paths.temporal,
      paths.logs,
      paths.run,
    ]) {
      mkdirSync(folder, { recursive: true, mode: 0o700 });
    }
  } catch (error) {
    throw new BadInputError(
      `Cannot make the home folder ${root}: ${(error as Error).message}. Nothing was started. Give another one with --home.`,
    );
  }
  return paths;
}

/** A process by id and start time: an id alone may have been given to another process since. */
export const ProcessNote = z.object({ pid: z.number().int(), start: z.string() });
export type ProcessNote = z.infer<typeof ProcessNote>;

/** `<home>/run/services.json`: what the running instance consists of. */
export const Services = z.object({
  up: ProcessNote.nullable(),
  temporal: z.object({ address: z.string(), namespace: z.string(), ui: z.string().nullable(), external: z.boolean() }).nullable(),
  miner: z
    .object({
      url: z.string(),
      controlUrl: z.string(),
      hotkey: z.string(),
      /** where the built-in validator asks; absent: at `url` */
      validatorUrl: z.string().optional(),
    })
    .nullable(),
  /** children by name */
  children: z.record(z.string(), ProcessNote),
});
export type Services = z.infer<typeof Services>;

const NO_SERVICES: Services = { up: null, temporal: null, miner: null, children: {} };

/** @returns what was noted last; an absent or half-written file means nothing was */
export function readServices(paths: Pick<HomePaths, 'services'>): Services {
  if (!existsSync(paths.services)) return { ...NO_SERVICES, children: {} };
  try {
    return Services.parse(JSON.parse(readFileSync(paths.services, 'utf8')));
  } catch {
    // Written by rename, so this is a file of another version: its processes end by themselves with their parent.
    return { ...NO_SERVICES, children: {} };
  }
}

/** Replaces the note as a whole, by rename. */
export async function writeServices(paths: Pick<HomePaths, 'services'>, services: Services): Promise<void> {
  await writeJsonAtomic(paths.services, services, { mode: 0o600 });
}
