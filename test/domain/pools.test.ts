import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { POOLS, type Label } from '../../src/domain/contracts/common.js';
import { BadInputError } from '../../src/domain/errors.js';
import { assignPools, type Assignable } from '../../src/domain/pools.js';
import { digest } from './support.js';

const photo = (n: number, over: Partial<Assignable> = {}): Assignable => ({
  digest: digest(n),
  label: (n % 2) as Label,
  group: `g${n}`,
  source: 's',
  ...over,
});

/** Clips of one label: `frames` images of one group each, then single photographs. */
function clips(label: Label, sizes: readonly number[], singles: number, source: string, from: number): Assignable[] {
  const out: Assignable[] = [];
  sizes.forEach((size, c) => {
    for (let i = 0; i < size; i++) out.push(photo(from + out.length, { label, group: `${source}-${label}-clip-${c}`, source }));
  });
  for (let i = 0; i < singles; i++) out.push(photo(from + out.length, { label, group: `${source}-${label}-single-${i}`, source }));
  return out;
}

/** The shape of the photographs at hand: few long clips with roadwork, many single ordinary streets of three sources. */
const streets = (split: string | null = null): Assignable[] =>
  [
    ...clips(1, [15, 16, 17, 17, 18, 18, 18, 19, 20, 20], 21, 'dashcam', 0),
    ...clips(0, [4, 5, 5], 0, 'dashcam', 1000),
    ...clips(0, [], 131, 'germany', 2000),
    ...clips(0, [], 94, 'signs', 3000),
    ...clips(0, [], 8, 'lund', 4000),
  ].map((i) => ({ ...i, split }));

function countIn(
  images: readonly Assignable[],
  assigned: ReturnType<typeof assignPools>,
  pool: string,
  label?: Label,
  source?: string,
): number {
  return images.filter(
    (i) =>
      assigned.assignment.get(i.digest)?.pool === pool &&
      (label === undefined || i.label === label) &&
      (source === undefined || i.source === source),
  ).length;
}

const anyImages = fc.array(
  fc.record({
    label: fc.constantFrom<Label | null>(0, 1, 0, 1, null),
    group: fc.integer({ min: 0, max: 25 }).map((g) => `g${g}`),
    source: fc.constantFrom('a', 'b'),
    split: fc.constantFrom<string | null>(null, 'train', 'val', 'test', 'Validation', ''),
  }),
  { maxLength: 80 },
);
const withDigests = (rows: readonly Omit<Assignable, 'digest'>[]): Assignable[] => rows.map((r, n) => ({ ...r, digest: digest(n) }));

describe('pools', () => {
  it('give every image one pool and never split a group or a chain of near-duplicates', () => {
    fc.assert(
      fc.property(anyImages, fc.array(fc.tuple(fc.nat(79), fc.nat(79)), { maxLength: 15 }), fc.nat(99), (rows, pairs, seed) => {
        const images = withDigests(rows);
        const near = pairs.map(([a, b]) => [digest(a), digest(b)] as const);
        const { assignment } = assignPools(images, near, seed);
        const poolOf = new Map<string, string>();
        for (const image of images) {
          const given = assignment.get(image.digest);
          expect(POOLS).toContain(given?.pool);
          expect(poolOf.get(image.group) ?? given?.pool).toBe(given?.pool);
          poolOf.set(image.group, given?.pool as string);
          // one group has one name
          expect(assignment.get((images.find((i) => i.group === image.group) as Assignable).digest)?.group).toBe(given?.group);
        }
        for (const [a, b] of near) {
          const [one, two] = [assignment.get(a), assignment.get(b)];
          if (one && two) expect(one).toEqual(two);
        }
      }),
    );
  });

  it('never let the learning side hold anything that was given as held out', () => {
    fc.assert(
      fc.property(anyImages, fc.nat(99), (rows, seed) => {
        const images = withDigests(rows);
        const { assignment } = assignPools(images, [], seed);
        const hasTest = images.some((i) => i.split === 'test');
        for (const image of images) {
          const pool = assignment.get(image.digest)?.pool;
          if (image.split === 'test') expect(pool).toBe('test');
          if (image.split === 'val' || image.split === 'Validation') expect(hasTest ? ['validate', 'test'] : ['test']).toContain(pool);
        }
      }),
    );
  });

  it('are the same for the same seed in any order of the images, and differ by seed', () => {
    const images = streets();
    const plain = (a: ReturnType<typeof assignPools>) => [...a.assignment].sort();
    expect(plain(assignPools([...images].reverse(), [], 4))).toEqual(plain(assignPools(images, [], 4)));
    expect(plain(assignPools(images, [], 5))).not.toEqual(plain(assignPools(images, [], 4)));
  });

  it('follow their shares by class and source', () => {
    const images = [...clips(1, [], 200, 'a', 0), ...clips(0, [], 300, 'a', 1000), ...clips(0, [], 100, 'b', 2000)];
    const assigned = assignPools(images, [], 1);
    const shares = { train: 0.55, calibrate: 0.1, validate: 0.1, test: 0.15, traffic: 0.1 };
    for (const [pool, share] of Object.entries(shares)) {
      expect(Math.abs(countIn(images, assigned, pool, 1) - 200 * share)).toBeLessThanOrEqual(2);
      expect(Math.abs(countIn(images, assigned, pool, 0, 'a') - 300 * share)).toBeLessThanOrEqual(3);
      expect(Math.abs(countIn(images, assigned, pool, 0, 'b') - 100 * share)).toBeLessThanOrEqual(3);
    }
    expect(assigned.warnings).toEqual([]);
  });

  it('follow their shares where clips hold both classes, too', () => {
    const pairs = Array.from({ length: 200 }, (_, i) => [photo(2 * i, { group: `p${i}` }), photo(2 * i + 1, { group: `p${i}` })]).flat();
    const images = [...pairs, ...clips(0, [], 200, 'a', 1000)];
    const assigned = assignPools(images, [], 1);
    expect(Math.abs(countIn(images, assigned, 'train', 1) - 110)).toBeLessThanOrEqual(3);
    expect(Math.abs(countIn(images, assigned, 'train', 0) - 220)).toBeLessThanOrEqual(3);
  });

  it('give every pool both classes from ten long clips and a few singles, with most of each in train', () => {
    for (let seed = 0; seed < 20; seed++) {
      const images = streets('train');
      const held = [...clips(1, [18, 18, 19], 3, 'other', 5000), ...clips(0, [2, 2, 2], 95, 'other', 6000)].map((i) => ({
        ...i,
        split: 'val',
      }));
      const assigned = assignPools([...images, ...held], [], seed);
      expect(assigned.warnings).toEqual([]);
      expect(assigned.conflicts).toEqual([]);
      for (const pool of ['train', 'calibrate', 'validate', 'traffic']) {
        for (const label of [0, 1] as const) expect(countIn(images, assigned, pool, label)).toBeGreaterThan(0);
      }
      expect(countIn(images, assigned, 'train', 1)).toBeGreaterThan(0.5 * 199);
      expect(countIn(images, assigned, 'train', 0)).toBeGreaterThan(0.55 * 247);
      expect(countIn(held, assigned, 'test')).toBe(held.length);
    }
  });

  it('use a given val as the pool validate when a test is given too', () => {
    const images = [
      ...streets('train'),
      photo(9001, { split: 'val' }),
      photo(9002, { split: 'val' }),
      photo(9003, { split: 'test' }),
      photo(9004, { split: 'test' }),
    ];
    const assigned = assignPools(images, [], 1);
    expect(images.filter((i) => assigned.assignment.get(i.digest)?.pool === 'validate').map((i) => i.split)).toEqual(['val', 'val']);
    expect(images.filter((i) => assigned.assignment.get(i.digest)?.pool === 'test').map((i) => i.split)).toEqual(['test', 'test']);
  });

  it('send a group that spans two given splits to the held-out side whole, and say so', () => {
    const images = [
      ...streets('train'),
      photo(9001, { group: 'dashcam-1-clip-0', split: 'val', label: 1 }),
      photo(9002, { split: 'val', label: 0 }),
    ];
    const { assignment, conflicts } = assignPools(images, [], 1);
    for (const i of images.filter((x) => x.group === 'dashcam-1-clip-0')) expect(assignment.get(i.digest)?.pool).toBe('test');
    expect(conflicts).toHaveLength(1);
    expect(conflicts[0]).toMatch(/dashcam-1-clip-0 .*1 in val, 15 in train.* went to val/);
  });

  it('join near-duplicates over an image that is no longer there', () => {
    const images = [photo(1), photo(3)];
    const { assignment } = assignPools(
      images,
      [
        [digest(1), digest(777)],
        [digest(777), digest(3)],
      ],
      1,
    );
    expect(assignment.get(digest(1))).toEqual(assignment.get(digest(3)));
  });

  it('join groups that hold the very same bytes', () => {
    const images = [...Array.from({ length: 40 }, (_, n) => photo(n)), photo(100, { alsoIn: ['g0', 'g1'] })];
    const { assignment } = assignPools(images, [], 1);
    expect(new Set([0, 1, 100].map((n) => assignment.get(digest(n))?.pool)).size).toBe(1);
  });

  it('put the rarest first where groups do not suffice: train, then the held-out pool, and warn', () => {
    const images = [...clips(1, [5, 5], 0, 'a', 0), ...clips(0, [], 100, 'a', 1000)];
    const assigned = assignPools(images, [], 1);
    expect(countIn(images, assigned, 'train', 1)).toBe(5);
    expect(countIn(images, assigned, 'test', 1)).toBe(5);
    expect(assigned.warnings).toHaveLength(3);
    expect(assigned.warnings.join()).toMatch(/calibrate has no image of class 1/);
  });

  it('draw a held-out pool themselves when the data set gives train alone', () => {
    const images = streets('train');
    const assigned = assignPools(images, [], 1);
    expect(countIn(images, assigned, 'test')).toBeGreaterThan(0);
    expect(assigned.warnings.join()).toMatch(/none that is held out/);
  });

  it('refuse a split of unknown name rather than guess', () => {
    expect(() => assignPools([photo(1, { split: 'holdout-b' })], [], 1)).toThrow(BadInputError);
    expect(() => assignPools([photo(1, { split: 'constructor' })], [], 1)).toThrow(/expected train, val/);
  });

  it('refuse one image with two labels', () => {
    expect(() => assignPools([photo(1, { label: 0 }), photo(1, { label: 1 })], [], 1)).toThrow(/as 0 and as 1/);
  });
});
