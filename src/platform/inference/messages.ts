/** What parent and inference process say to each other. Structured clone carries typed arrays as they are. */
import type { ImageError, ImageLimits } from './preprocess.js';

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
}
/** A group is answered as a whole and is never split over two batches. */
export type ToChild = StartMessage | { type: 'predict'; id: number; inputs: ModelInput[] };

export type OneResult =
  | {
      ok: true;
      prediction: number;
      votes: Record<string, number>;
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
    }
  | { type: 'failed'; name: string; message: string }
  | { type: 'result'; id: number; results: OneResult[]; batchMs: number; batchSize: number };
