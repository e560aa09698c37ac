import { describe, expect, it } from 'vitest';
import { figures, type FigureRow } from '../../src/domain/figures.js';

const row = (group: string, source: string, right: boolean): FigureRow => ({ label: 1, prediction: right ? 0.9 : 0.1, group, source });

describe('figures', () => {
  it('tells the accuracy overall and within each source', () => {
    const rows = [row('a', 's1', true), row('b', 's1', true), row('c', 's2', false), row('d', 's2', true)];
    expect(figures(rows, 1).map((f) => [f.of, f.accuracy, f.n])).toEqual([
      ['overall', 0.75, 4],
      ['s1', 1, 2],
      ['s2', 0.5, 2],
    ]);
  });

  it('counts twenty frames of one clip as one observation: the interval is wide', () => {
    const clips = [...Array.from({ length: 20 }, () => row('one', 's', true)), ...Array.from({ length: 20 }, () => row('two', 's', false))];
    const singles = clips.map((r, i) => ({ ...r, group: `g${i}` }));
    const width = (rows: FigureRow[]) => {
      const [f] = figures(rows, 1);
      return (f?.ci95[1] ?? 0) - (f?.ci95[0] ?? 0);
    };
    expect(width(clips)).toBe(1);
    expect(width(singles)).toBeLessThan(0.5);
  });

  it('gives the same interval for the same seed, whatever the order of the rows', () => {
    const rows = Array.from({ length: 30 }, (_, i) => row(`g${i % 7}`, 's', i % 3 !== 0));
    expect(figures([...rows].reverse(), 5)).toEqual(figures(rows, 5));
  });

  it('has nothing to tell of no rows', () => {
    expect(figures([], 1)).toEqual([]);
  });
});
