/**
 * Encoded image to input tensor, equal to what Pillow does in training: `open`, `convert('RGB')`, centre crop to the
 * short side, `resize` (Pillow's own fixed-point resampling, reimplemented), scale and normalise in float32.
 * EXIF orientation and colour profiles are not applied, since Pillow's `open` applies neither.
 */
import sharp, { type Metadata } from 'sharp';
import type { Preprocess } from '../../domain/contracts/common.js';

// One image after another never repeats: libvips' operation cache only holds memory.
sharp.cache(false);
sharp.concurrency(1);

/** Bounds on an image before it is decoded. */
export interface ImageLimits {
  /** encoded bytes */
  maxBytes: number;
  /** width times height */
  maxPixels: number;
}
/** 50 megapixels decode to 150 MB: what a large phone camera makes, and no more. */
export const DEFAULT_IMAGE_LIMITS: ImageLimits = { maxBytes: 12 * 1024 * 1024, maxPixels: 50_000_000 };

/** Formats that are read. SVG, PDF and the like are refused before any library sees them. */
export type ImageFormat = 'jpeg' | 'png' | 'webp' | 'gif' | 'tiff';

/** The image cannot be answered: too large, of no supported format, or damaged. */
export class ImageError extends Error {
  override name = 'ImageError';
  constructor(
    readonly kind: 'too-large' | 'unsupported' | 'undecodable',
    message: string,
  ) {
    super(message);
  }
}

export interface ImageHeader {
  format: ImageFormat;
  width: number;
  height: number;
  /** samples and colour space as libvips names them */
  depth: string;
  space: string;
  channels: number;
}

/** @returns the format by the file's first bytes, or null */
export function sniffFormat(bytes: Uint8Array): ImageFormat | null {
  const at = (i: number): number => bytes[i] ?? -1;
  const ascii = (from: number, text: string): boolean => [...text].every((c, i) => at(from + i) === c.charCodeAt(0));
  if (at(0) === 0xff && at(1) === 0xd8 && at(2) === 0xff) return 'jpeg';
  if (at(0) === 0x89 && ascii(1, 'PNG\r\n\x1a\n')) return 'png';
  if (ascii(0, 'RIFF') && ascii(8, 'WEBP')) return 'webp';
  if (ascii(0, 'GIF87a') || ascii(0, 'GIF89a')) return 'gif';
  if (ascii(0, 'II*\0') || ascii(0, 'MM\0*')) return 'tiff';
  return null;
}

/**
 * Reads format and size from the header, without decoding.
 * @throws ImageError when there is none, when it is of no supported format, or beyond the limits
 */
export async function inspectImage(bytes: Uint8Array, limits: ImageLimits = DEFAULT_IMAGE_LIMITS): Promise<ImageHeader> {
  if (bytes.length > limits.maxBytes)
    throw new ImageError('too-large', `the image has ${bytes.length} bytes, more than ${limits.maxBytes}`);
  const format = sniffFormat(bytes);
  if (format === null) throw new ImageError('unsupported', `${bytes.length} bytes that are no JPEG, PNG, WebP, GIF or TIFF image`);
  const { width, height, depth, space, channels } = await metadataOf(bytes, format);
  if (width * height > limits.maxPixels)
    throw new ImageError('too-large', `the image has ${width} x ${height} pixels, more than ${limits.maxPixels}`);
  return { format, width, height, depth, space, channels };
}

async function metadataOf(bytes: Uint8Array, format: ImageFormat): Promise<Metadata> {
  let metadata: Metadata;
  try {
    // No pixel limit here: the header is read to apply our own, with an error of its own.
    metadata = await sharp(bytes, { limitInputPixels: false, failOn: 'error' }).metadata();
  } catch (error) {
    throw new ImageError('undecodable', `the ${format} image could not be read: ${(error as Error).message.split('\n')[0] ?? ''}`);
  }
  if (!(metadata.width > 0 && metadata.height > 0)) throw new ImageError('undecodable', `the ${format} image has no size`);
  return metadata;
}

/** The centre square of an image, 8-bit RGB, row by row: side * side * 3 bytes. */
export interface Square {
  side: number;
  rgb: Uint8Array;
}

/**
 * Decodes the centre square (floor((width - side) / 2), floor((height - side) / 2)) as Pillow's convert('RGB') would:
 * alpha dropped, greys repeated, 16-bit greys clipped at 255 (as Pillow does), 16-bit colours by their high byte,
 * CMYK by Pillow's own formula, the first frame of an animation.
 * @param header as `inspectImage` gave it, to spare a second reading
 * @throws ImageError when the image is damaged or cut off
 */
export async function decodeSquare(bytes: Uint8Array, limits: ImageLimits = DEFAULT_IMAGE_LIMITS, header?: ImageHeader): Promise<Square> {
  const { format, width, height, depth, space, channels: inFile } = header ?? (await inspectImage(bytes, limits));
  const side = Math.min(width, height);
  const grey16 = space === 'grey16' && inFile === 1;
  const cmyk = space === 'cmyk';
  if (depth !== 'uchar' && depth !== 'ushort') throw new ImageError('unsupported', `a ${format} image with samples of kind ${depth}`);
  let data: Buffer;
  let channels: number;
  try {
    let image = sharp(bytes, { limitInputPixels: limits.maxPixels, failOn: 'error', ignoreIcc: true, sequentialRead: true });
    if (width !== height)
      image = image.extract({ left: Math.floor((width - side) / 2), top: Math.floor((height - side) / 2), width: side, height: side });
    if (cmyk) image = image.pipelineColourspace('cmyk').toColourspace('cmyk');
    if (grey16) image = image.toColourspace('grey16');
    const raw = await image.raw(grey16 ? { depth: 'ushort' } : { depth: 'uchar' }).toBuffer({ resolveWithObject: true });
    ({ data } = raw);
    channels = raw.info.channels;
    if (raw.info.width !== side || raw.info.height !== side)
      throw new Error(`${raw.info.width} x ${raw.info.height} pixels came out instead of ${side} x ${side}`);
  } catch (error) {
    throw new ImageError('undecodable', `the ${format} image could not be decoded: ${(error as Error).message.split('\n')[0] ?? ''}`);
  }
  const pixels = side * side;
  if (channels === 3) return { side, rgb: data };
  const rgb = new Uint8Array(pixels * 3);
  if (grey16) {
    const values = new Uint16Array(data.buffer, data.byteOffset, pixels * channels);
    for (let i = 0; i < pixels; i++) rgb.fill(Math.min(255, values[i * channels] ?? 0), i * 3, i * 3 + 3);
  } else if (cmyk) {
    for (let i = 0; i < pixels; i++) {
      const rest = 255 - (data[i * 4 + 3] ?? 0);
      for (let k = 0; k < 3; k++) rgb[i * 3 + k] = Math.max(0, rest - muldiv255(data[i * 4 + k] ?? 0, rest));
    }
  } else {
    const colour = channels >= 3;
    for (let i = 0; i < pixels; i++) for (let k = 0; k < 3; k++) rgb[i * 3 + k] = data[i * channels + (colour ? k : 0)] ?? 0;
  }
  return { side, rgb };
}

/** Pillow's MULDIV255: a * b / 255, rounded. */
function muldiv255(a: number, b: number): number {
  const t = a * b + 128;
  return ((t >> 8) + t) >> 8;
}

type Filter = Preprocess['interpolation'];

/** Pillow's filters with their supports (`Resample.c`). */
const FILTERS: Record<Filter, { support: number; at: (x: number) => number }> = {
  bilinear: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    at: (value) => {
      const a = -0.5;
      const x = Math.abs(value);
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
      return 0;
    },
  },
};

interface Coefficients {
  /** first source pixel of each output pixel */
  first: Int32Array;
  /** number of source pixels of each output pixel */
  count: Int32Array;
  /** weights in 1 / 2^22, `width` a output pixel */
  weights: Int32Array;
  width: number;
}

/** Fixed-point precision of Pillow's 8-bit resampling: 32 - 8 - 2 bits. */
const PRECISION = 22;
const tables = new Map<string, Coefficients>();
const TABLES_REMEMBERED = 64;

/** `precompute_coeffs` and `normalize_coeffs_8bpc` of Pillow's Resample.c, in the same order of operations. */
function coefficients(inSize: number, outSize: number, filter: Filter): Coefficients {
  const key = `${filter}:${inSize}:${outSize}`;
  const known = tables.get(key);
  if (known !== undefined) return known;
  const { support: base, at } = FILTERS[filter];
  const scale = inSize / outSize;
  const filterScale = Math.max(scale, 1);
  const support = base * filterScale;
  const width = Math.ceil(support) * 2 + 1;
  const table: Coefficients = {
    first: new Int32Array(outSize),
    count: new Int32Array(outSize),
    weights: new Int32Array(outSize * width),
    width,
  };
  const exact = new Float64Array(width);
  for (let o = 0; o < outSize; o++) {
    const centre = (o + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const count = Math.min(inSize, Math.trunc(centre + support + 0.5)) - first;
    let total = 0;
    for (let x = 0; x < count; x++) {
      const w = at((x + first - centre + 0.5) * (1 / filterScale));
      exact[x] = w;
      total += w;
    }
    for (let x = 0; x < count; x++) {
      const w = total === 0 ? (exact[x] ?? 0) : (exact[x] ?? 0) / total;
      table.weights[o * width + x] = Math.trunc((w < 0 ? -0.5 : 0.5) + w * (1 << PRECISION));
    }
    table.first[o] = first;
    table.count[o] = count;
  }
  if (tables.size >= TABLES_REMEMBERED) tables.delete(tables.keys().next().value as string);
  tables.set(key, table);
  return table;
}

/** One pass of the separable filter over `lines` lines; strides in bytes. */
function pass(
  source: Uint8Array,
  target: Uint8Array,
  table: Coefficients,
  out: number,
  lines: number,
  step: number,
  sourceLine: number,
  targetStep: number,
  targetLine: number,
): void {
  const { first, count, weights, width } = table;
  for (let line = 0; line < lines; line++) {
    for (let o = 0; o < out; o++) {
      let r = 1 << (PRECISION - 1);
      let g = r;
      let b = r;
      let at = line * sourceLine + (first[o] as number) * step;
      const n = count[o] as number;
      const w0 = o * width;
      for (let x = 0; x < n; x++, at += step) {
        const w = weights[w0 + x] as number;
        r = (r + (source[at] as number) * w) | 0;
        g = (g + (source[at + 1] as number) * w) | 0;
        b = (b + (source[at + 2] as number) * w) | 0;
      }
      const to = line * targetLine + o * targetStep;
      target[to] = clip8(r);
      target[to + 1] = clip8(g);
      target[to + 2] = clip8(b);
    }
  }
}

function clip8(value: number): number {
  const v = value >> PRECISION;
  return v < 0 ? 0 : v > 255 ? 255 : v;
}

/** Pillow's `resize` of a square RGB image, bit for bit: horizontal pass, rounding to 8 bits, vertical pass. */
export function resizeSquare(square: Square, size: number, filter: Filter): Square {
  const { side, rgb } = square;
  if (side === size) return square;
  const table = coefficients(side, size, filter);
  const narrow = new Uint8Array(size * side * 3);
  pass(rgb, narrow, table, size, side, 3, side * 3, 3, size * 3);
  const out = new Uint8Array(size * size * 3);
  // Columns are the lines of the vertical pass: a step is a row, a line the next pixel.
  pass(narrow, out, table, size, size, size * 3, 3, size * 3, 3);
  return { side: size, rgb: out };
}

const lookups = new Map<string, Float32Array>();

/** (value / 255 - mean) / std in float32 steps, as numpy and torch compute it, for all 256 values of 3 channels. */
function lookup(preprocess: Preprocess): Float32Array {
  const key = JSON.stringify([preprocess.mean, preprocess.std]);
  let table = lookups.get(key);
  if (table === undefined) {
    table = new Float32Array(3 * 256);
    for (let c = 0; c < 3; c++) {
      const mean = Math.fround(preprocess.mean[c as 0 | 1 | 2]);
      const std = Math.fround(preprocess.std[c as 0 | 1 | 2]);
      for (let v = 0; v < 256; v++) table[c * 256 + v] = Math.fround(Math.fround(Math.fround(v / 255) - mean) / std);
    }
    lookups.set(key, table);
  }
  return table;
}

/** Floats of one input tensor, [3, size, size]. */
export function tensorLength(preprocess: Preprocess): number {
  return 3 * preprocess.size * preprocess.size;
}

/**
 * Writes the square as one image [3, size, size] of the batch.
 * @param offset where in `target` the image begins, floats
 */
export function writeTensor(square: Square, preprocess: Preprocess, target: Float32Array, offset: number): void {
  const { rgb } = resizeSquare(square, preprocess.size, preprocess.interpolation);
  const table = lookup(preprocess);
  const plane = preprocess.size * preprocess.size;
  for (let i = 0; i < plane; i++) {
    target[offset + i] = table[rgb[i * 3] as number] as number;
    target[offset + plane + i] = table[256 + (rgb[i * 3 + 1] as number)] as number;
    target[offset + 2 * plane + i] = table[512 + (rgb[i * 3 + 2] as number)] as number;
  }
}

/** Mirrors every image of a batch [n, 3, size, size] left to right, into a new batch. */
export function mirror(batch: Float32Array, size: number): Float32Array {
  const out = new Float32Array(batch.length);
  for (let row = 0; row < batch.length; row += size)
    out.set(
      batch
        .subarray(row, row + size)
        .slice()
        .reverse(),
      row,
    );
  return out;
}

/** Two members with the same key share one tensor. */
export function preprocessKey(preprocess: Preprocess): string {
  return JSON.stringify([preprocess.size, preprocess.crop, preprocess.interpolation, preprocess.mean, preprocess.std]);
}
