/**
 * Configuration: one zod schema, presets in `presets/*.json`, an operator's file merged over one of them.
 * Pure: reading files is the platform's business (`src/platform/config.ts`).
 */
import { z } from 'zod';
import {
  AugmentationOptions,
  ExportOptions,
  FineTuneOptions,
  HeadOptions,
  IncrementalOptions,
  LoaderOptions,
  MemberSpec,
  SamplingOptions,
} from './contracts/jobs.js';
import { GateSettings } from './gates.js';
import { PROFILE_NAMES } from './profiles/index.js';

const seconds = z.number().min(0);

export const FlywheelConfig = z
  .object({
    preset: z.string(),
    /** 72 on the main network, 323 on the test network */
    netuid: z.number().int(),
    /** validator profile that challenges and rewards follow */
    profile: z.enum(PROFILE_NAMES),
    /** seed of everything random; the same seed and data give the same turn */
    seed: z.number().int().min(0),
    /** decay policy preset of the reward by a model's age, see domain/decay */
    decay: z.enum(['plan-90-180', 'docs-45-90']),
    schedule: z.object({
      /** cron of the daily turn, host's local time unless `timezone` is given */
      cron: z.string(),
      timezone: z.string(),
    }),
    /** scenes rendered when there is no data set at all */
    render: z.object({ scenes: z.number().int().positive(), perGroup: z.number().int().positive() }),
    traffic: z.object({
      /** challenges the built-in validator sends in a turn while no real validator comes */
      challenges: z.number().int().positive(),
      concurrency: z.number().int().positive(),
      /** the validator's own time-out, s */
      timeoutSeconds: seconds,
    }),
    hardCases: z.object({
      /** a failure: |prediction - truth| above this */
      errorThreshold: z.number().min(0).max(1),
      neighbours: z.number().int().positive(),
      /** most failures synthesised from in a turn, hardest first */
      maxFailures: z.number().int().positive(),
      /** augmented views of each journaled image to measure instability */
      views: z.number().int().min(1),
      /** hardness without truth at or above this counts as a hard case, [0, 1] */
      hardnessThreshold: z.number().min(0).max(1),
      /** more new hard cases than this start the retrain */
      retrainAbove: z.number().int().min(0),
    }),
    synthesis: z.object({
      perFailure: z.number().int().min(5).max(10),
      maxImages: z.number().int().positive(),
      providers: z.array(z.enum(['composite', 'weather'])).min(1),
    }),
    labels: z.object({
      /** both members above this confidence */
      confidence: z.number().min(0.5).max(1),
      /** share that a person is asked to verify, [0, 1] */
      verifyShare: z.number().min(0).max(1),
      /** how long a turn waits for the person, s; then it goes on with what it has */
      reviewTimeoutSeconds: seconds,
      unreviewedWeight: z.number().positive().max(1),
    }),
    training: z.object({
      members: z.array(MemberSpec).min(2),
      views: z.number().int().min(0),
      folds: z.number().int().min(2),
      maxSyntheticShare: z.number().min(0).max(1),
      fineTune: FineTuneOptions,
      /** these and their defaults: see the train job's contract */
      head: HeadOptions.prefault({}),
      sampling: SamplingOptions.prefault({}),
      augmentation: AugmentationOptions.prefault({}),
      loader: LoaderOptions.prefault({}),
      incremental: IncrementalOptions.prefault({}),
    }),
    gate: z.object({
      challenges: z.number().int().positive(),
      resamples: z.number().int().positive(),
      /** a candidate whose own p99 per image is slower than this is refused, ms */
      maxLatencyP99Ms: z.number().positive(),
      maxBundleBytes: z.number().positive(),
    }),
    /** how the champion's graphs are exported, see the export job's contract */
    export: z.object({ precision: z.enum(['auto', 'fp32', 'fp16', 'int8']).default('fp32'), ...ExportOptions }).prefault({}),
    /** least accuracies, and what follows from a missed one */
    gates: GateSettings.prefault({}),
    verdict: z.object({
      /** the estimate must exceed this, in accuracy (0.01 = one percentage point) */
      marginAccuracy: z.number().min(0),
      /** one-sided error probability of all promotions of a quarter together: spent over candidates and looks, see domain/spending */
      alpha: z.number().min(0).max(0.5),
      /** fewer independent groups a class than this never promote by themselves */
      minGroupsPerClass: z.number().int().positive(),
      /** what the margin and the lower bound are taken in; the other must not point the other way */
      measure: z.enum(['accuracy', 'predicted reward']).default('accuracy'),
      /** candidates expected in a quarter (90 days); each gets its part of alpha */
      candidates: z.number().int().positive().default(60),
      /** true difference in accuracy that a trial is planned to find with 90% power: all of its alpha is spent when the evidence suffices for it */
      planDifference: z.number().positive().max(1).default(0.02),
      /** whether consensus labels alone may promote; they can always veto */
      consensusPromotes: z.boolean().default(false),
      /** a candidate whose Brier score, or expected calibration error, is worse than the champion's by more is not promoted */
      maxBrierIncrease: z.number().min(0).max(1).default(0.02),
      maxCalibrationErrorIncrease: z.number().min(0).max(1).default(0.05),
      /** the held-out pool is judged in rotating parts of at least so many groups a class; a smaller pool is not divided */
      rotateGroupsPerClass: z.number().int().positive().default(1000),
    }),
    trial: z.object({
      /** share of live traffic that also runs on the candidate */
      share: z.number().min(0).max(1),
      /** time between two looks, s */
      lookEverySeconds: seconds,
      /** looks at most; then the champion is kept */
      maxDays: z.number().positive(),
      minShadowAnswers: z.number().int().positive(),
      /** a candidate with a larger share of errors in the shadow is vetoed */
      maxErrorShare: z.number().min(0).max(1),
      /** challenges of the accelerated, simulated trial under --once */
      simulatedChallenges: z.number().int().positive(),
    }),
    miner: z.object({
      host: z.string(),
      port: z.number().int().min(0).max(65535),
      /** inference processes; 0: derived from the cores */
      processes: z.number().int().min(0),
      /** threads a process; 0: derived */
      threads: z.number().int().min(0),
      /** execution providers in the order of preference; those that are not there are passed over, `cpu` is always the last resort */
      providers: z.array(z.enum(['tensorrt', 'cuda', 'cpu'])).default(['tensorrt', 'cuda', 'cpu']),
      /** keep the previous champion loaded when memory allows, so that a rollback is immediate */
      keepPrevious: z.boolean().default(true),
      /** an answer should not take longer than this because of test-time augmentation or waiting for company in a batch, ms */
      latencyBudgetMs: z.number().positive().default(300),
      journalMaxBytes: z.number().positive(),
      /** closed journal segments older than this are deleted, days */
      journalMaxAgeDays: z.number().positive().default(30),
      /** when journal lines and images are forced to the disk: with every batch, once a second, or as the system likes */
      journalSync: z.enum(['always', 'interval', 'never']).default('interval'),
      /** validators with less stake than this are refused, in the unit of the metagraph */
      minStake: z.number().min(0).default(0),
      /** requests of one hotkey: so many a second for ever, and so many at once */
      rate: z.object({ perSecond: z.number().positive(), burst: z.number().int().min(1) }).default({ perSecond: 500, burst: 2000 }),
    }),
    /** the subtensor that `--metagraph chain` reads and advertises to */
    chain: z
      .object({
        /** `wss://` or `ws://` address of a node; FLYWHEEL_CHAIN_ENDPOINT overrides it */
        endpoint: z.string().regex(/^wss?:\/\/[^\s]+$/, 'expected ws:// or wss:// and a host'),
        /** time between two readings of the metagraph, s; a block takes 12 */
        refreshSeconds: z.number().min(12),
        /** the miner takes its metagraph from here rather than from a file; `--metagraph chain` says the same */
        follow: z.boolean().default(false),
        /** public address that the chain is to send validators to; empty: nothing is advertised */
        externalIp: z.string().default(''),
        /** port there; 0: the miner's own */
        externalPort: z.number().int().min(0).max(65535).default(0),
      })
      .default({
        endpoint: 'wss://entrypoint-finney.opentensor.ai:443',
        refreshSeconds: 300,
        follow: false,
        externalIp: '',
        externalPort: 0,
      }),
    gpu: z.object({
      backend: z.literal('local'),
      /** compute threads of a local job; 0: all cores but one, at least 1 */
      threads: z.number().int().min(0),
      /** niceness of local jobs, so that the miner answers first */
      nice: z.number().int().min(0).max(19),
      /** month's budget in cents; a launch that does not fit is refused before it is bought */
      monthlyBudgetCents: z.number().int().min(0),
      maxJobSeconds: z.number().positive(),
    }),
  })
  .strict();
export type FlywheelConfig = z.infer<typeof FlywheelConfig>;
