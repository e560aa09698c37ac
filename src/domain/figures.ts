/**
 * Figures with their uncertainty: accuracy overall and within each source, with intervals by group. One number alone would
 * hide that a source may nearly tell the label, and that twenty frames of one clip are one observation.
 */
import type { Label } from './contracts/common.js';
import { roundHalfEven } from './metrics.js';
import { seededRng } from './rng.js';

export interface FigureRow {
  label: Label;
  prediction: number;
  group: string;
  source: string;
}

export interface Figure {
  /** `overall`, or the source */
  of: string;
  accuracy: number;
  /** 95% percentile interval of a bootstrap over groups */
  ci95: [number, number];
  n: number;
  groups: number;
  positives: number;
}

const RESAMPLES = 1000;

/** @returns overall first, then the sources by name; empty for no rows */
export function figures(rows: readonly FigureRow[], seed: number): Figure[] {
  if (rows.length === 0) return [];
  const sources = [...new Set(rows.map((r) => r.source))].sort();
  const out = [figure('overall', rows, seed)];
  if (sources.length > 1)
    for (const source of sources)
      out.push(
        figure(
          source,
          rows.filter((r) => r.source === source),
          seed,
        ),
      );
  return out;
}

function figure(of: string, rows: readonly FigureRow[], seed: number): Figure {
  const groups = new Map<string, { right: number; n: number }>();
  for (const row of rows) {
    const g = groups.get(row.group) ?? { right: 0, n: 0 };
    g.n += 1;
    if (roundHalfEven(row.prediction) === row.label) g.right += 1;
    groups.set(row.group, g);
  }
  const members = [...groups].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, g]) => g);
  const rng = seededRng(`${seed}/figures/${of}`);
  const drawn = Array.from({ length: RESAMPLES }, () => {
    let right = 0;
    let n = 0;
    for (let i = 0; i < members.length; i++) {
      const g = rng.pick(members);
      right += g.right;
      n += g.n;
    }
    return right / n;
  }).sort((a, b) => a - b);
  const at = (q: number): number => drawn[Math.min(drawn.length - 1, Math.floor(q * drawn.length))] ?? 0;
  return {
    of,
    accuracy: members.reduce((sum, g) => sum + g.right, 0) / rows.length,
    ci95: [at(0.025), at(0.975)],
    n: rows.length,
    groups: members.length,
    positives: rows.filter((r) => r.label === 1).length,
  };
}
