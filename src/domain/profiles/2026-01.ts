/** Profile `2026-01`: the subnet's public repository v2.0.4, January 2026. */
import type { ValidatorProfile } from './profile.js';

export const profile202601: ValidatorProfile = {
  name: '2026-01',
  draw: { positiveShare: 0.5, sources: { real: 0.5, textToImage: 0.25, imageToImage: 0.25, benchmark: 0 } },
  image: {
    side: 224,
    jpegQuality: 75,
    maxRotationDegrees: 20,
    cropArea: [0.2, 1],
    flips: false,
    levels: [
      { level: 0, probability: 0.25, geometry: 'centre-crop', distortions: [], maxDistortionLevel: 0 },
      { level: 1, probability: 0.25, geometry: 'rotate-and-crop', distortions: [], maxDistortionLevel: 0 },
      { level: 2, probability: 0.25, geometry: 'rotate-and-crop', distortions: ['CS', 'CC', 'JPEG'], maxDistortionLevel: 1 },
      { level: 3, probability: 0.25, geometry: 'rotate-and-crop', distortions: ['CS', 'CC', 'JPEG', 'GNC', 'GB'], maxDistortionLevel: 2 },
    ],
    distortions: [
      { name: 'CS', what: 'chroma scaled about the middle in YCbCr', parameters: [0.4, 0.3, 0.2, 0.1, 0] },
      { name: 'CC', what: 'pixel times parameter', parameters: [0.85, 0.725, 0.6, 0.475, 0.35] },
      { name: 'JPEG', what: 'bilinear resize down by the factor and up again', parameters: [2, 3, 4, 5, 6] },
      { name: 'GNC', what: 'noise variance in YCbCr on the 0-1 scale', parameters: [0.001, 0.002, 0.005, 0.01, 0.05] },
      { name: 'GB', what: 'Gaussian blur, kernel size k, sigma k/6', parameters: [7, 9, 13, 17, 21] },
    ],
  },
  organic: null,
  reward: { mcc: { window: 100, weight: 0.5 }, accuracy: { window: 10, weight: 0.5 }, exponent: 3, alpha: 0.05 },
  timeoutSeconds: 9,
  minersPerStep: 10,
  stepSeconds: null,
  challengesPerDay: null,
};
