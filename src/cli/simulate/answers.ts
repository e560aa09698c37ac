/** How simulated challenges are answered: over the wire, as a whole validator asks, or by a bundle through the miner's own code. */
import { stat } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { graphBytes } from '../../domain/contracts/bundle.js';
import { BadInputError } from '../../domain/errors.js';
import { NO_ANSWER } from '../../domain/metrics.js';
import { connectDendrite } from '../../platform/bittensor/dendrite.js';
import type { Hotkey } from '../../platform/bittensor/keys.js';
import { openCatalogReadOnly } from '../../platform/catalog/index.js';
import { evaluate } from '../../platform/inference/evaluate.js';
import { loadBundle, materialise } from '../../platform/inference/bundle.js';
import type { FileObjectStore } from '../../platform/objects/index.js';
import { ServiceUnavailableError } from '../../platform/unavailable.js';
import type { CommandContext } from '../context.js';

export interface Answers {
  name: string;
  /** one a challenge, in their order; -1: none, or too late */
  predictions: number[];
  /** of those that answered, ms, sorted */
  latencies: number[];
  /** why there was no answer, with how often */
  errors: Map<string, number>;
  /** bundle's digest and bytes; null over the wire */
  bundle: { digest: string | null; bytes: number } | null;
}

interface Challenge {
  digest: string;
}

/** A miner that gave no sign of life on the first so many challenges is not asked on. */
const SIGN_OF_LIFE = 8;

/**
 * Asks a miner as a validator does: signed, one attempt each, so many at once, within the deadline.
 * @throws ServiceUnavailableError when it does not answer at all: no connection, or silence on the first challenges
 */
export async function askMiner(
  context: CommandContext,
  objects: FileObjectStore,
  rows: readonly Challenge[],
  options: { url: string; axonHotkey: string; hotkey: Hotkey; timeoutSeconds: number; concurrency: number; signal: AbortSignal },
): Promise<Answers> {
  const dendrite = connectDendrite({ hotkey: options.hotkey });
  const stage = context.progress.stage('challenges');
  const answers: Answers = { name: options.url, predictions: rows.map(() => NO_ANSWER), latencies: [], errors: new Map(), bundle: null };
  const first = Math.min(rows.length, Math.max(SIGN_OF_LIFE, options.concurrency));
  let [next, done, alive] = [0, 0, false];
  let dead: Error | null = null;
  const ask = async (): Promise<void> => {
    for (let i = next++; i < rows.length && dead === null; i = next++) {
      options.signal.throwIfAborted();
      const image = await objects.get((rows[i] as Challenge).digest);
      const answer = await dendrite.ask({
        url: options.url,
        axonHotkey: options.axonHotkey,
        image,
        timeoutSeconds: options.timeoutSeconds,
        signal: options.signal,
      });
      if (answer.prediction === null) {
        const why = answer.error ?? `status ${answer.status}`;
        answers.errors.set(why, (answers.errors.get(why) ?? 0) + 1);
      } else {
        // As it came: what is out of range is counted, and earns nothing.
        answers.predictions[i] = answer.prediction;
        answers.latencies.push(answer.latencyMs);
      }
      // Any answer at all, a refusal too, is a sign of life; 408 and 503 are a time-out and no connection.
      alive ||= answer.status !== 408 && answer.status !== 503;
      stage.update({ done: ++done, total: rows.length, message: `${done}/${rows.length}` });
      if (!alive && done >= first && dead === null) {
        dead = new ServiceUnavailableError(
          `The miner at ${options.url} gave no answer to any of the first ${done} challenges: ${tell(answers.errors)}. A validator would have counted -1 for each; nothing was scored. Check the address, the port and the firewall.`,
        );
      }
    }
  };
  try {
    await Promise.all(Array.from({ length: Math.min(rows.length, options.concurrency) }, ask));
    options.signal.throwIfAborted();
    if (dead !== null) throw dead as Error;
  } catch (error) {
    stage.fail('failed');
    throw error;
  } finally {
    await dendrite.close();
  }
  stage.done(`${answers.latencies.length} answered`);
  answers.latencies.sort((a, b) => a - b);
  return answers;
}

/** @throws BadInputError, ObjectCorruptError (bundle), see `evaluate` */
export async function askBundle(
  context: CommandContext,
  objects: FileObjectStore,
  rows: readonly Challenge[],
  options: { dir: string; name: string; digest: string | null; signal: AbortSignal },
): Promise<Answers> {
  const bundle = await loadBundle(options.dir);
  const stage = context.progress.stage(`asking ${options.name}`.slice(0, 18));
  const answers: Answers = {
    name: options.name,
    predictions: [],
    latencies: [],
    errors: new Map(),
    bundle: { digest: options.digest, bytes: bundle.members.reduce((sum, m) => sum + graphBytes(m), 0) },
  };
  const digests = [...new Set(rows.map((row) => row.digest))];
  try {
    const made = await evaluate({
      bundleDir: options.dir,
      images: digests.map((digest) => ({ digest, path: objects.path(digest) })),
      threads: Math.max(1, Math.min(2, os.availableParallelism() - 1)),
      signal: options.signal,
      onProgress: (done, total) => stage.update({ done, total }),
      engineCache: path.join(context.paths.cache, 'tensorrt'),
      onFailure: (_, reason) => answers.errors.set(reason, (answers.errors.get(reason) ?? 0) + 1),
    });
    const of = new Map(made.map((row) => [row.digest, row.prediction]));
    answers.predictions = rows.map((row) => of.get(row.digest) ?? NO_ANSWER);
    answers.latencies = made.map((row) => row.ms).sort((a, b) => a - b);
  } catch (error) {
    stage.fail('failed');
    throw error;
  }
  stage.done(`${answers.latencies.length} answered`);
  return answers;
}

/**
 * A model by its name or digest in the catalog, or by the folder of its bundle.
 * @param folderOnly it is said to be a folder
 * @throws BadInputError when it is neither
 */
export async function findBundle(
  context: CommandContext,
  objects: FileObjectStore,
  model: string,
  folderOnly = false,
): Promise<{ dir: string; name: string; digest: string | null }> {
  const folder = path.resolve(model);
  if (folderOnly || (await stat(path.join(folder, 'bundle.json')).catch(() => null)) !== null) {
    const { name } = await loadBundle(folder);
    return { dir: folder, name, digest: null };
  }
  const catalog = await openCatalogReadOnly(context.paths.catalog);
  try {
    const found = await catalog.model(model);
    if (!found) {
      const names = (await catalog.models()).map((m) => m.id).slice(-10);
      throw new BadInputError(
        `There is no model "${model}" in the catalog, and no folder ${folder} with a bundle.json. ${names.length > 0 ? `The newest models are ${names.join(', ')}.` : 'The catalog holds no model yet.'}`,
      );
    }
    const dir = path.join(context.paths.bundles, found.bundle);
    await materialise(objects, found.bundle, dir);
    return { dir, name: found.id, digest: found.bundle };
  } finally {
    await catalog.close();
  }
}

/** Reasons with how often, the most frequent first. */
export function tell(errors: ReadonlyMap<string, number>): string {
  return [...errors]
    .sort(([, a], [, b]) => b - a)
    .map(([why, n]) => `${n} x ${why}`)
    .join('; ');
}
