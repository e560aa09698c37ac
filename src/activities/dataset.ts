/** Images and pools: import, rendered scenes, manifests, the snapshot that a model is trained on. */
import { z } from 'zod';
import { decideLabels } from '../domain/consensus.js';
import { Digest, ImageRow, Label, type Pool } from '../domain/contracts/common.js';
import { BadInputError } from '../domain/errors.js';
import { assignPools } from '../domain/pools.js';
import { assertNoLeak, dataSetProvenance } from '../domain/provenance.js';
import { buildSnapshot as domainSnapshot, effectiveLabels, holdBack } from '../domain/snapshot.js';
import { nearDuplicates, readImages, scanDataset, type ReadImage } from '../platform/dataset/index.js';
import type { FlywheelConfig } from '../domain/config.js';
import type { LabelRecord } from '../platform/ports.js';
import { beating, type ActivityDeps } from './deps.js';
import { configOf } from './turns.js';

/** Problems shown in the summary; all of them are in the report object. */
const PROBLEMS_SHOWN = 10;

export interface ImportSummary {
  train: number;
  calibrate: number;
  validate: number;
  test: number;
  traffic: number;
  /** images of the held-out split, on which nothing is tuned: the pool `test` */
  val: number;
  /** exact and perceptual duplicates left out */
  duplicates: number;
  /** rows skipped for a reason of their own */
  skipped: number;
  problems: { file: string; reason: string }[];
  warnings: string[];
  positives: number;
  negatives: number;
  groups: number;
  /** where the images came from */
  from: string;
}

export interface Manifests {
  train: Digest;
  test: Digest;
  traffic: Digest;
}

const RenderedRow = z.object({
  digest: Digest,
  label: Label,
  group: z.string(),
  source: z.string(),
  width: z.number(),
  height: z.number(),
});

/** Photographs and rendered scenes, as opposed to images derived from others. */
export function isOriginal(row: ImageRow): boolean {
  return row.parents.length === 0 && row.truth === 'truth';
}

export function datasetActivities(deps: ActivityDeps) {
  const { catalog, objects } = deps;

  return {
    async importDataset(input: { turn: string; data: string; seed: number }): Promise<ImportSummary> {
      const beat = beating();
      const scan = await scanDataset(input.data);
      const read = await readImages(scan.rows, objects, {
        onProgress: (done, total) => beat({ turn: input.turn, what: 'importing', done, total, unit: 'images' }),
      });
      const near = nearDuplicates(read.images);
      const assigned = await intoPools(near.kept, near.pairs, input.seed);
      const kept = assigned.rows;
      const problems = [...scan.problems, ...read.problems];
      await register(kept, new Map(near.kept.map((image) => [image.digest, image.licence])));
      return summarise(input.data, {
        duplicates: read.exactDuplicates + near.removed + assigned.known,
        problems,
        warnings: [...assigned.warnings],
      });
    },

    async registerRendered(input: { images: Digest; seed: number }): Promise<ImportSummary> {
      const rows = await objects.getJsonl(input.images, (row) => RenderedRow.parse(row));
      const assigned = await intoPools(
        rows.map((r) => ({ ...r, split: null })),
        [],
        input.seed,
      );
      await register(assigned.rows);
      return summarise('rendered scenes', { duplicates: 0, problems: [], warnings: assigned.warnings });
    },

    /** What the catalog holds, when a turn imports nothing new. */
    async describeDataset(): Promise<ImportSummary> {
      return summarise('the catalog', { duplicates: 0, problems: [], warnings: [] });
    },

    async buildManifests(_input: { turn: string }): Promise<Manifests> {
      const all = (await catalog.images()).filter(isOriginal);
      const write = async (pool: Pool): Promise<Digest> => {
        const rows = all.filter((r) => r.pool === pool);
        for (const label of [0, 1] as const) {
          if (!rows.some((r) => r.label === label)) {
            throw new BadInputError(
              `pool ${pool} has no image of class ${label} (${label === 1 ? 'roadwork' : 'no roadwork'}); nothing was trained. Import more images of that class, from more groups (clips or places).`,
            );
          }
        }
        return objects.putJsonl(sorted(rows));
      };
      return { train: await write('train'), test: await write('test'), traffic: await write('traffic') };
    },

    /**
     * The immutable manifest of a training set. `synthetic` null: photographs alone, for the first champion.
     * Photographs of the pool `traffic` stay out: their truth is the validator's; their journaled challenges come in with
     * the labels that consensus or a person gave them. A share of what this turn made is held back for the gate `freshSynthetic`.
     */
    async buildSnapshot(input: { turn: string; config: Digest; synthetic: Digest | null }): Promise<{
      snapshot: Digest;
      real: number;
      derived: number;
      byTruth: Record<string, number>;
      /** manifest of the synthetic images that were held back, labels filled in; null: none were */
      fresh: Digest | null;
      freshCount: number;
    }> {
      const config = await configOf(deps, input.config);
      const all = await catalog.images();
      const byDigest = new Map(all.map((r) => [r.digest, r]));
      const real = all.filter((r) => isOriginal(r) && (r.pool === 'train' || r.pool === 'calibrate' || r.pool === 'validate'));
      const labels = input.synthetic === null ? [] : await catalog.labels();
      const labelled = new Set(labels.map((l) => l.digest));
      const fresh = input.synthetic === null ? [] : await heldBack(input.turn, config, input.synthetic, labels);
      const keptOut = new Set(fresh.map((r) => r.digest));
      const derived =
        input.synthetic === null
          ? []
          : all.filter(
              (r) => !isOriginal(r) && labelled.has(r.digest) && !keptOut.has(r.digest) && (r.pool === 'train' || r.pool === 'traffic'),
            );
      assertNoLeak(derived, (digest) => byDigest.get(digest) ?? null);
      const rows = domainSnapshot({
        real,
        synthetic: derived,
        labels,
        unreviewedWeight: config.labels.unreviewedWeight,
        maxSyntheticShare: config.training.maxSyntheticShare,
      });
      const byTruth: Record<string, number> = {};
      for (const row of rows) byTruth[row.truth] = (byTruth[row.truth] ?? 0) + 1;
      const originals = new Set(real.map((r) => r.digest));
      const realCount = rows.filter((r) => originals.has(r.digest)).length;
      return {
        snapshot: await objects.putJsonl(rows),
        real: realCount,
        derived: rows.length - realCount,
        byTruth,
        fresh: fresh.length > 0 ? await objects.putJsonl(fresh) : null,
        freshCount: fresh.length,
      };
    },
  };

  /**
   * What the turn made and no model of this turn learns from, with labels: a person's, the consensus, or else what the generator
   * meant, with truth `none`. What the voters are sure is not what was meant is left
   * out: it stays a question to a person.
   */
  async function heldBack(turn: string, config: FlywheelConfig, synthetic: Digest, labels: LabelRecord[]): Promise<ImageRow[]> {
    const { freshSynthetic, freshShare, minImages } = config.gates;
    if (freshSynthetic === null) return [];
    const known = effectiveLabels(labels);
    const asked = new Map((await catalog.reviews({ turn })).map((r) => [r.digest, r]));
    const usable = (await objects.getJsonl(synthetic, (row) => ImageRow.parse(row))).flatMap((row): ImageRow[] => {
      const given = known.get(row.digest);
      if (given) return [{ ...row, label: given.label, truth: given.kind }];
      const votes = Object.entries(asked.get(row.digest)?.votes ?? {}).map(([member, p]) => ({ member, p }));
      if (row.intent === null || votes.length < 2) return [];
      const { rejected } = decideLabels([{ digest: row.digest, votes, intent: row.intent }], {
        confidence: config.labels.confidence,
        verifyShare: 0,
        seed: 0,
      });
      return rejected.length > 0 ? [] : [{ ...row, label: row.intent, truth: 'none' }];
    });
    return holdBack(usable, { share: freshShare, least: minImages, seed: `fresh ${config.seed} ${turn}` });
  }

  async function register(rows: ImageRow[], licences: ReadonlyMap<Digest, string | null> = new Map()): Promise<void> {
    await catalog.addImages(rows, deps.clock());
    await catalog.addLabels(
      rows.flatMap((r) =>
        r.label === null
          ? []
          : [
              {
                digest: r.digest,
                label: r.label,
                kind: r.truth,
                provenance: dataSetProvenance(r.source, licences.get(r.digest) ?? null),
                weight: 1,
                at: deps.clock(),
              },
            ],
      ),
    );
  }

  /** New images into pools; images and groups that the catalog knows keep theirs, so that nothing changes sides. */
  async function intoPools(
    images: Pick<ReadImage, 'digest' | 'label' | 'group' | 'source' | 'split' | 'width' | 'height'>[],
    pairs: [Digest, Digest][],
    seed: number,
  ): Promise<{ rows: ImageRow[]; warnings: string[]; known: number }> {
    const before = (await catalog.images()).filter(isOriginal);
    const knownDigests = new Set(before.map((r) => r.digest));
    const poolOfGroup = new Map(before.map((r) => [r.group, r.pool]));
    const fresh = images.filter((i) => !knownDigests.has(i.digest));
    if (fresh.length === 0) return { rows: [], warnings: [], known: images.length };
    const { assignment, warnings, conflicts } = assignPools(fresh, pairs, seed);
    const rows = fresh.map((image): ImageRow => {
      const given = assignment.get(image.digest);
      if (!given) throw new BadInputError(`image ${image.digest} was given no pool`);
      return {
        digest: image.digest,
        label: image.label,
        truth: 'truth',
        pool: poolOfGroup.get(given.group) ?? poolOfGroup.get(image.group) ?? given.pool,
        group: given.group,
        source: image.source,
        parents: [],
        provider: null,
        intent: null,
        weight: 1,
        width: image.width,
        height: image.height,
      };
    });
    return { rows: sorted(rows), warnings: [...warnings, ...conflicts.map((c) => String(c))], known: images.length - fresh.length };
  }

  async function summarise(
    from: string,
    extra: { duplicates: number; problems: { file: string; reason: string }[]; warnings: string[] },
  ): Promise<ImportSummary> {
    const all = (await catalog.images()).filter(isOriginal);
    const count = (pool: Pool) => all.filter((r) => r.pool === pool).length;
    return {
      train: count('train'),
      calibrate: count('calibrate'),
      validate: count('validate'),
      test: count('test'),
      traffic: count('traffic'),
      val: count('test'),
      duplicates: extra.duplicates,
      skipped: extra.problems.length,
      problems: extra.problems.slice(0, PROBLEMS_SHOWN),
      warnings: extra.warnings,
      positives: all.filter((r) => r.label === 1).length,
      negatives: all.filter((r) => r.label === 0).length,
      groups: new Set(all.map((r) => r.group)).size,
      from,
    };
  }
}

/** Manifests are sorted by digest, so that the same content always has the same name. */
export function sorted(rows: ImageRow[]): ImageRow[] {
  return [...rows].sort((a, b) => (a.digest < b.digest ? -1 : a.digest > b.digest ? 1 : 0));
}
