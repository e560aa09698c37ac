/** Which images of a data set are the same picture again: removed within a group, tied together across groups. */
import type { Digest } from '../../domain/contracts/common.js';
import { hammingHex, hammingPairs } from './phash.js';
import { moreHeldOut, type ReadImage } from './read.js';

export interface NearOptions {
  /** bits of the 64 of `phash` that may differ for a picture to be a repetition within its group */
  sameDistance?: number;
  /** bits of the 256 of `dhash` that may differ, to confirm it */
  sameConfirm?: number;
  /** the same two, looser, for ties across groups: a false tie only joins two groups */
  tieDistance?: number;
  tieConfirm?: number;
}

/**
 * Measured on 600 street photographs, 248 of them frames of 13 clips: recompressing (JPEG 25 to 90) and resizing a picture
 * moves phash by at most 4 (95%: 2) and dhash by at most 28 (95%: 24); two distinct frames of a clip are at least 33 apart by dhash,
 * and at least 54 where phash is within 2. So nothing is removed there, and a copy is. A 2% crop moves them by 8 and 42,
 * pictures of different groups are at least 8 and 110, or 12 and 77, apart: the looser limits tie the one and not the other.
 */
export const NEAR_DEFAULTS = { sameDistance: 2, sameConfirm: 24, tieDistance: 8, tieConfirm: 48 } as const satisfies Required<NearOptions>;

export interface NearReport {
  /** without the repetitions, in the given order; one that stands for others has the most held-out split of them */
  kept: ReadImage[];
  /** how many repetitions were left out */
  removed: number;
  repetitions: { file: string; of: string; digest: Digest }[];
  /** kept images of different groups that show the same: their groups belong together. Sorted */
  pairs: [Digest, Digest][];
}

/**
 * Within a group the first of two almost equal pictures stays; pictures of different labels are never taken for each other.
 * Across groups nothing is removed, the groups are only tied together.
 * @param images in the order that decides which one stays (`readImages` sorts by file)
 */
export function nearDuplicates(images: readonly ReadImage[], options: NearOptions = {}): NearReport {
  const limit = { ...NEAR_DEFAULTS, ...options };
  const hashes = images.map((image) => image.phash);
  const removed = new Map<number, number>();
  const ties: [number, number][] = [];
  const close = (distance: number, confirm: number): [number, number][] =>
    hammingPairs(hashes, distance)
      .filter(([i, j]) => hammingHex(images[i]!.dhash, images[j]!.dhash) <= confirm)
      .map(([i, j]) => [i, j]);

  for (const [i, j] of close(limit.sameDistance, limit.sameConfirm)) {
    const [a, b] = [images[i]!, images[j]!];
    // A repetition only of one that stays: along a slow drive a chain of small steps must not swallow the whole clip.
    if (a.group === b.group && a.label === b.label && !removed.has(i) && !removed.has(j)) removed.set(j, i);
  }
  for (const [i, j] of close(limit.tieDistance, limit.tieConfirm)) if (images[i]!.group !== images[j]!.group) ties.push([i, j]);

  const standing = (i: number): number => removed.get(i) ?? i;
  const pairs = new Map<string, [Digest, Digest]>();
  const tie = (a: Digest, b: Digest): void => {
    const pair: [Digest, Digest] = a < b ? [a, b] : [b, a];
    pairs.set(pair.join(), pair);
  };
  for (const [i, j] of ties) tie(images[standing(i)]!.digest, images[standing(j)]!.digest);
  // The very same bytes in two groups are one image here; it is tied to any other image of the second group.
  const memberOf = new Map<string, Digest>();
  images.forEach((image, i) => {
    if (!removed.has(i) && !memberOf.has(image.group)) memberOf.set(image.group, image.digest);
  });
  // Groups that hold nothing of their own any more still tie the images that were found in them.
  images.forEach((image, i) => {
    for (const group of image.alsoIn) {
      const other = memberOf.get(group);
      const own = images[standing(i)]!.digest;
      if (other === undefined) memberOf.set(group, own);
      else if (other !== own) tie(own, other);
    }
  });
  const splits = images.map((image) => image.split);
  for (const [j, i] of removed) splits[i] = moreHeldOut(splits[i]!, splits[j]!);
  return {
    kept: images.map((image, i) => ({ ...image, split: splits[i]! })).filter((_, i) => !removed.has(i)),
    removed: removed.size,
    repetitions: [...removed].map(([j, i]) => ({ file: images[j]!.file, of: images[i]!.file, digest: images[j]!.digest })),
    pairs: [...pairs.values()].sort((x, y) => (x.join() < y.join() ? -1 : 1)),
  };
}
