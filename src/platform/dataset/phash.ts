/**
 * Perceptual hashes: two pictures that look alike differ in few bits, whatever their size and compression.
 * `phash`: signs of the 64 lowest frequencies (DCT-II of 32 x 32 grey levels, by zigzag, without the mean) about their
 * median. `dhash`: 256 signs of horizontal differences at 17 x 16. The first finds, the second, of another kind, confirms.
 * After N. Krawetz, "Looks Like It" (2011) and "Kind of Like That" (2013).
 */
import sharp from 'sharp';

export interface ImageHashes {
  /** 64 bits, 16 hex digits */
  phash: string;
  /** 256 bits, 64 hex digits */
  dhash: string;
}

const SIDE = 32;
const BITS = 64;

/** Rows of the DCT-II matrix: COS[k * SIDE + n] = cos(pi (2n + 1) k / (2 SIDE)). Scale does not matter to signs about a median. */
const COS = Float64Array.from({ length: SIDE * SIDE }, (_, i) =>
  Math.cos((Math.PI * (2 * (i % SIDE) + 1) * Math.floor(i / SIDE)) / (2 * SIDE)),
);

/** The 64 lowest frequencies after the mean, (row, column), diagonal by diagonal. */
const LOWEST: readonly (readonly [number, number])[] = (() => {
  const order: [number, number][] = [];
  for (let sum = 1; order.length < BITS; sum++) {
    for (let row = 0; row <= sum && order.length < BITS; row++) order.push([row, sum - row]);
  }
  return order;
})();

/** @param grey 32 x 32 levels, row by row */
function phashOf(grey: Uint8Array): string {
  // Separable: rows first, then only the columns that are asked for.
  const widest = Math.max(...LOWEST.map(([row, column]) => Math.max(row, column))) + 1;
  const half = new Float64Array(SIDE * widest);
  for (let y = 0; y < SIDE; y++) {
    for (let k = 0; k < widest; k++) {
      let sum = 0;
      for (let x = 0; x < SIDE; x++) sum += grey[y * SIDE + x]! * COS[k * SIDE + x]!;
      half[y * widest + k] = sum;
    }
  }
  const values = LOWEST.map(([row, column]) => {
    let sum = 0;
    for (let y = 0; y < SIDE; y++) sum += half[y * widest + column]! * COS[row * SIDE + y]!;
    return sum;
  });
  const ordered = [...values].sort((a, b) => a - b);
  const median = (ordered[BITS / 2 - 1]! + ordered[BITS / 2]!) / 2;
  return hex(values.map((value) => value > median));
}

/** @param grey 17 x 16 levels, row by row */
function dhashOf(grey: Uint8Array): string {
  const bits: boolean[] = [];
  for (let y = 0; y < 16; y++) for (let x = 0; x < 16; x++) bits.push(grey[y * 17 + x]! > grey[y * 17 + x + 1]!);
  return hex(bits);
}

function hex(bits: readonly boolean[]): string {
  let text = '';
  for (let i = 0; i < bits.length; i += 4) {
    text += ((bits[i] ? 8 : 0) | (bits[i + 1] ? 4 : 0) | (bits[i + 2] ? 2 : 0) | (bits[i + 3] ? 1 : 0)).toString(16);
  }
  return text;
}

/** @param rgb decoded pixels, three channels, `width` x `height` */
export async function imageHashes(rgb: Uint8Array, width: number, height: number): Promise<ImageHashes> {
  const grey = (w: number, h: number): Promise<Buffer> =>
    sharp(rgb, { raw: { width, height, channels: 3 } })
      .greyscale()
      .resize(w, h, { fit: 'fill', kernel: 'lanczos3' })
      .raw()
      .toBuffer();
  const [small, wide] = await Promise.all([grey(SIDE, SIDE), grey(17, 16)]);
  return { phash: phashOf(small), dhash: dhashOf(wide) };
}

function ones(word: number): number {
  word -= (word >>> 1) & 0x55555555;
  word = (word & 0x33333333) + ((word >>> 2) & 0x33333333);
  return Math.imul((word + (word >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/** Bits in which two hashes of the same length differ. */
export function hammingHex(a: string, b: string): number {
  let distance = 0;
  for (let i = 0; i < a.length; i += 8) distance += ones(parseInt(a.slice(i, i + 8), 16) ^ parseInt(b.slice(i, i + 8), 16));
  return distance;
}

/**
 * All pairs of 64-bit hashes at most `maxDistance` apart: exact, by multi-index hashing. Cut into maxDistance + 1 pieces, two
 * such hashes agree in at least one piece (pigeonhole), so that only hashes sharing a piece are compared. Some seconds for
 * 50,000 images up to distance 10. After Norouzi, Punjani and Fleet, CVPR 2012.
 * @param hashes 16 hex digits each
 * @returns index pairs (i < j), sorted
 */
export function hammingPairs(hashes: readonly string[], maxDistance: number): [number, number, number][] {
  const n = hashes.length;
  const high = new Uint32Array(n);
  const low = new Uint32Array(n);
  for (let i = 0; i < n; i++) {
    high[i] = parseInt(hashes[i]!.slice(0, 8), 16);
    low[i] = parseInt(hashes[i]!.slice(8, 16), 16);
  }
  const pieces = Math.min(Math.max(0, Math.floor(maxDistance)) + 1, BITS);
  const masks = Array.from({ length: pieces }, (_, piece) => {
    const from = Math.floor((piece * BITS) / pieces);
    const to = Math.floor(((piece + 1) * BITS) / pieces);
    let high32 = 0;
    let low32 = 0;
    for (let bit = from; bit < to; bit++) {
      if (bit < 32) high32 |= 1 << bit;
      else low32 |= 1 << (bit - 32);
    }
    return [high32 >>> 0, low32 >>> 0] as const;
  });
  const pairs: [number, number, number][] = [];
  for (let piece = 0; piece < pieces; piece++) {
    const [highMask, lowMask] = masks[piece]!;
    const buckets = new Map<number, number[]>();
    for (let i = 0; i < n; i++) {
      // One number for both halves. Beyond 53 bits it is rounded, so that a bucket may hold strangers: they are told apart below.
      const key = ((high[i]! & highMask) >>> 0) * 4294967296 + ((low[i]! & lowMask) >>> 0);
      const bucket = buckets.get(key);
      if (bucket) bucket.push(i);
      else buckets.set(key, [i]);
    }
    for (const bucket of buckets.values()) {
      for (let a = 0; a < bucket.length; a++) {
        const i = bucket[a]!;
        for (let b = a + 1; b < bucket.length; b++) {
          const j = bucket[b]!;
          const highDiff = (high[i]! ^ high[j]!) >>> 0;
          const lowDiff = (low[i]! ^ low[j]!) >>> 0;
          if ((highDiff & highMask) !== 0 || (lowDiff & lowMask) !== 0) continue;
          const distance = ones(highDiff) + ones(lowDiff);
          if (distance > maxDistance) continue;
          // Found in the first piece that agrees, and only there.
          let earlier = false;
          for (let p = 0; p < piece && !earlier; p++) earlier = (highDiff & masks[p]![0]) === 0 && (lowDiff & masks[p]![1]) === 0;
          if (!earlier) pairs.push([i, j, distance]);
        }
      }
    }
  }
  return pairs.sort((x, y) => x[0] - y[0] || x[1] - y[1]);
}
