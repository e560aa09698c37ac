/** Opens every image of a data set once: decoded to the last pixel, hashed, stored. */
import { promises as fs } from 'node:fs';
import sharp from 'sharp';
import type { Digest, Label } from '../../domain/contracts/common.js';
import { BadInputError } from '../../domain/errors.js';
import { isMissing } from '../fsutil.js';
import { sha256 } from '../objects/file.js';
import type { ObjectStore } from '../ports.js';
import { imageHashes, type ImageHashes } from './phash.js';
import { describeProblems, type DatasetProblem, type DatasetRow } from './scan.js';

export interface ReadImage extends ImageHashes {
  digest: Digest;
  /** the first file by name that has these bytes */
  file: string;
  label: Label;
  group: string;
  source: string;
  /** as the data set gives it; null when it gives none */
  licence: string | null;
  /** of copies in several splits the most held out: test, then val, then train */
  split: string | null;
  /** pixels as stored, before any EXIF rotation (training and serving ignore it too) */
  width: number;
  height: number;
  /** other groups in which the very same bytes were found: they belong together with `group` */
  alsoIn: string[];
}

export interface ReadReport {
  /** sorted by file; each digest once */
  images: ReadImage[];
  /** files skipped, sorted by name */
  problems: DatasetProblem[];
  /** files left out because another file has the same bytes and the same label */
  exactDuplicates: number;
  duplicates: { file: string; of: string; digest: Digest }[];
  /** the same bytes under both labels: all of these files are left out, and named in `problems` too */
  labelConflicts: { digest: Digest; files: string[] }[];
}

export interface ReadOptions {
  onProgress?: (done: number, total: number) => void;
  /** files open at once; default 2 */
  concurrency?: number;
  /** larger images are skipped (a small file can unpack to anything), pixels; default 50 million */
  maxPixels?: number;
  /** larger files are skipped, bytes; default 64 MiB */
  maxBytes?: number;
}

/** What Pillow in the jobs and sharp in the miner both decode. */
const FORMATS = ['jpeg', 'png', 'webp', 'gif', 'tiff'];

interface Opened extends ImageHashes {
  row: DatasetRow;
  digest: Digest;
  width: number;
  height: number;
}

/**
 * @param rows of `scanDataset`
 * @throws BadInputError when no image of a class could be read; errors of the store as they are
 */
export async function readImages(
  rows: readonly DatasetRow[],
  objects: Pick<ObjectStore, 'put'>,
  options: ReadOptions = {},
): Promise<ReadReport> {
  const opened: Opened[] = [];
  const problems: DatasetProblem[] = [];
  let next = 0;
  let done = 0;
  const work = async (): Promise<void> => {
    while (next < rows.length) {
      const row = rows[next++]!;
      const result = await openImage(row, objects, options);
      if ('reason' in result) problems.push({ file: row.file, reason: result.reason });
      else opened.push(result);
      options.onProgress?.(++done, rows.length);
    }
  };
  await Promise.all(Array.from({ length: Math.max(1, options.concurrency ?? 2) }, work));
  // Whatever was read first, the result is the same.
  opened.sort((a, b) => order(a.row.file, b.row.file));

  const byDigest = new Map<Digest, Opened[]>();
  for (const image of opened) byDigest.set(image.digest, [...(byDigest.get(image.digest) ?? []), image]);
  const report: ReadReport = { images: [], problems, exactDuplicates: 0, duplicates: [], labelConflicts: [] };
  for (const same of byDigest.values()) {
    const first = same[0]!;
    if (same.some((image) => image.row.label !== first.row.label)) {
      const files = same.map((image) => image.row.file);
      report.labelConflicts.push({ digest: first.digest, files });
      for (const file of files)
        problems.push({ file, reason: `the same picture has both labels (${files.join(', ')}); all were left out` });
      continue;
    }
    for (const image of same.slice(1)) report.duplicates.push({ file: image.row.file, of: first.row.file, digest: image.digest });
    const { label, group, source, licence, file } = first.row;
    report.images.push({
      digest: first.digest,
      file,
      label,
      group,
      source,
      licence,
      split: same.map((image) => image.row.split).reduce(moreHeldOut),
      width: first.width,
      height: first.height,
      phash: first.phash,
      dhash: first.dhash,
      alsoIn: [...new Set(same.map((image) => image.row.group))].filter((other) => other !== group),
    });
  }
  report.exactDuplicates = report.duplicates.length;
  problems.sort((a, b) => order(a.file, b.file));
  for (const label of [1, 0] as const) {
    if (!report.images.some((image) => image.label === label)) {
      throw new BadInputError(
        `No readable image of class ${label} (${label === 1 ? 'roadwork' : 'no roadwork'}) is left of ${rows.length} files; expected images of both classes. ` +
          `${problems.length ? `Skipped: ${describeProblems(problems)} ` : ''}Nothing was imported.`,
      );
    }
  }
  return report;
}

async function openImage(row: DatasetRow, objects: Pick<ObjectStore, 'put'>, options: ReadOptions): Promise<Opened | { reason: string }> {
  const maxBytes = options.maxBytes ?? 64 * 1024 * 1024;
  const maxPixels = options.maxPixels ?? 50_000_000;
  let bytes: Buffer;
  try {
    const { size } = await fs.stat(row.absolutePath);
    if (size === 0) return { reason: 'the file is empty' };
    if (size > maxBytes) return { reason: `the file has ${size} bytes, more than ${maxBytes}` };
    bytes = await fs.readFile(row.absolutePath);
  } catch (error) {
    if (isMissing(error)) return { reason: 'the file is gone' };
    return { reason: `the file can't be read: ${(error as Error).message}` };
  }
  let pixels: { data: Buffer; info: { width: number; height: number } };
  try {
    const { format, width, height } = await sharp(bytes, { limitInputPixels: false }).metadata();
    if (!FORMATS.includes(format)) return { reason: `format ${format} is not supported (${FORMATS.join(', ')} are)` };
    if (width * height > maxPixels) return { reason: `the image has ${width} x ${height} pixels, more than ${maxPixels}` };
    // 'error' refuses truncated and corrupt data, and lets pass what every decoder passes, like stray bytes between markers.
    pixels = await sharp(bytes, { failOn: 'error', limitInputPixels: maxPixels })
      .toColourspace('srgb')
      .flatten()
      .removeAlpha()
      .raw()
      .toBuffer({ resolveWithObject: true });
  } catch (error) {
    return { reason: `not a whole, readable image: ${(error as Error).message.split('\n')[0]}` };
  }
  const { width, height } = pixels.info;
  const rgb =
    pixels.data.length === width * height
      ? await sharp(pixels.data, { raw: { width, height, channels: 1 } })
          .toColourspace('srgb')
          .raw()
          .toBuffer()
      : pixels.data;
  const hashes = await imageHashes(rgb, width, height);
  // Errors of the store (disk full) are no fault of the image: they end the import.
  const digest = await objects.put(bytes);
  if (digest !== sha256(bytes)) throw new Error(`The object store named ${row.file} ${digest}, which is not its SHA-256.`);
  return { row, digest, width, height, ...hashes };
}

/** Of two splits that hold the same picture the one that is held out more, so that nothing held out is learned from. */
export function moreHeldOut(a: string | null, b: string | null): string | null {
  const rank = (split: string | null): number => (split === null ? 3 : /^test/i.test(split) ? 0 : /^train/i.test(split) ? 2 : 1);
  return rank(b) < rank(a) ? b : a;
}

function order(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
