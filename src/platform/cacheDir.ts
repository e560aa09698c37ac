/** Where tools that are fetched or built once are kept: shared by all homes of this user. */
import { mkdirSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

/** FLYWHEEL_CACHE_DIR, else the XDG cache folder's `streetvision-flywheel`; made when absent. */
export function cacheDir(...below: string[]): string {
  const root =
    process.env.FLYWHEEL_CACHE_DIR ?? path.join(process.env.XDG_CACHE_HOME ?? path.join(os.homedir(), '.cache'), 'streetvision-flywheel');
  const folder = path.resolve(root, ...below);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  return folder;
}
