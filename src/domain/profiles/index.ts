/** The validator profiles by name. A new version is a new file and two lines here. */
import { BadInputError } from '../errors.js';
import { profile202601 } from './2026-01.js';
import { profile202605 } from './2026-05.js';
import type { ValidatorProfile } from './profile.js';

export type { AugmentationLevel, Distortion, ValidatorProfile } from './profile.js';
export { profile202601 } from './2026-01.js';
export { profile202605 } from './2026-05.js';

export const PROFILES = { '2026-01': profile202601, '2026-05': profile202605 } as const satisfies Record<string, ValidatorProfile>;
export type ProfileName = keyof typeof PROFILES;
export const PROFILE_NAMES = Object.keys(PROFILES) as [ProfileName, ...ProfileName[]];

/** @throws BadInputError naming the profiles there are */
export function profileOf(name: string): ValidatorProfile {
  if (!Object.hasOwn(PROFILES, name)) throw new BadInputError(`no validator profile "${name}"; known are ${PROFILE_NAMES.join(', ')}`);
  return PROFILES[name as ProfileName];
}
