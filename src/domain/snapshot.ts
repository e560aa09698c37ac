/** The training set of a turn: which images, with which label and weight. Same input in any order, same rows. */
import type { ImageRow, Label, TruthKind } from './contracts/common.js';
import { BadInputError } from './errors.js';
import { seededRng } from './rng.js';
import { assertLearnable } from './provenance.js';

/** A label and who stands behind it. */
export interface LabelEvidence {
  digest: string;
  label: Label;
  kind: TruthKind;
  /** ms since the epoch: of two of one kind the newer holds */
  at: number;
}

const RANK: Record<TruthKind, number> = { none: 0, consensus: 1, verified: 2, truth: 3 };

/**
 * The label that holds for each image: the highest kind (truth, verified, consensus), the newest within a kind. Two of
 * the same kind and time that contradict each other cancel out: neither holds.
 */
export function effectiveLabels(labels: readonly LabelEvidence[]): Map<string, { label: Label; kind: TruthKind }> {
  const best = new Map<string, LabelEvidence & { contested: boolean }>();
  for (const row of labels) {
    if (row.kind === 'none') continue;
    const held = best.get(row.digest);
    const order = held ? RANK[row.kind] - RANK[held.kind] || row.at - held.at : 1;
    if (order > 0) best.set(row.digest, { ...row, contested: false });
    else if (held && order === 0 && row.label !== held.label) held.contested = true;
  }
  return new Map([...best.values()].filter((r) => !r.contested).map((r) => [r.digest, { label: r.label, kind: r.kind }]));
}

/**
 * Real photographs and derived images as rows to learn from, sorted by digest; images without a label are left out.
 * Labels that no person saw weigh `unreviewedWeight`. Derived images have at most `maxSyntheticShare` of the training
 * weight (that of rows in the pools train and traffic): reviewed ones first, then classes in turn, each by digest.
 * @throws LeakError when a row is of the held-out pool; BadInputError for settings out of range
 */
export function buildSnapshot(input: {
  real: readonly ImageRow[];
  synthetic: readonly ImageRow[];
  labels: readonly LabelEvidence[];
  /** weight of a consensus label that no person reviewed, (0, 1] */
  unreviewedWeight: number;
  /** [0, 1] */
  maxSyntheticShare: number;
}): ImageRow[] {
  const { unreviewedWeight, maxSyntheticShare } = input;
  if (!(unreviewedWeight > 0 && unreviewedWeight <= 1))
    throw new BadInputError(`unreviewedWeight must be in (0, 1], not ${unreviewedWeight}`);
  if (!(maxSyntheticShare >= 0 && maxSyntheticShare <= 1))
    throw new BadInputError(`maxSyntheticShare must be in [0, 1], not ${maxSyntheticShare}`);
  assertLearnable(input.real);
  assertLearnable(input.synthetic);
  const holds = effectiveLabels(input.labels);

  const labelled = (row: ImageRow): ImageRow[] => {
    const own = row.label === null || row.truth === 'none' ? null : { label: row.label, kind: row.truth };
    const given = holds.get(row.digest) ?? null;
    const held = own && given ? (RANK[given.kind] > RANK[own.kind] ? given : own) : (own ?? given);
    if (!held) return [];
    return [{ ...row, label: held.label, truth: held.kind, weight: held.kind === 'consensus' ? unreviewedWeight : 1 }];
  };

  const real = unique(input.real.flatMap(labelled));
  const known = new Set(real.map((r) => r.digest));
  const derived = unique(input.synthetic.filter((r) => !known.has(r.digest)).flatMap(labelled));
  const learned = real.filter((r) => r.pool === 'train' || r.pool === 'traffic').reduce((sum, r) => sum + r.weight, 0);
  return [...real, ...capped(derived, learned, maxSyntheticShare)].sort(byDigest);
}

/**
 * Images of a turn that no model may learn from in that turn, so that its candidate can be judged on them: whole groups (what was made
 * from one photograph stays together), drawn by seed until the share of the images with a settled label is reached. Images that have
 * no label but the generator's intent (truth `none`) come along with their group. Fewer than `least` settled ones would say nothing,
 * and more than half would take from the training what was made for it: then none is held back.
 * @returns sorted by digest
 */
export function holdBack<T extends { digest: string; group: string; truth: TruthKind }>(
  made: readonly T[],
  options: { share: number; least: number; seed: number | string },
): T[] {
  const settled = made.filter((row) => row.truth !== 'none');
  const wanted = options.share > 0 ? Math.max(Math.ceil(settled.length * options.share), options.least) : 0;
  if (wanted === 0 || wanted > settled.length / 2) return [];
  const chosen = new Set<string>();
  let count = 0;
  for (const group of seededRng(options.seed).shuffle([...new Set(settled.map((row) => row.group))].sort())) {
    if (count >= wanted) break;
    chosen.add(group);
    count += settled.filter((row) => row.group === group).length;
  }
  return made.filter((row) => chosen.has(row.group)).sort(byDigest);
}

function capped(derived: readonly ImageRow[], realWeight: number, share: number): ImageRow[] {
  if (share >= 1) return [...derived];
  const room = (share / (1 - share)) * realWeight;
  const kept: ImageRow[] = [];
  let weight = 0;
  for (const row of [
    ...inTurn(derived.filter((r) => r.truth !== 'consensus')),
    ...inTurn(derived.filter((r) => r.truth === 'consensus')),
  ]) {
    if (weight + row.weight > room + 1e-9) continue;
    kept.push(row);
    weight += row.weight;
  }
  return kept;
}

/** Classes in proportion, so that a cap never changes their balance; by digest within a class, which is as good as random. */
function inTurn(rows: readonly ImageRow[]): ImageRow[] {
  return ([0, 1] as const)
    .flatMap((label) => {
      const own = rows.filter((r) => r.label === label).sort(byDigest);
      return own.map((row, i) => ({ row, at: (i + 0.5) / own.length }));
    })
    .sort((a, b) => a.at - b.at || byDigest(a.row, b.row))
    .map(({ row }) => row);
}

function unique(rows: readonly ImageRow[]): ImageRow[] {
  return [...new Map(rows.map((r) => [r.digest, r])).values()];
}

function byDigest(a: { digest: string }, b: { digest: string }): number {
  return a.digest < b.digest ? -1 : a.digest > b.digest ? 1 : 0;
}
