import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { POOLS, type ImageRow } from '../../src/domain/contracts/common.js';
import { LeakError } from '../../src/domain/errors.js';
import { assertLearnable, assertNoLeak, inherit, dataSetProvenance, licenceIn } from '../../src/domain/provenance.js';
import { digest, image } from './support.js';

const derived = (n: number, parents: readonly ImageRow[], over: Partial<ImageRow> = {}): ImageRow =>
  image(n, {
    parents: parents.map((p) => p.digest),
    provider: 'composite',
    label: null,
    truth: 'none',
    pool: parents[0]?.pool ?? 'train',
    group: parents[0]?.group ?? 'g',
    ...over,
  });
const lookupIn = (rows: readonly ImageRow[]) => (d: string) => rows.find((r) => r.digest === d) ?? null;
const pool = fc.constantFrom(...POOLS);

describe('a derived image', () => {
  it('inherits the pool of its parents and the group of the first', () => {
    expect(inherit([image(1, { pool: 'traffic', group: 'background' }), image(2, { pool: 'traffic', group: 'failure' })])).toEqual({
      pool: 'traffic',
      group: 'background',
    });
  });

  it('is refused with parents of two pools, whichever they are', () => {
    fc.assert(
      fc.property(pool, pool, fc.nat(4), (one, two, more) => {
        fc.pre(one !== two);
        const parents = [
          ...Array.from({ length: more }, (_, i) => image(i, { pool: one })),
          image(10, { pool: one }),
          image(11, { pool: two }),
        ];
        expect(() => inherit(parents)).toThrow(LeakError);
        expect(() => assertNoLeak([derived(20, parents)], lookupIn(parents))).toThrow(LeakError);
      }),
    );
  });

  it('is refused when it names no parents', () => {
    expect(() => inherit([])).toThrow(LeakError);
    expect(() => assertNoLeak([derived(1, [])], () => null)).toThrow(/names no parents/);
  });

  it('is refused when it says another pool than its parents have', () => {
    fc.assert(
      fc.property(pool, pool, (parents, own) => {
        const parent = image(1, { pool: parents });
        const check = () => assertNoLeak([derived(2, [parent], { pool: own })], lookupIn([parent]));
        if (parents === own) expect(check).not.toThrow();
        else expect(check).toThrow(LeakError);
      }),
    );
  });

  it('is refused when a parent is not known', () => {
    expect(() => assertNoLeak([derived(2, [image(1)])], () => null)).toThrow(/not known/);
  });

  it("is refused when its group is none of its parents'", () => {
    const parent = image(1);
    expect(() => assertNoLeak([derived(2, [parent], { group: 'elsewhere' })], lookupIn([parent]))).toThrow(/its group elsewhere/);
  });

  it('may have a parent that is derived itself, in the same batch and in any order', () => {
    const photo = image(1);
    const first = derived(2, [photo]);
    const second = derived(3, [first]);
    expect(() => assertNoLeak([second, first], lookupIn([photo]))).not.toThrow();
  });

  it('is refused as its own ancestor', () => {
    const a = derived(1, [], { parents: [digest(2)], group: 'g' });
    const b = derived(2, [], { parents: [digest(1)], group: 'g' });
    expect(() => assertNoLeak([a, b], () => null)).toThrow(/its own ancestor/);
  });

  it('survives a very long line of descent', () => {
    const rows = [image(0, { group: 'g' })];
    for (let n = 1; n < 3000; n++) rows.push(derived(n, [rows[n - 1] as ImageRow]));
    const [photo, ...rest] = rows as [ImageRow, ...ImageRow[]];
    expect(() => assertNoLeak(rest.reverse(), lookupIn([photo]))).not.toThrow();
  });
});

describe('a photograph', () => {
  it('passes without parents', () => {
    expect(() => assertNoLeak([image(1), image(2, { pool: 'test' })], () => null)).not.toThrow();
  });
});

describe('the held-out pool', () => {
  it('is refused wherever something is learned, be it one image of many', () => {
    fc.assert(
      fc.property(fc.array(pool), (pools) => {
        const rows = pools.map((p, n) => image(n, { pool: p }));
        if (pools.includes('test')) expect(() => assertLearnable(rows)).toThrow(LeakError);
        else expect(() => assertLearnable(rows)).not.toThrow();
      }),
    );
  });
});

describe('who says a label that came with an image', () => {
  it('is its source, with the licence that the source gave', () => {
    expect(dataSetProvenance('clips', null)).toBe('data set clips');
    for (const licence of ['CC0-1.0', 'ODC-By 1.0 (data; badge: MIT)'])
      expect(licenceIn(dataSetProvenance('clips', licence))).toBe(licence);
    expect([dataSetProvenance('clips', null), 'review:turn-0001', 'turn-0001: a+b; licence: x'].map(licenceIn)).toEqual([null, null, null]);
  });
});
