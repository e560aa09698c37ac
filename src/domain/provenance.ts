/**
 * Where a derived image comes from, and what follows: it inherits the pool of its parents, and parents from two pools
 * are refused. This is what keeps evidence apart from what is learned.
 */
import type { ImageRow, Pool } from './contracts/common.js';
import { LeakError } from './errors.js';

/**
 * Pool and group of an image made from these. Its group is that of the first parent: the one that lends the background,
 * whose pixels fill most of the image.
 * @throws LeakError for no parents, or parents of two pools
 */
export function inherit(parents: readonly Pick<ImageRow, 'digest' | 'pool' | 'group'>[]): { pool: Pool; group: string } {
  const first = parents[0];
  if (!first) throw new LeakError('a derived image must name its parents, and this one names none; it was not taken in');
  const other = parents.find((p) => p.pool !== first.pool);
  if (other) {
    throw new LeakError(
      `parents of two pools: ${short(first.digest)} is in ${first.pool}, ${short(other.digest)} in ${other.pool}; the image would carry evidence from one to the other, so it was not taken in. Make it from images of one pool.`,
    );
  }
  return { pool: first.pool, group: first.group };
}

/**
 * Checks derived rows whole: all parents known (to `lookup`, or rows of the same batch), all of one pool, the row in that
 * pool, its group one of its parents', and no row its own ancestor. Rows that name a provider must name parents; others
 * without parents are originals and pass.
 * @throws LeakError naming the first bad row; nothing of the batch may then be used
 */
export function assertNoLeak(
  rows: readonly ImageRow[],
  lookup: (digest: string) => Pick<ImageRow, 'digest' | 'pool' | 'group'> | null,
): void {
  const batch = new Map(rows.map((r) => [r.digest, r]));
  const refuse = (row: ImageRow, why: string): never => {
    throw new LeakError(`image ${short(row.digest)} was refused: ${why}. Nothing of its batch of ${rows.length} was taken in.`);
  };
  for (const row of rows) {
    if (row.parents.length === 0) {
      if (row.provider !== null) refuse(row, `${row.provider} made it, but it names no parents`);
      continue;
    }
    const parents = row.parents.map(
      (digest) => lookup(digest) ?? batch.get(digest) ?? refuse(row, `its parent ${short(digest)} is not known`),
    );
    let pool: Pool;
    try {
      ({ pool } = inherit(parents));
    } catch (error) {
      return refuse(row, (error as Error).message);
    }
    if (row.pool !== pool) refuse(row, `it says pool ${row.pool}, its parents are in ${pool}`);
    if (!parents.some((p) => p.group === row.group))
      refuse(row, `its group ${row.group} is none of its parents' (${[...new Set(parents.map((p) => p.group))].join(', ')})`);
  }
  assertNoCycle(rows, batch, refuse);
}

/** Refuses rows of the held-out pool where something is learned, mined, synthesised from or tuned. @throws LeakError */
export function assertLearnable(rows: readonly Pick<ImageRow, 'digest' | 'pool'>[]): void {
  const held = rows.filter((r) => r.pool === 'test');
  if (held[0]) {
    throw new LeakError(
      `${held.length} of ${rows.length} images are of the held-out pool test (the first is ${short(held[0].digest)}); nothing may be learned from them, so nothing was done`,
    );
  }
}

/** Only rows of the batch can close a circle: what the lookup knows was checked when it came in. */
function assertNoCycle(
  rows: readonly ImageRow[],
  batch: ReadonlyMap<string, ImageRow>,
  refuse: (row: ImageRow, why: string) => never,
): void {
  const done = new Set<string>();
  for (const start of rows) {
    if (done.has(start.digest)) continue;
    // Depth first without recursion: chains of derivation may be long.
    const path = new Set<string>();
    const stack: { row: ImageRow; next: number }[] = [{ row: start, next: 0 }];
    path.add(start.digest);
    for (let top = stack.at(-1); top; top = stack.at(-1)) {
      const parent = top.row.parents[top.next++];
      if (parent === undefined) {
        stack.pop();
        path.delete(top.row.digest);
        done.add(top.row.digest);
        continue;
      }
      if (path.has(parent)) refuse(top.row, 'it is its own ancestor');
      const row = batch.get(parent);
      if (row && !done.has(parent)) {
        stack.push({ row, next: 0 });
        path.add(parent);
      }
    }
  }
}

const short = (digest: string): string => digest.slice(0, 12);

const DATA_SET = 'data set ';
const LICENCE = '; licence: ';

/** Who says a label that came with an image: its source, and the licence under which the source gave the image, where it says so. */
export function dataSetProvenance(source: string, licence: string | null): string {
  return `${DATA_SET}${source}${licence === null ? '' : `${LICENCE}${licence}`}`;
}

/** @returns the licence in a provenance of `dataSetProvenance`; null where there is none */
export function licenceIn(provenance: string): string | null {
  const at = provenance.startsWith(DATA_SET) ? provenance.indexOf(LICENCE) : -1;
  return at < 0 ? null : provenance.slice(at + LICENCE.length);
}
