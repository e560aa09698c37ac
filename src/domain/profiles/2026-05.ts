/**
 * Profile `2026-05`: the newer upstream history, May 2026. A third each of synthetic, real and labelled benchmark tasks,
 * sent as they are; organic tasks are scored by consensus; the reward is that of `2026-01`.
 */
import { profile202601 } from './2026-01.js';
import type { ValidatorProfile } from './profile.js';

export const profile202605: ValidatorProfile = {
  name: '2026-05',
  draw: { positiveShare: 0.5, sources: { real: 1 / 3, textToImage: 1 / 6, imageToImage: 1 / 6, benchmark: 1 / 3 } },
  image: {
    ...profile202601.image,
    side: null,
    levels: [{ level: 0, probability: 1, geometry: 'none', distortions: [], maxDistortionLevel: 0 }],
    distortions: [],
  },
  organic: { share: 0.1 },
  reward: profile202601.reward,
  timeoutSeconds: 9,
  minersPerStep: 10,
  stepSeconds: 66,
  challengesPerDay: 50,
};
