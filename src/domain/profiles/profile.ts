/**
 * Validator profiles: what a version of the subnet's validator does, as data. One file a version; a rule that changes
 * is a new profile, never an edit of a constant elsewhere. No logic here: `reward.ts` computes, the jobs draw images (they
 * read this very data, written out as `gpu-jobs/flywheel_jobs/schema/profiles.json`).
 */

/** One distortion: the order it comes in, and its parameter by level 1..5, mildest first. */
export interface Distortion {
  name: 'CS' | 'CC' | 'JPEG' | 'GNC' | 'GB';
  what: string;
  parameters: readonly [number, number, number, number, number];
}

/** What a challenge of one level goes through. */
export interface AugmentationLevel {
  level: 0 | 1 | 2 | 3;
  probability: number;
  /** `none`: the image as it is, of any size */
  geometry: 'none' | 'centre-crop' | 'rotate-and-crop';
  /** names of distortions, in order */
  distortions: readonly Distortion['name'][];
  /** each distortion draws its level uniformly from 0 (none) to this */
  maxDistortionLevel: 0 | 1 | 2;
}

export interface ValidatorProfile {
  name: string;
  /** how the label and then the image are drawn; shares sum to 1. `benchmark`: labelled tasks that a proxy hands out */
  draw: {
    positiveShare: number;
    sources: { real: number; textToImage: number; imageToImage: number; benchmark: number };
  };
  image: {
    /** side of the square challenge image, pixels; null: images keep the size they have */
    side: number | null;
    /** JPEG quality (Pillow's default) */
    jpegQuality: number;
    /** rotation is uniform in plus or minus this, degrees */
    maxRotationDegrees: number;
    /** area scale of the random crop, ratio 1 */
    cropArea: readonly [number, number];
    /** listed in the validator's code but never fired: their parameters start empty */
    flips: boolean;
    levels: readonly AugmentationLevel[];
    distortions: readonly Distortion[];
  };
  /** tasks without a truth: the label is the rounded mean of the sampled miners' predictions, scored like any other; null: none */
  organic: { share: number } | null;
  reward: {
    /** newest answers that MCC is taken over, and their weight in the sum */
    mcc: { window: number; weight: number };
    accuracy: { window: number; weight: number };
    /** the weighted sum is raised to this power */
    exponent: number;
    /** share of the new reward in the moving average */
    alpha: number;
  };
  /** s; an answer later than this counts as none */
  timeoutSeconds: number;
  /** miners asked in a step */
  minersPerStep: number;
  /** s between two steps of one validator; null where the profile does not say */
  stepSeconds: number | null;
  /** challenges a miner gets in a day from one validator; null where the profile does not say */
  challengesPerDay: number | null;
}
