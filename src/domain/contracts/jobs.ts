/**
 * The job contract: `flywheel-job run SPEC.json`. The spec and the result are JSON; progress goes to standard
 * output as JSON lines and to `<workDir>/progress.jsonl`; the result to `<workDir>/result.json` (written whole,
 * by rename). Jobs are idempotent and resumable: a job started again with the same spec in the same workDir goes
 * on from its last checkpoint, and gives the same result.
 */
import { z } from 'zod';
import { Preprocess } from './common.js';
import { EvaluateInput, EvaluateOutput, ExportInput, ExportOutput } from './jobs/export.js';
import { JobErrorKind, JobFailureReason, MAX_BATCH_DIVISOR } from './jobs/failures.js';
import { EmbedInput, EmbedOutput, LabelInput, LabelOutput, NeighboursInput, NeighboursOutput } from './jobs/features.js';
import {
  ChallengesInput,
  ChallengesOutput,
  ImportCheckInput,
  ImportCheckOutput,
  PackInput,
  PackOutput,
  RenderInput,
  RenderOutput,
  SynthesizeInput,
  SynthesizeOutput,
} from './jobs/images.js';
import { TrainInput, TrainOutput } from './jobs/training.js';

export * from './jobs/export.js';
export * from './jobs/failures.js';
export * from './jobs/features.js';
export * from './jobs/images.js';
export * from './jobs/training.js';

export const JOB_CONTRACT_VERSION = 1;

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
