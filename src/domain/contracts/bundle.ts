/** The model bundle: a directory (or the same files as objects) whose `bundle.json` names every file and its digest. */
import { z } from 'zod';
import { Digest, Metrics, Preprocess } from './common.js';

const FileRef = z.object({
  /** path inside the bundle directory; no `..`, not absolute */
  path: z.string().regex(/^(?!\/)(?!.*\.\.)[A-Za-z0-9._/-]+$/),
  sha256: Digest,
  bytes: z.number().int().min(0),
});

export const BundleMember = z.object({
  name: z.string(),
  backbone: z.string(),
  features: z.enum(['final', 'mid']),
  /** share in the soft vote; the members' weights sum to 1 */
  weight: z.number().min(0).max(1),
  /** input `input` float32 [n, 3, size, size], n dynamic; output `logit` float32 [n] */
  onnx: FileRef,
  safetensors: FileRef,
  preprocess: Preprocess,
  parameters: z.number().int(),
});
export type BundleMember = z.infer<typeof BundleMember>;

/**
 * p = sigmoid(a * logit(sum_i weight_i * sigmoid(logit_i)) + b), the soft vote clamped to [1e-6, 1 - 1e-6] first.
 * a and b are fitted on the `calibrate` pool so that 0.5 is the boundary on the wire. Kind `temperature` has no shift but that
 * of the threshold; `none` is a = 1, b = 0.
 */
export const Calibration = z.object({
  kind: z.enum(['none', 'platt', 'temperature']),
  a: z.number(),
  b: z.number(),
  /** images it was fitted on */
  n: z.number().int(),
  /** boundary that was best before it was moved to 0.5 (it is in `b` already); absent or 0.5: not moved */
  threshold: z.number().min(0).max(1).optional(),
});
export type Calibration = z.infer<typeof Calibration>;

export const Bundle = z.object({
  format: z.literal('streetvision-bundle/1'),
  name: z.string(),
  members: z.array(BundleMember).min(1),
  calibration: Calibration,
  /** test-time augmentation while the latency budget allows; absent: none. `flip`: each member also sees the mirrored image, its two probabilities are averaged */
  tta: z.object({ flip: z.boolean() }).optional(),
  training: z.object({
    snapshot: Digest,
    /** the `trained` object, from which an incremental retrain goes on */
    trained: Digest,
    parent: Digest.nullable(),
    seed: z.number().int(),
  }),
  metrics: z.object({ validate: Metrics, errorCorrelation: z.number() }),
  parity: z.object({ n: z.number().int(), maxAbsDp: z.number() }),
  environment: z.record(z.string(), z.string()),
});
export type Bundle = z.infer<typeof Bundle>;
