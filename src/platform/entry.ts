/** Finds the compiled file of a module that runs in a process or thread of its own, from `src` (tests) and `dist` alike. */
import { fileURLToPath } from 'node:url';
import path from 'node:path';

const here = path.dirname(fileURLToPath(import.meta.url));
/** Root of the installed package: where package.json, presets and gpu-jobs are. */
export const packageRoot = path.resolve(here, '..', '..');

/**
 * @param relative path of the module below `src` without ending, e.g. `platform/catalog/writer`
 * @returns absolute path of the compiled JavaScript; `npm run build` makes it
 */
export function compiledEntry(relative: string): string {
  return path.join(packageRoot, 'dist', `${relative}.js`);
}
