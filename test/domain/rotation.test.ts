import { describe, expect, it } from 'vitest';
import { rotate } from '../../src/domain/rotation.js';
import { image } from './support.js';

const pool = (groups: number, perGroup = 2) =>
  Array.from({ length: groups * perGroup }, (_, i) =>
    image(i, { pool: 'test', group: `g${Math.floor(i / perGroup)}`, label: Math.floor(i / perGroup) % 2 === 0 ? 0 : 1 }),
  );

describe('rotation of the held-out pool', () => {
  it('divides a pool that is large enough, and the parts together are the whole', () => {
    const rows = pool(1_000);
    const first = rotate(rows, 0, 100);
    expect(first.parts).toBeGreaterThanOrEqual(3);
    const seen = Array.from({ length: first.parts }, (_, turn) => rotate(rows, turn, 100).rows.map((r) => r.digest)).flat();
    expect(seen).toHaveLength(rows.length);
    expect(new Set(seen).size).toBe(rows.length);
  });

  it('never splits a group, holds enough groups of each class in each part, and comes round again', () => {
    const rows = pool(1_000);
    const { parts } = rotate(rows, 0, 100);
    const home = new Map<string, number>();
    for (let turn = 0; turn < parts; turn++) {
      const part = rotate(rows, turn, 100).rows;
      for (const label of [0, 1])
        expect(new Set(part.filter((r) => r.label === label).map((r) => r.group)).size).toBeGreaterThanOrEqual(100);
      for (const row of part) {
        expect(home.get(row.group) ?? turn).toBe(turn);
        home.set(row.group, turn);
      }
    }
    expect(rotate(rows, parts + 1, 100)).toEqual(rotate(rows, 1, 100));
    expect(rotate(rows, -1, 100).part).toBe(parts - 1);
  });

  it('takes all of a pool that is too small, and says so', () => {
    const rows = pool(150);
    const { rows: all, parts, note } = rotate(rows, 5, 100);
    expect(all).toEqual(rows);
    expect(parts).toBe(1);
    expect(note).toMatch(/75 groups of the scarcer class are too few to rotate in parts of 100/);
  });
});
