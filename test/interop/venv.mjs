// The environment with the real client: bittensor in the versions that subnet 72 pins, from PyPI, once, in the user's cache.
// Needs a build. Where it cannot be made this throws with the reason: the interop test then fails, it is not left out.
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const here = path.dirname(fileURLToPath(import.meta.url));
const dist = (file) => import(new URL(`../../dist/${file}`, import.meta.url).href);
export const requirements = path.join(here, 'requirements.txt');

/** @returns the interpreter of the environment */
export async function ensureInteropPython(progress = () => undefined) {
  const { cacheDir } = await dist('platform/cacheDir.js');
  const { ensureUv, findPython } = await dist('platform/python/env.js');
  const { runCommand } = await dist('platform/command.js');
  const stamp = createHash('sha256').update(readFileSync(requirements)).digest('hex').slice(0, 16);
  const folder = path.join(cacheDir('interop'), stamp);
  const python = path.join(folder, 'bin', 'python');
  const done = path.join(folder, '.complete');
  if (existsSync(done)) return python;
  const { found } = await findPython();
  if (found === null) throw new Error('The interop test needs Python 3.11 to 3.13 on PATH (FLYWHEEL_PYTHON names another).');
  const uv = await ensureUv(found.path, progress);
  rmSync(folder, { recursive: true, force: true });
  progress('installing the real client (bittensor and what it needs, some 200 MB)');
  for (const args of [
    ['venv', '--quiet', '--python', found.path, folder],
    ['pip', 'install', '--quiet', '--python', python, '-r', requirements],
  ]) {
    const { code, output } = await runCommand(uv, args, { timeoutMs: 600_000 });
    if (code !== 0) throw new Error(`The real client could not be installed (uv ${args[0]}):\n${output.slice(-2000)}`);
  }
  writeFileSync(done, '');
  return python;
}
