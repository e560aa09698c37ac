/**
 * The size an image claims, from its first bytes, in plain TypeScript: the front applies its limits without handing
 * anything to a native decoder, which works in the inference processes alone. Knows no colours and verifies nothing else.
 */
import { DEFAULT_IMAGE_LIMITS, ImageError, sniffFormat, type ImageFormat, type ImageLimits } from './preprocess.js';

export interface ClaimedSize {
  format: ImageFormat;
  width: number;
  height: number;
}

/**
 * @returns the size in the header; null when it is not found there, which is for the decoder to judge
 * @throws ImageError for bytes that are no image of a format that is read
 */
export function claimedSize(bytes: Uint8Array): ClaimedSize | null {
  const format = sniffFormat(bytes);
  if (format === null) throw new ImageError('unsupported', `${bytes.length} bytes that are no JPEG, PNG, WebP, GIF or TIFF image`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let size: { width: number; height: number } | null;
  try {
    size = READERS[format](view);
  } catch (error) {
    // Reading past the end: cut off, or an offset that leads nowhere.
    if (!(error instanceof RangeError)) throw error;
    size = null;
  }
  return size === null ? null : { format, ...size };
}

/**
 * Refuses by the header what is too large or no image.
 * @throws ImageError
 */
export function checkClaimedSize(bytes: Uint8Array, limits: ImageLimits = DEFAULT_IMAGE_LIMITS): void {
  if (bytes.length > limits.maxBytes)
    throw new ImageError('too-large', `the image has ${bytes.length} bytes, more than ${limits.maxBytes}`);
  const size = claimedSize(bytes);
  if (size !== null && size.width * size.height > limits.maxPixels)
    throw new ImageError('too-large', `the image has ${size.width} x ${size.height} pixels, more than ${limits.maxPixels}`);
}

type Reader = (view: DataView) => { width: number; height: number } | null;

const READERS: Record<ImageFormat, Reader> = {
  png: (view) => ({ width: view.getUint32(16), height: view.getUint32(20) }),
  gif: (view) => ({ width: view.getUint16(6, true), height: view.getUint16(8, true) }),
  jpeg,
  webp,
  tiff,
};

/** Walks the segments to the frame header (SOF0 to SOF15 without DHT, JPG, DAC). */
function jpeg(view: DataView): { width: number; height: number } | null {
  for (let at = 2; ;) {
    if (view.getUint8(at) !== 0xff) return null;
    const marker = view.getUint8(at + 1);
    if (marker === 0xff) at += 1;
    else if (marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8)) at += 2;
    else if (marker >= 0xc0 && marker <= 0xcf && marker !== 0xc4 && marker !== 0xc8 && marker !== 0xcc)
      return { width: view.getUint16(at + 7), height: view.getUint16(at + 5) };
    // The picture's data, or its end, before any frame header.
    else if (marker === 0xda || marker === 0xd9) return null;
    else at += 2 + Math.max(2, view.getUint16(at + 2));
  }
}

function webp(view: DataView): { width: number; height: number } | null {
  const kind = String.fromCharCode(view.getUint8(12), view.getUint8(13), view.getUint8(14), view.getUint8(15));
  const u24 = (at: number): number => view.getUint16(at, true) + (view.getUint8(at + 2) << 16);
  if (kind === 'VP8X') return { width: u24(24) + 1, height: u24(27) + 1 };
  if (kind === 'VP8 ') return { width: view.getUint16(26, true) & 0x3fff, height: view.getUint16(28, true) & 0x3fff };
  if (kind === 'VP8L') {
    const bits = view.getUint32(21, true);
    return { width: (bits & 0x3fff) + 1, height: ((bits >>> 14) & 0x3fff) + 1 };
  }
  return null;
}

/** Tags 256 and 257 of the first directory. */
function tiff(view: DataView): { width: number; height: number } | null {
  const little = view.getUint8(0) === 0x49;
  const first = view.getUint32(4, little);
  const entries = view.getUint16(first, little);
  let width: number | null = null;
  let height: number | null = null;
  for (let i = 0; i < entries; i++) {
    const at = first + 2 + i * 12;
    const tag = view.getUint16(at, little);
    if (tag !== 256 && tag !== 257) continue;
    const type = view.getUint16(at + 2, little);
    const value = type === 3 ? view.getUint16(at + 8, little) : type === 4 ? view.getUint32(at + 8, little) : null;
    if (tag === 256) width = value;
    else height = value;
  }
  return width === null || height === null ? null : { width, height };
}
