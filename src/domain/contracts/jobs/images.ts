/** Jobs that make, pack and check images: challenges, render, synthesize, pack, import-check. */
import { z } from 'zod';
import { PROFILE_NAMES } from '../../profiles/index.js';
import { Digest, Label } from '../common.js';

/** Seeded and pure: the same manifest, profile, count and seed give the same challenge set digest. */
export const ChallengesInput = z.object({
  /** manifest of source images; rows without a label serve only in mode `variants` */
  manifest: Digest,
  /** its rules are read from `schema/profiles.json`, which is written from the profiles here */
  profile: z.enum(PROFILE_NAMES),
  /** `draw`: label first, then kind of source, then an image, then a level, as the profile says. `variants`: `count` augmented views of every image, at levels 1-3, to measure instability */
  mode: z.enum(['draw', 'variants']),
  count: z.number().int().positive(),
  seed: z.number().int().min(0),
  /** the validator's code lists flips that never fire; keep off to match it */
  flips: z.boolean().default(false),
});
/** One challenge of a set (a JSON Lines object): a JPEG of quality 75, 224 x 224 or of any size as the profile says. */
export const ChallengeRow = z.object({
  digest: Digest,
  label: Label.nullable(),
  /** the source image */
  parent: Digest,
  group: z.string(),
  source: z.string(),
  pool: z.enum(['train', 'calibrate', 'validate', 'test', 'traffic']),
  truth: z.enum(['truth', 'verified', 'consensus', 'none']),
  level: z.number().int().min(0).max(3),
  synthetic: z.boolean(),
  /** generator family that made the source image; null for a photograph */
  provider: z.string().nullable().default(null),
  /** bundles whose votes are behind a consensus label: they are never judged by it */
  labelledBy: z.array(z.string()).default([]),
});
export type ChallengeRow = z.infer<typeof ChallengeRow>;
export const ChallengesOutput = z.object({
  /** JSON Lines of ChallengeRow, in the order they are to be sent */
  set: Digest,
  count: z.number().int(),
  byLevel: z.record(z.string(), z.number().int()),
  /** challenges by kind of source: real, synthetic, benchmark */
  byKind: z.record(z.string(), z.number().int()).optional(),
});

/** Whole rendered street scenes with exact labels, for a machine with no photographs, and for tests. */
export const RenderInput = z.object({
  count: z.number().int().positive(),
  seed: z.number().int().min(0),
  /** scenes a group: variants of one street */
  perGroup: z.number().int().positive().default(1),
  width: z.number().int().positive().default(400),
  height: z.number().int().positive().default(300),
});
/** Rows carry no pool yet: the import assigns it. */
export const RenderOutput = z.object({
  /** JSON Lines of {digest, label, group, source, width, height} */
  images: Digest,
  count: z.number().int(),
});

export const SynthesizeInput = z.object({
  /** manifest of the hard cases. `label` null: of unknown truth */
  failures: Digest,
  /** manifest of labelled images that may serve as backgrounds and neighbours; a `test` row is refused */
  corpus: Digest,
  /** output of the neighbours job */
  neighbours: Digest,
  /** images made for each failure, 5 to 10 */
  perFailure: z.number().int().min(1).max(50),
  maxImages: z.number().int().positive(),
  providers: z.array(z.enum(['composite', 'weather'])).min(1),
  seed: z.number().int().min(0),
});
export const SynthesizeOutput = z.object({
  /** manifest of ImageRow: provider, intent, parents set; label null; truth `none` */
  manifest: Digest,
  count: z.number().int(),
  byProvider: z.record(z.string(), z.number().int()),
  byIntent: z.record(z.string(), z.number().int()),
  /** planned images that could not be made, each with its reason */
  skipped: z.array(z.object({ parent: Digest, reason: z.string() })),
});

/** Images into tar shards with an index: for sets so large that a file an image is slow. */
export const PackInput = z.object({
  manifest: Digest,
  maxShardBytes: z.number().int().positive().default(256_000_000),
});
export const PackOutput = z.object({
  /** JSON of {format, shards: [{tar, bytes, images}]}; a shard's own list is in its tar's index object */
  index: Digest,
  shards: z.number().int(),
  images: z.number().int(),
  bytes: z.number().int(),
});

/** Decodes every image of a manifest or a folder and tells what training or the miner would stumble over. Nothing is changed. */
export const ImportCheckInput = z.object({
  /** one of the two */
  manifest: Digest.nullable().default(null),
  folder: z.string().nullable().default(null),
  maxBytes: z.number().int().positive().default(12_582_912),
  maxPixels: z.number().int().positive().default(50_000_000),
  /** shorter side below this is reported, pixels */
  minSide: z.number().int().positive().default(64),
  /** largest distance of two 64-bit difference hashes that counts as a near-duplicate; null: not looked for */
  nearDuplicates: z.number().int().min(0).max(16).nullable().default(4),
});
export const ImportFinding = z.object({
  /** digest, or path below the folder */
  image: z.string(),
  kind: z.enum([
    'missing',
    'corrupt',
    'unsupported-format',
    'odd-mode',
    'too-small',
    'too-large',
    'wrong-size',
    'duplicate',
    'near-duplicate',
    'label-conflict',
    'leak',
  ]),
  /** whether the image is of no use as it is */
  unusable: z.boolean(),
  message: z.string(),
  /** the other image of a pair */
  other: z.string().nullable(),
});
export const ImportCheckOutput = z.object({
  /** JSON Lines of every finding */
  findings: Digest,
  checked: z.number().int(),
  usable: z.number().int(),
  byKind: z.record(z.string(), z.number().int()),
  byFormat: z.record(z.string(), z.number().int()),
  /** the first of them, for a summary */
  first: z.array(ImportFinding).max(20),
});
