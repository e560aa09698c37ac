/** Shared by the domain tests: digests, images and paired evidence of known quality. */
import type { ImageRow, Label, TruthKind } from '../../src/domain/contracts/common.js';
import type { Gates, PairedRow } from '../../src/domain/verdict.js';
import { seededRng } from '../../src/domain/rng.js';

/** A digest that looks random, as SHA-256 does, and is the same for the same n. */
export function digest(n: number): string {
  const rng = seededRng(`digest ${n}`);
  return Array.from({ length: 64 }, () => rng.int(16).toString(16)).join('');
}

export function image(n: number, over: Partial<ImageRow> = {}): ImageRow {
  return {
    digest: digest(n),
    label: (n % 2) as Label,
    truth: 'truth',
    pool: 'train',
    group: `g${n}`,
    source: 'photographs',
    parents: [],
    provider: null,
    intent: null,
    weight: 1,
    width: 400,
    height: 300,
    ...over,
  };
}

export const goodGates: Gates = {
  latencyP99Ms: 80,
  maxLatencyP99Ms: 500,
  bundleBytes: 1_000,
  maxBundleBytes: 2_000,
  errors: 0,
  answers: 400,
  maxErrorShare: 0.01,
  shadowAnswers: null,
  minShadowAnswers: 20,
};

/** Answers of two models of given accuracy. Within a group answers hang together: `stickiness` of them are the group's own. */
export function paired(options: {
  groups: number;
  perGroup: number;
  champion: number;
  candidate: number;
  seed: number;
  stickiness?: number;
  truth?: TruthKind;
}): PairedRow[] {
  const rng = seededRng(`paired ${options.seed}`);
  const rows: PairedRow[] = [];
  for (let g = 0; g < options.groups; g++) {
    const label = (g % 2) as Label;
    const own = { champion: rng.next() < options.champion, candidate: rng.next() < options.candidate };
    for (let i = 0; i < options.perGroup; i++) {
      const answer = (who: 'champion' | 'candidate'): number => {
        const isRight = rng.next() < (options.stickiness ?? 0.3) ? own[who] : rng.next() < options[who];
        const sure = 0.55 + 0.4 * rng.next();
        return isRight === (label === 1) ? sure : 1 - sure;
      };
      rows.push({
        group: `clip-${g}`,
        label,
        champion: answer('champion'),
        candidate: answer('candidate'),
        truth: options.truth ?? 'truth',
        source: 'photographs',
        level: i % 4,
      });
    }
  }
  return rows;
}
