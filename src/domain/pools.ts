/**
 * Which photograph serves for what: pools by group, so that no clip, place or near-duplicate stands on two sides.
 * Stratified by class and source, deterministic by seed, independent of the order of the input.
 */
import type { Label, Pool } from './contracts/common.js';
import { BadInputError } from './errors.js';
import { seededRng } from './rng.js';

export interface Assignable {
  digest: string;
  label: Label | null;
  group: string;
  source: string;
  /** split given by the data set: train, val (valid, validation), test; null or empty: none */
  split?: string | null;
  /** other groups that hold the very same bytes: they are one with `group` */
  alsoIn?: readonly string[];
}

export interface Assigned {
  assignment: Map<string, { pool: Pool; group: string }>;
  /** pools that lack a class, splits that could not be followed as they are */
  warnings: string[];
  /** groups that the data set puts on two sides. They go to the held-out side whole, so that what is learned from never holds any of it */
  conflicts: string[];
}

type Shares = readonly (readonly [Pool, number])[];

/** Shares of images by pool: of a data set without splits, of a given `train`, and of that when a given `val` is the pool `validate`. */
export const POOL_SHARES = {
  none: [
    ['train', 0.55],
    ['calibrate', 0.1],
    ['validate', 0.1],
    ['test', 0.15],
    ['traffic', 0.1],
  ],
  train: [
    ['train', 0.65],
    ['calibrate', 0.1],
    ['validate', 0.1],
    ['traffic', 0.15],
  ],
  trainBesideValidate: [
    ['train', 0.75],
    ['calibrate', 0.1],
    ['traffic', 0.15],
  ],
} as const satisfies Record<string, Shares>;

/** Who gets a class first when its groups do not suffice for every pool. */
const PRIORITY: readonly Pool[] = ['train', 'test', 'traffic', 'validate', 'calibrate'];

/** Sides of a split, the most held-out first. */
const SIDES = ['test', 'val', 'train'] as const;
type Side = (typeof SIDES)[number];
const SIDE_OF: Readonly<Record<string, Side>> = {
  train: 'train',
  training: 'train',
  val: 'val',
  valid: 'val',
  validate: 'val',
  validation: 'val',
  dev: 'val',
  test: 'test',
  testing: 'test',
};

interface Group {
  name: string;
  images: Assignable[];
  /** images by class; index 2: without a label */
  counts: [number, number, number];
  /** images by class and source */
  bySource: Map<string, number>;
}

/**
 * A given split is honoured: `train` goes to the pools that may be learned from (train, calibrate, validate, traffic),
 * `test` to `test`, `val` to `validate` where a `test` is given too, and otherwise to `test`: it is then the held-out set
 * on which nothing is tuned. Images without a split beside others with one count as `train`. Without any held-out split
 * all five pools are drawn from all images.
 * @param nearDuplicates pairs of digests; their groups become one, named by the smallest name. Unknown digests may link known ones
 * @throws BadInputError for a split of unknown name, or one digest given twice with two labels
 */
export function assignPools(images: readonly Assignable[], nearDuplicates: readonly (readonly [string, string])[], seed: number): Assigned {
  const groups = groupsOf(images, nearDuplicates);
  const given = new Set(images.map((i) => sideOf(i.split)));
  const heldOut = given.has('test') || given.has('val');
  const warnings: string[] = [];
  const conflicts: string[] = [];
  const assignment: Assigned['assignment'] = new Map();
  const put = (group: Group, pool: Pool): void => {
    for (const image of group.images) assignment.set(image.digest, { pool, group: group.name });
  };

  if (!heldOut) {
    if (given.has('train'))
      warnings.push('the data set gives a split train but none that is held out; the held-out pool was drawn from all images');
    distribute(groups, POOL_SHARES.none, seed, put);
    warnings.push(...missingClasses(images, assignment, POOL_SHARES.none));
    return { assignment, warnings, conflicts };
  }

  const without = images.filter((i) => sideOf(i.split) === null).length;
  if (without > 0) warnings.push(`${without} images have no split while others have one; they count as train`);
  const hasTest = given.has('test');
  const learn: Group[] = [];
  for (const group of groups) {
    const sides = new Set(group.images.map((i) => sideOf(i.split) ?? 'train'));
    const side = SIDES.find((s) => sides.has(s)) as Side;
    if (sides.size > 1) {
      const counts = SIDES.filter((s) => sides.has(s)).map(
        (s) => `${group.images.filter((i) => (sideOf(i.split) ?? 'train') === s).length} in ${s}`,
      );
      conflicts.push(
        `group ${group.name} stands in ${sides.size} given splits (${counts.join(', ')}); all of it went to ${side}, so that nothing held out is learned from`,
      );
    }
    if (side === 'train') learn.push(group);
    else put(group, side === 'test' || !hasTest ? 'test' : 'validate');
  }
  const shares: Shares = hasTest && given.has('val') ? POOL_SHARES.trainBesideValidate : POOL_SHARES.train;
  distribute(learn, shares, seed, put);
  const used: Shares = [...shares, ...(hasTest && given.has('val') ? ([['validate', 0]] as const) : []), ['test', 0] as const];
  warnings.push(...missingClasses(images, assignment, used));
  return { assignment, warnings, conflicts };
}

function sideOf(split: string | null | undefined): Side | null {
  const name = (split ?? '').trim().toLowerCase();
  if (name === '') return null;
  const side = Object.hasOwn(SIDE_OF, name) ? SIDE_OF[name] : undefined;
  if (side === undefined) {
    throw new BadInputError(
      `split "${split}" is not known; expected train, val (valid, validation), test, or nothing. No image was given a pool, for a wrong guess could train on what is held out.`,
    );
  }
  return side;
}

/**
 * Greedy by largest deficit: large groups first, each to the pool that lacks most images of its class and of its source;
 * once a class has only as many groups left as there are pools without it, those pools come first.
 */
function distribute(groups: readonly Group[], shares: Shares, seed: number, put: (group: Group, pool: Pool) => void): void {
  const total: Group['counts'] = [0, 0, 0];
  const bySource = new Map<string, number>();
  for (const group of groups) {
    group.counts.forEach((n, c) => (total[c] = (total[c] as number) + n));
    for (const [key, n] of group.bySource) bySource.set(key, (bySource.get(key) ?? 0) + n);
  }
  const pools = shares.map(([pool, share]) => ({
    pool,
    missing: total.map((n) => n * share),
    bySource: new Map([...bySource].map(([key, n]) => [key, n * share])),
    has: [false, false, false],
  }));
  const rng = seededRng(`pools ${seed}`);
  const waiting = new Set(rng.shuffle(groups).sort((a, b) => b.images.length - a.images.length));
  const holding = (c: number): Group[] => [...waiting].filter((g) => (g.counts[c] as number) > 0);

  // The class with the fewest groups chooses first; images without a label fill up at last.
  const order = [0, 1].sort((a, b) => holding(a).length - holding(b).length);
  for (const c of [...order, 2]) {
    const members = holding(c);
    members.forEach((group, i) => {
      const left = members.length - i;
      const uncovered = PRIORITY.flatMap((name) => pools.filter((p) => p.pool === name && p.has[c] === false));
      const choice = c < 2 && uncovered.length > 0 && left <= uncovered.length ? uncovered.slice(0, left) : pools;
      const need = (p: (typeof pools)[number]): number => {
        // What a mixed group brings of another class counts only where it would be too much: what lacks of it comes later.
        let sum = p.missing[c] as number;
        for (const k of [0, 1, 2]) if (k !== c) sum += Math.min(0, (p.missing[k] as number) - (group.counts[k] as number));
        for (const key of group.bySource.keys()) if (key.startsWith(`${c} `)) sum += p.bySource.get(key) as number;
        return sum;
      };
      const chosen = choice.reduce((best, p) => (need(p) > need(best) ? p : best));
      group.counts.forEach((n, k) => {
        chosen.missing[k] = (chosen.missing[k] as number) - n;
        if (n > 0) chosen.has[k] = true;
      });
      for (const [key, n] of group.bySource) chosen.bySource.set(key, (chosen.bySource.get(key) as number) - n);
      waiting.delete(group);
      put(group, chosen.pool);
    });
  }
}

/** Groups joined by near-duplicates and shared bytes, sorted by name; each digest once. */
function groupsOf(images: readonly Assignable[], pairs: readonly (readonly [string, string])[]): Group[] {
  const parent = new Map<string, string>();
  const root = (key: string): string => {
    let top = key;
    for (let up = parent.get(top); up !== undefined; up = parent.get(top)) top = up;
    for (let at = key; at !== top;) {
      const up = parent.get(at) as string;
      parent.set(at, top);
      at = up;
    }
    return top;
  };
  const join = (a: string, b: string): void => {
    const [one, two] = [root(a), root(b)];
    if (one !== two) parent.set(one, two);
  };
  const byDigest = new Map<string, Assignable>();
  for (const image of images) {
    const known = byDigest.get(image.digest);
    if (known && known.label !== image.label) {
      throw new BadInputError(
        `image ${image.digest.slice(0, 12)} is given twice, as ${known.label} and as ${image.label}; no image was given a pool. Correct the label.`,
      );
    }
    if (!known) byDigest.set(image.digest, image);
    join(`d ${image.digest}`, `g ${image.group}`);
    for (const other of image.alsoIn ?? []) join(`d ${image.digest}`, `g ${other}`);
  }
  for (const [a, b] of pairs) join(`d ${a}`, `d ${b}`);

  const members = new Map<string, Assignable[]>();
  for (const image of images) {
    const key = root(`d ${image.digest}`);
    members.set(key, [...(members.get(key) ?? []), image]);
  }
  return [...members.values()]
    .map((all): Group => {
      const group: Group = { name: all.map((i) => i.group).sort()[0] as string, images: all, counts: [0, 0, 0], bySource: new Map() };
      for (const digest of new Set(all.map((i) => i.digest))) {
        const image = byDigest.get(digest) as Assignable;
        const c = image.label ?? 2;
        group.counts[c] += 1;
        const key = `${c} ${image.source}`;
        group.bySource.set(key, (group.bySource.get(key) ?? 0) + 1);
      }
      return group;
    })
    .sort((a, b) => (a.name < b.name ? -1 : 1));
}

function missingClasses(images: readonly Assignable[], assignment: Assigned['assignment'], shares: Shares): string[] {
  const seen = new Set(images.flatMap((i) => (i.label === null ? [] : [`${assignment.get(i.digest)?.pool} ${i.label}`])));
  return shares.flatMap(([pool]) =>
    ([0, 1] as const)
      .filter((label) => !seen.has(`${pool} ${label}`))
      .map(
        (label) =>
          `pool ${pool} has no image of class ${label} (${label === 1 ? 'roadwork' : 'no roadwork'}): too few groups of it; add images from more clips or places`,
      ),
  );
}
