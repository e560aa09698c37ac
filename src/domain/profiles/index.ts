/** The validator profiles by name. A new version is a new file and a line here. */
import { BadInputError } from '../errors.js';
import { profile202601 } from './2026-01.js';
import type { ValidatorProfile } from './profile.js';

export type { AugmentationLevel, Distortion, ValidatorProfile } from './profile.js';
export { profile202601 } from './2026-01.js';

const PROFILES: Record<string, ValidatorProfile> = { [profile202601.name]: profile202601 };

/** @throws BadInputError naming the profiles there are */
export function profileOf(name: string): ValidatorProfile {
  const found = Object.hasOwn(PROFILES, name) ? PROFILES[name] : undefined;
  if (!found) throw new BadInputError(`no validator profile "${name}"; known are ${Object.keys(PROFILES).join(', ')}`);
  return found;
}
