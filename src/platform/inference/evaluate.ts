/** Predictions over many images with the miner's own preprocessing and process code, in a process of its own. */
import { promises as fs } from 'node:fs';
import type { Digest } from '../../domain/contracts/common.js';
import { BadInputError, ObjectCorruptError } from '../../domain/errors.js';
import { sha256 } from '../objects/file.js';
import { InferenceChild } from './child.js';
import type { OneResult } from './messages.js';
import { DEFAULT_IMAGE_LIMITS, type ImageLimits } from './preprocess.js';
import { PROVIDERS } from './providers.js';

export interface EvaluateOptions {
  /** folder with bundle.json; verified */
  bundleDir: string;
  images: readonly { digest: Digest; path: string }[];
  /** compute threads of the process */
  threads: number;
  onProgress?: (done: number, total: number) => void;
  /** an image that cannot be decoded, or that the model gives no number for */
  onFailure?: (digest: Digest, reason: string) => void;
  signal?: AbortSignal;
  /** images a batch; default 1: as fast as any on CPUs, and `ms` is then what a lone request takes */
  batch?: number;
  /** niceness added to the process, 0 to 19; default 0 */
  nice?: number;
  limits?: ImageLimits;
  /** folder where TensorRT's engines are kept; default a temporary one, where each is built anew after a restart of the machine */
  engineCache?: string;
}

export interface EvaluatedImage {
  digest: Digest;
  prediction: number;
  votes: Record<string, number>;
  /** decoding plus the image's share of its batch, ms */
  ms: number;
}

/** Batches in the process's hands: while one runs the next is decoded. Bounds the memory. Lone images are not overlapped: they are timed. */
const AHEAD = 2;

/**
 * Batches are cut from the given order, so that the same list on the same machine gives the same numbers. The process is
 * ended before this returns or throws. Images that cannot be decoded are left out of the result and told to `onFailure`.
 * @returns one row an answered image, in the given order
 * @throws BadInputError, ObjectCorruptError (bundle or image bytes do not hash to their digest), or the signal's reason
 */
export async function evaluate(options: EvaluateOptions): Promise<EvaluatedImage[]> {
  const { images, signal } = options;
  const batch = options.batch ?? 1;
  if (images.length === 0) return [];
  signal?.throwIfAborted();
  const waiting = new Map<number, { resolve: (results: OneResult[]) => void; reject: (error: Error) => void }>();
  const ahead = batch === 1 ? 1 : AHEAD;
  const end: { reason: Error | null } = { reason: null };
  const fail = (error: Error): void => {
    end.reason ??= error;
    for (const one of waiting.values()) one.reject(end.reason);
    waiting.clear();
  };
  const child = await InferenceChild.start(
    {
      bundleDir: options.bundleDir,
      digest: null,
      threads: Math.max(1, options.threads),
      maxBatch: batch,
      nice: options.nice ?? 0,
      limits: options.limits ?? DEFAULT_IMAGE_LIMITS,
      providers: [...PROVIDERS],
      deviceId: 0,
      // Figures are those of the whole bundle: every member, and the augmentation that it asks for.
      budgetMs: null,
      strict: true,
    },
    {
      onResult: (id, results) => {
        waiting.get(id)?.resolve(results);
        waiting.delete(id);
      },
      onExit: (reason) =>
        fail(new Error(`the evaluation's inference process for ${options.bundleDir} died: ${reason}. Nothing was recorded; run it again.`)),
    },
    options.engineCache,
  );
  const onAbort = (): void => fail(signal?.reason instanceof Error ? signal.reason : new Error(String(signal?.reason)));
  signal?.addEventListener('abort', onAbort, { once: true });
  try {
    if (signal?.aborted) onAbort();
    const rows: EvaluatedImage[] = [];
    const running: Promise<void>[] = [];
    let done = 0;
    for (let from = 0; from < images.length; from += batch) {
      if (running.length >= ahead) await running.shift();
      const part = images.slice(from, from + batch);
      const inputs = await Promise.all(part.map(readImage));
      if (end.reason !== null) throw end.reason;
      const results = new Promise<OneResult[]>((resolve, reject) => waiting.set(from, { resolve, reject }));
      const finished = results.then((list) => {
        part.forEach(({ digest }, i) => {
          const result = list[i];
          if (result?.ok === true) rows.push({ digest, prediction: result.prediction, votes: result.votes, ms: result.ms });
          else options.onFailure?.(digest, result?.message ?? 'no answer');
        });
        done += part.length;
        options.onProgress?.(done, images.length);
      });
      // Awaited below; until then a rejection must not count as unhandled.
      finished.catch(() => undefined);
      running.push(finished);
      child.predict(from, inputs);
    }
    for (const one of running) await one;
    return rows;
  } finally {
    signal?.removeEventListener('abort', onAbort);
    if (end.reason === null) await child.end();
    else await child.kill();
  }
}

async function readImage(image: { digest: Digest; path: string }): Promise<Uint8Array> {
  let bytes: Buffer;
  try {
    bytes = await fs.readFile(image.path);
  } catch (error) {
    throw new BadInputError(`Image ${image.digest} cannot be read at ${image.path}: ${(error as Error).message}. Nothing was evaluated.`);
  }
  const actual = sha256(bytes);
  if (actual !== image.digest)
    throw new ObjectCorruptError(
      `The image at ${image.path} hashes to ${actual}, not ${image.digest}: it is damaged. Nothing was evaluated.`,
    );
  return bytes;
}
