/** What parent and inference process say to each other. Structured clone carries typed arrays as they are. */
import type { ImageError, ImageLimits } from './preprocess.js';
import type { Provider } from './providers.js';

/** An encoded image, or a tensor [3, size, size] already preprocessed (every member must then have that size). */
export type ModelInput = Uint8Array | { tensor: Float32Array };

export interface StartMessage {
  type: 'start';
  bundleDir: string;
  /** digest of bundle.json, verified; null: as the folder's name says */
  digest: string | null;
  threads: number;
  /** images a batch at most, where batches pay */
  maxBatch: number;
  /** added niceness, 0 to 19 */
  nice: number;
  limits: ImageLimits;
  /** execution providers in the order of preference */
  providers: Provider[];
  /** GPU of this process; of no meaning on the CPU */
  deviceId: number;
  /** augmentation and waiting for company may make an answer take so long, and no longer, ms; null: however long */
  budgetMs: number | null;
  /** every member must answer: for figures, where an ensemble without one of its members would be another model */
  strict: boolean;
}

/** What the sender knows of the moment. */
export interface Urgency {
  /** when the answer is of no use any more: ms of the system's monotonic clock, see `monotonicMs`; null: never */
  deadline: number | null;
  /** images that wait with the sender, for this process or another */
  behind: number;
  /** mean time between requests lately, ms; null: unknown */
  interarrivalMs: number | null;
}

/** The system's monotonic clock, ms: the same in every process of a machine, unlike `performance.now()`. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

/** A group is answered as a whole and is never split over two batches. */
export type ToChild = StartMessage | { type: 'predict'; id: number; inputs: ModelInput[]; urgency?: Urgency };

/** `failed`: it threw, or gave no number; `late`: its run would have passed the deadline. */
export interface LeftOut {
  member: string;
  reason: 'failed' | 'late';
}

export type OneResult =
  | {
      ok: true;
      prediction: number;
      votes: Record<string, number>;
      /** members that the vote had to do without, and why; empty: none */
      leftOut: LeftOut[];
      /** whether the mirrored view was run as well */
      augmented: boolean;
      /** decoding of this image plus its share of the batch's preprocessing and inference, ms */
      ms: number;
    }
  | { ok: false; kind: ImageError['kind'] | 'model'; message: string };

export type FromChild =
  | {
      type: 'ready';
      members: string[];
      /** inference of one image alone, ms */
      perImageMs: number;
      /** images a batch at most: `maxBatch` where the warm-up found that a batch pays, else 1 */
      batchLimit: number;
      /** what runs the sessions */
      provider: Provider;
      /** providers that were wanted and are not there, and why */
      passedOver: { provider: Provider; reason: string }[];
      /** resident memory after the warm-up, bytes */
      rssBytes: number;
    }
  | { type: 'failed'; name: string; message: string }
  /** `batchMs` is without augmentation: what the next batch will take at least */
  | { type: 'result'; id: number; results: OneResult[]; batchMs: number; batchSize: number };
