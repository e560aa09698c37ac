/** The model bundle: a directory (or the same files as objects) whose `bundle.json` names every file and its digest. */
import { z } from 'zod';
import { Digest, Features, GateResult, LossLimit, Metrics, Precision, Preprocess } from './common.js';

const FileRef = z.object({
  /** path inside the bundle directory; no `..`, not absolute */
  path: z.string().regex(/^(?!\/)(?!.*\.\.)[A-Za-z0-9._/-]+$/),
  sha256: Digest,
  bytes: z.number().int().min(0),
});

/** One way a member's graph was exported, measured on the exporting machine with the miner's number of threads. */
export const ExportVariant = z.object({
  precision: Precision,
  /** onnxruntime's execution provider it was timed on */
  provider: z.string(),
  /** of the graph and its external data */
  bytes: z.number().int(),
  /** median time of one image, ms; null: not timed */
  ms: z.number().nullable(),
  /** largest difference of probability to PyTorch on the parity images */
  maxAbsDp: z.number(),
  /** what it costs on labelled images against fp32 (negative: it is better); null: not measured */
  loss: z
    .object({
      n: z.number().int(),
      accuracy: z.number(),
      /** of the predicted reward */
      reward: z.number(),
    })
    .nullable(),
  chosen: z.boolean(),
  /** why it may not be served; null: it may */
  refused: z.string().nullable(),
  /** layers that stay in float32 because int8 lost too much with them; absent: none but those that always do */
  keptFloat: z.number().int().positive().optional(),
});
export type ExportVariant = z.infer<typeof ExportVariant>;

export const BundleMember = z.object({
  name: z.string(),
  backbone: z.string(),
  features: Features,
  /** share in the soft vote; the members' weights sum to 1 */
  weight: z.number().min(0).max(1),
  /** input `input` float32 [n, 3, size, size], n dynamic; output `logit` float32 [n] */
  onnx: FileRef,
  /** weights outside the graph, of models above 2 GB; lies beside the graph under the name that the graph says */
  onnxData: FileRef.optional(),
  safetensors: FileRef,
  /** of `onnx`; absent: fp32 */
  precision: Precision.optional(),
  /** ONNX operator set of the graph */
  opset: z.number().int().optional(),
  /** what was exported and measured to choose from; absent in older bundles */
  variants: z.array(ExportVariant).optional(),
  preprocess: Preprocess,
  parameters: z.number().int(),
});
export type BundleMember = z.infer<typeof BundleMember>;

/** Every file of a member: its graph, the weights outside it if any, and the safetensors. */
export function memberFiles(member: Pick<BundleMember, 'onnx' | 'onnxData' | 'safetensors'>): z.infer<typeof FileRef>[] {
  return [member.onnx, ...(member.onnxData ? [member.onnxData] : []), member.safetensors];
}

/** Bytes that serving a member takes from the disk. */
export function graphBytes(member: Pick<BundleMember, 'onnx' | 'onnxData'>): number {
  return member.onnx.bytes + (member.onnxData?.bytes ?? 0);
}

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
  /** how the precisions were chosen */
  export: z
    .object({
      precision: z.enum(['auto', 'fp32', 'fp16', 'int8']),
      threads: z.number().int().positive(),
      limits: z.object({ fp16: LossLimit, int8: LossLimit }),
      /** of the whole ensemble as it is served, against all members in fp32; null: all are fp32 */
      loss: z.object({ n: z.number().int(), accuracy: z.number(), reward: z.number() }).nullable(),
    })
    .optional(),
  /** what was known at export: validation. Held-out and fresh synthetic images are measured by the turn's gate and stand in the catalog, since a bundle never changes */
  gates: z.array(GateResult).optional(),
  environment: z.record(z.string(), z.string()),
});
export type Bundle = z.infer<typeof Bundle>;
