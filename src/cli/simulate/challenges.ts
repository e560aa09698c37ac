/** Where simulated challenges come from: a folder of labelled photographs or the home's own pools, through the job that makes all of them. */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { ChallengeRow } from '../../domain/contracts/jobs.js';
import type { ImageRow, Pool } from '../../domain/contracts/common.js';
import { BadInputError } from '../../domain/errors.js';
import type { ProfileName } from '../../domain/profiles/index.js';
import { openCatalogReadOnly } from '../../platform/catalog/index.js';
import { readImages, scanDataset, type ReadImage } from '../../platform/dataset/index.js';
import { runJobHere } from '../../platform/gpu/here.js';
import type { FileObjectStore } from '../../platform/objects/index.js';
import { ensurePython } from '../../platform/python/env.js';
import type { CommandContext } from '../context.js';

export interface Drawn {
  set: string;
  rows: (ChallengeRow & { label: 0 | 1 })[];
  /** for people: what they were drawn from */
  from: string;
}

const LEARNED: readonly Pool[] = ['train', 'calibrate', 'validate'];

/**
 * @param pool of the home, when there is no folder
 * @throws BadInputError when there is nothing to draw from: no label, or one class only
 */
export async function drawChallenges(
  context: CommandContext,
  objects: FileObjectStore,
  options: { data: string | null; pool: Pool; count: number; seed: number; profile: ProfileName; signal: AbortSignal },
): Promise<Drawn> {
  const { paths, config, progress } = context;
  const { images, from } = options.data === null ? await fromPool(context, options.pool) : await fromFolder(context, objects, options.data);
  const manifest = await objects.putJsonl([...images].sort((a, b) => (a.digest < b.digest ? -1 : 1)));
  const stage = progress.stage('draw');
  try {
    const { python } = await ensurePython((message) => stage.update({ message: String(message) }));
    const input = { manifest, profile: options.profile, mode: 'draw' as const, count: options.count, seed: options.seed, flips: false };
    const output = await runJobHere({
      home: paths,
      python,
      kind: 'challenges',
      name: `simulate-${createHash('sha256').update(JSON.stringify(input)).digest('hex').slice(0, 16)}`,
      input,
      threads: Math.max(1, config.gpu.threads),
      nice: config.gpu.nice,
      maxSeconds: config.gpu.maxJobSeconds,
      onProgress: ({ done, total }) => stage.update({ done, total }),
      signal: options.signal,
    });
    stage.done(`${output.count} challenges`);
    const rows = await objects.getJsonl(output.set, (row) => ChallengeRow.parse(row));
    return { set: output.set, rows: rows.filter((row): row is Drawn['rows'][number] => row.label !== null), from };
  } catch (error) {
    stage.fail('failed');
    throw error;
  }
}

/** Labelled originals of a pool of the home. @throws BadInputError when a class is missing */
export async function fromPool(context: CommandContext, pool: Pool): Promise<{ images: ImageRow[]; from: string }> {
  const catalog = await openCatalogReadOnly(context.paths.catalog);
  try {
    const images = (await catalog.images({ pools: [pool], provider: null })).filter((row) => row.label !== null);
    if (![0, 1].every((label) => images.some((row) => row.label === label))) {
      throw new BadInputError(
        `The pool "${pool}" holds no labelled images of both classes yet, so there is nothing to ask about. Import a data set first (\`flywheel import DIR\`), or name one with --data.`,
      );
    }
    return { images, from: `pool ${pool} of ${context.paths.root}` };
  } finally {
    await catalog.close();
  }
}

/** Held-out images when the folder has a split, without those that this home's models have learned from. */
export async function fromFolder(
  context: CommandContext,
  objects: FileObjectStore,
  data: string,
): Promise<{ images: ImageRow[]; from: string }> {
  const stage = context.progress.stage('read');
  const scan = await scanDataset(data);
  const isTrain = (split: string | null): boolean => split !== null && /^train/i.test(split);
  const heldOut = scan.rows.filter((row) => row.split !== null && !isTrain(row.split));
  const rows = heldOut.length > 0 ? heldOut : scan.rows;
  const read = await readImages(rows, objects, { onProgress: (done, total) => stage.update({ done, total }) });
  let kept = read.images;
  if (existsSync(context.paths.catalog)) {
    const catalog = await openCatalogReadOnly(context.paths.catalog);
    try {
      const learned = await catalog.images({ pools: LEARNED });
      const digests = new Set(learned.map((row) => row.digest));
      const groups = new Set(learned.map((row) => row.group));
      kept = kept.filter((image) => !digests.has(image.digest) && !groups.has(image.group));
    } finally {
      await catalog.close();
    }
  }
  stage.done(`${kept.length} images`);
  const left = read.images.length - kept.length;
  const notes = [
    ...(heldOut.length > 0 ? ['its held-out split'] : []),
    ...(left > 0 ? [`without ${left} images of clips that this home has learned from`] : []),
    ...(read.problems.length + scan.problems.length > 0 ? [`${read.problems.length + scan.problems.length} files skipped`] : []),
  ];
  for (const label of [0, 1]) {
    if (!kept.some((image) => image.label === label))
      throw new BadInputError(
        `${data} holds no usable image of class ${label}${notes.length > 0 ? ` (${notes.join(', ')})` : ''}: a validator draws both classes, so nothing was asked.`,
      );
  }
  return {
    images: kept.map((image) => rowOf(image, 'test')),
    from: `${data}${notes.length > 0 ? ` (${notes.join(', ')})` : ''}`,
  };
}

/** A photograph of a folder as a row of a manifest. */
export function rowOf({ digest, label, group, source, width, height }: ReadImage, pool: ImageRow['pool']): ImageRow {
  return { digest, label, group, source, width, height, truth: 'truth', pool, parents: [], provider: null, intent: null, weight: 1 };
}
