/** Jobs on a trained ensemble: export, evaluate. */
import { z } from 'zod';
import { ExportVariant } from '../bundle.js';
import { Digest, GateResult, GateThresholds, LossLimit, Metrics, Precision } from '../common.js';

/** What may be exported besides fp32, and at what price. */
export const ExportOptions = {
  limits: z
    .object({
      fp16: LossLimit.prefault({ accuracy: 0.005, reward: 0.01 }),
      int8: LossLimit.prefault({ accuracy: 0.01, reward: 0.02 }),
    })
    .prefault({}),
  /** a precision below fp32 must be faster by this factor to be worth its loss */
  minSpeedUp: z.number().min(1).default(1.1),
  /** `auto`: engines are built and compared where onnxruntime has the provider and a GPU is there; `never`; `always`: fails without */
  tensorrt: z.enum(['auto', 'never', 'always']).default('auto'),
};

export const ExportInput = z.object({
  trained: Digest,
  /** name of the model, e.g. `demo-20261124-1` */
  name: z.string(),
  snapshot: Digest,
  parent: Digest.nullable(),
  /** images for the parity check */
  parity: Digest,
  parityImages: z.number().int().positive(),
  /** largest allowed difference of probability between PyTorch and ONNX */
  parityTolerance: z.number().positive(),
  seed: z.number().int().min(0),
  /** `auto`: of what loses no more than its limit, what serves fastest; a fixed one that loses more is refused */
  precision: z.enum(['auto', 'fp32', 'fp16', 'int8']).default('fp32'),
  ...ExportOptions,
  /** real images of the snapshot's pools `train` and `calibrate` that the ranges of int8 are taken from */
  calibrationImages: z.number().int().positive().default(48),
  /** labelled images of `validate` and `calibrate` (not among those) that losses are measured on, each as it is and as challenges */
  lossImages: z.number().int().positive().default(128),
  /** threads of the miner's inference process, which speeds are measured with; null: the job's own */
  servingThreads: z.number().int().positive().nullable().default(null),
  gates: GateThresholds.prefault({}),
});
export const ExportOutput = z.object({
  /** SHA-256 of bundle.json, which is itself an object, as is every file it names */
  bundle: Digest,
  bytes: z.number().int(),
  parity: z.object({ n: z.number().int(), maxAbsDp: z.number() }),
  members: z.array(z.object({ name: z.string(), precision: Precision, variants: z.array(ExportVariant) })).optional(),
  gates: z.array(GateResult).optional(),
});

/** A bundle or a trained ensemble over a manifest or a challenge set, in Python: an independent check of the production path. */
export const EvaluateInput = z.object({
  /** JSON Lines with digest, label, group and source: an image manifest or a challenge set. Test images may be judged */
  manifest: Digest,
  /** one of the two */
  bundle: Digest.nullable().default(null),
  trained: Digest.nullable().default(null),
  resamples: z.number().int().positive().default(1000),
  seed: z.number().int().min(0).default(0),
});
export const EvaluatedFigure = Metrics.extend({
  /** `overall`, or the source */
  of: z.string(),
  /** 95% percentile interval of the accuracy, bootstrap over groups */
  ci95: z.tuple([z.number(), z.number()]),
  groups: z.number().int(),
  positives: z.number().int(),
});
export const EvaluateOutput = z.object({
  /** JSON Lines of {digest, prediction, votes}, an answered image each, in the manifest's order */
  predictions: Digest,
  /** null: no image has a label */
  metrics: Metrics.nullable(),
  figures: z.array(EvaluatedFigure),
  /** expected reward of a miner with these error rates, profile 2026-01; null: a class is missing */
  predictedReward: z.number().nullable(),
  n: z.number().int(),
  failed: z.array(z.object({ digest: Digest, reason: z.string() })),
});
