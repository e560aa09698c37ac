/**
 * Contracts: the shapes that cross a process or a language border, written once in zod.
 * JSON Schemas for the Python jobs are generated from here (`npm run schemas`); a test fails when they drift.
 * Nothing here does I/O.
 */
import { z } from 'zod';

/** SHA-256 in lower-case hex (64 characters): the name of every object in the store. */
export const Digest = z.string().regex(/^[0-9a-f]{64}$/, 'a SHA-256 digest in lower-case hex');
export type Digest = z.infer<typeof Digest>;

/**
 * Pools keep evidence apart from what is learned. `test` is never mined, synthesised from,
 * used to fit a threshold or to choose weights.
 */
export const POOLS = ['train', 'calibrate', 'validate', 'test', 'traffic'] as const;
export const Pool = z.enum(POOLS);
export type Pool = z.infer<typeof Pool>;

/**
 * What stands behind a label: `truth` (a labelled data set or a renderer), `verified` (a person),
 * `consensus` (models agree), `none`. Metrics never mix kinds silently.
 */
export const TruthKind = z.enum(['truth', 'verified', 'consensus', 'none']);
export type TruthKind = z.infer<typeof TruthKind>;

/** 1 = roadwork, 0 = ordinary street. */
export const Label = z.union([z.literal(0), z.literal(1)]);
export type Label = z.infer<typeof Label>;

/** Accuracy, MCC and Brier score at boundary 0.5 (0.5 itself counts as 0, as the validator rounds). */
export const Metrics = z.object({
  /** share of right answers, [0, 1] */
  accuracy: z.number().min(0).max(1),
  /** Matthews correlation, [-1, 1]; 0 when labels or predictions are all of one class */
  mcc: z.number().min(-1).max(1),
  /** mean squared error of the probability, [0, 1] */
  brier: z.number().min(0).max(1),
  /** images measured */
  n: z.number().int().min(0),
  /** of these, with roadwork; absent in what an older version measured */
  positives: z.number().int().min(0).optional(),
  /** mean of the shares of right answers with and without roadwork, since validators draw labels evenly; null: a class is missing */
  balanced: z.number().min(0).max(1).nullable().optional(),
});
export type Metrics = z.infer<typeof Metrics>;

/** Number format of an exported graph's inside; input and output are float32 whichever it is. */
export const Precision = z.enum(['fp32', 'fp16', 'int8']);
export type Precision = z.infer<typeof Precision>;

/** What a precision may cost against fp32 on labelled images; above either the variant is refused. Shares, not per cent. */
export const LossLimit = z.object({
  accuracy: z.number().min(0).max(1),
  /** of the predicted reward, itself in [0, 1] */
  reward: z.number().min(0).max(1),
});

/** Least accuracy of a model on its validation images, on held-out photographs, and on synthetic images made after it; null: no such gate. */
export const GateThresholds = z.object({
  validation: z.number().min(0).max(1).nullable().default(0.92),
  heldOut: z.number().min(0).max(1).nullable().default(0.94),
  freshSynthetic: z.number().min(0).max(1).nullable().default(0.85),
});
export type GateThresholds = z.infer<typeof GateThresholds>;

export const GateResult = z.object({
  gate: z.enum(['validation', 'heldOut', 'freshSynthetic']),
  threshold: z.number().min(0).max(1),
  /** accuracy; null: not measured (yet) */
  value: z.number().min(0).max(1).nullable(),
  /** images measured */
  n: z.number().int().min(0),
  /** as in Metrics: the threshold holds for this as well, or a model that always says no would pass on a set of ordinary streets */
  positives: z.number().int().min(0).optional(),
  balanced: z.number().min(0).max(1).nullable().optional(),
  /** null: not measured, or on too few images, of a class or in all, to say */
  passed: z.boolean().nullable(),
  /** fewer images than this say nothing; absent: none were asked for */
  minImages: z.number().int().positive().optional(),
  /** by what stands behind the labels; images with nothing but the generator's intent (none) are not in `value` and `n` */
  byTruth: z.partialRecord(TruthKind, z.object({ accuracy: z.number().min(0).max(1), n: z.number().int().min(0) })).optional(),
});
export type GateResult = z.infer<typeof GateResult>;

/**
 * One image of a manifest. A manifest is an immutable JSON Lines object in the store, one row an image,
 * sorted by digest, so that the same content always has the same digest.
 */
export const ImageRow = z.object({
  digest: Digest,
  label: Label.nullable(),
  truth: TruthKind,
  pool: Pool,
  /** all frames of a clip and all near-duplicates share a group; pools and bootstraps never split one */
  group: z.string().min(1),
  /** where the photograph came from (a data set, a camera, a renderer), for figures by source */
  source: z.string(),
  /** digests of the images this one is made from; empty for a photograph. A derived image inherits their pool and group */
  parents: z.array(Digest).default([]),
  /** which generator made it; null for a photograph */
  provider: z.string().nullable().default(null),
  /** what the generator meant to make: a vote of the label consensus, never the truth by itself */
  intent: Label.nullable().default(null),
  /** the same picture made with the other intent: same background, places, light and camera. The label job votes on the pair */
  twin: Digest.nullable().optional(),
  /** weight in the training loss, > 0; unreviewed consensus labels weigh less */
  weight: z.number().positive().default(1),
  width: z.number().int().positive(),
  height: z.number().int().positive(),
});
export type ImageRow = z.infer<typeof ImageRow>;

/**
 * What a head sees of its backbone. `final`: the pooled last features. `mid`: mean and deviation of mid-level maps (texture and small
 * objects rather than the scene), which errs differently. `both`: the two side by side.
 */
export const Features = z.enum(['final', 'mid', 'both']);
export type Features = z.infer<typeof Features>;

/** How a member turns a decoded RGB image into its input tensor. The same for training, evaluation and serving. */
export const Preprocess = z.object({
  /** side of the square input, pixels */
  size: z.number().int().positive(),
  /** centre crop to the short side, then resize: what the validator's own level 0 does */
  crop: z.literal('center-square'),
  interpolation: z.enum(['bilinear', 'bicubic']),
  /** per channel, of values scaled to [0, 1] */
  mean: z.tuple([z.number(), z.number(), z.number()]),
  std: z.tuple([z.number(), z.number(), z.number()]),
});
export type Preprocess = z.infer<typeof Preprocess>;
