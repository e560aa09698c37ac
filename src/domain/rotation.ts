/**
 * Rotation of the held-out pool: a candidate is judged on a part of its groups, the next look and the next candidate on the
 * next part, so that no set is asked for ever. Which part a group is in depends on its name alone.
 */
import type { ImageRow } from './contracts/common.js';
import { seededRng } from './rng.js';

export interface Rotated<T> {
  rows: T[];
  /** parts the pool is divided into; 1: too small to rotate */
  parts: number;
  /** part taken, from 0 */
  part: number;
  /** for the operator */
  note: string;
}

/**
 * @param turn which part comes: any whole number, consecutive ones give consecutive parts
 * @param perClass groups a class that every part must hold at least
 */
export function rotate<T extends Pick<ImageRow, 'group' | 'label'>>(rows: readonly T[], turn: number, perClass: number): Rotated<T> {
  const groups = new Map<string, Set<number>>();
  for (const { group, label } of rows) {
    if (label === null) continue;
    const labels = groups.get(group) ?? new Set<number>();
    labels.add(label);
    groups.set(group, labels);
  }
  const ofClass = [0, 1].map((label) => [...groups.values()].filter((labels) => labels.has(label)).length);
  const scarce = Math.min(...ofClass);
  // Names fall into parts by chance, so that a part may hold somewhat less than its share: too small a part means fewer parts.
  for (let parts = Math.floor(scarce / perClass); parts >= 2; parts--) {
    const partOf = new Map([...groups.keys()].map((group) => [group, seededRng(`rotation ${parts} ${group}`).int(parts)]));
    const sizes = Array.from({ length: parts }, () => [0, 0]);
    for (const [group, labels] of groups) {
      const size = sizes[partOf.get(group) as number] as number[];
      for (const label of labels) size[label] = (size[label] as number) + 1;
    }
    const smallest = Math.min(...sizes.flat());
    if (smallest < perClass) continue;
    const part = ((turn % parts) + parts) % parts;
    return {
      rows: rows.filter((row) => partOf.get(row.group) === part),
      parts,
      part,
      note: `part ${part + 1} of ${parts} of the held-out pool`,
    };
  }
  return {
    rows: [...rows],
    parts: 1,
    part: 0,
    note: `the whole held-out pool: ${scarce} groups of the scarcer class are too few to rotate in parts of ${perClass}`,
  };
}
