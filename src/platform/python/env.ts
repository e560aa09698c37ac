/**
 * The Python side: finds Python and uv, and makes the project's own environment from its lock file, once.
 * Decisions are pure functions; `ensurePython` carries them out.
 */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, rmSync, statfsSync } from 'node:fs';
import path from 'node:path';
import { z } from 'zod';
import { cacheDir } from '../cacheDir.js';
import { findOnPath, isExecutable, runCommand, tail } from '../command.js';
import { packageRoot } from '../entry.js';
import { writeJsonAtomic } from '../fsutil.js';
import { answers } from '../network.js';
import { waitForLock, type OnProgress } from '../temporal/binary.js';
import { ServiceUnavailableError } from '../unavailable.js';

/** Oldest and first unsupported minor version of Python 3; as `requires-python` in gpu-jobs/pyproject.toml. */
export const PYTHON_MIN = 11;
export const PYTHON_BELOW = 14;
const CPU_INDEX = 'https://download.pytorch.org/whl/cpu';
/** Size of the environment, bytes: with CUDA libraries, and with CPU wheels alone. */
const NEEDS_BYTES = { default: 7e9, cpu: 2.5e9 };

export interface PythonVersion {
  path: string;
  major: number;
  minor: number;
  /** e.g. 3.11.7 */
  text: string;
}

/** @returns the version in the output of `python --version`, or null when that is something else */
export function parsePythonVersion(output: string): { major: number; minor: number; text: string } | null {
  const match = /Python (\d+)\.(\d+)(?:\.\d+)?\S*/.exec(output);
  return match === null ? null : { major: Number(match[1]), minor: Number(match[2]), text: match[0].slice('Python '.length) };
}

/** @returns whether the packages of the lock file exist for this version */
export function pythonFits(version: { major: number; minor: number }): boolean {
  return version.major === 3 && version.minor >= PYTHON_MIN && version.minor < PYTHON_BELOW;
}

/** Names to look for on PATH, best first. */
export function pythonCandidates(env: NodeJS.ProcessEnv = process.env): string[] {
  const named = env.FLYWHEEL_PYTHON;
  if (named !== undefined && named !== '') return [named];
  return ['python3', 'python3.12', 'python3.11', 'python3.13', 'python'];
}

/** Looks without installing anything. @returns the first that fits, and everything that was seen */
export async function findPython(): Promise<{ found: PythonVersion | null; seen: PythonVersion[] }> {
  const seen: PythonVersion[] = [];
  for (const name of pythonCandidates()) {
    const file = name.includes(path.sep) ? (isExecutable(name) ? name : null) : findOnPath(name);
    if (file === null) continue;
    const { code, output } = await runCommand(file, ['--version'], { timeoutMs: 20_000 });
    const version = code === 0 ? parsePythonVersion(output) : null;
    if (version === null) continue;
    const python = { path: file, ...version };
    seen.push(python);
    if (pythonFits(python)) return { found: python, seen };
  }
  return { found: null, seen };
}

/** @returns whether this machine drives an NVIDIA GPU, so that the CUDA wheels are of use */
export function hasNvidiaDriver(): boolean {
  return (
    process.platform === 'linux' && (existsSync('/proc/driver/nvidia/version') || existsSync('/dev/nvidiactl') || existsSync('/dev/dxg'))
  );
}

/** What the environment is made of; the same stamp means that nothing is to be done. */
const Stamp = z.object({
  /** SHA-256 of uv.lock and pyproject.toml */
  lock: z.string(),
  python: z.string(),
  groups: z.enum(['main', 'dev']),
  wheels: z.enum(['cpu', 'default']),
});
export type Stamp = z.infer<typeof Stamp>;

/** An environment with the development tools serves those who do not need them, and CPU wheels serve a machine that later gets a driver (slowly): only the reverse is made anew. */
export function stampServes(stamp: Stamp | null, wanted: { lock: string; groups: 'main' | 'dev' }): boolean {
  return stamp !== null && stamp.lock === wanted.lock && (stamp.groups === 'dev' || wanted.groups === 'main');
}

/** Packages that only serve a GPU: left out where CPU wheels are taken. */
const GPU_ONLY = /^(nvidia-|triton$|cuda-)/;
/** Packages that PyTorch's own index carries in a CPU build. */
const FROM_TORCH_INDEX = ['torch', 'torchvision'];

/** Names and versions in a uv.lock. */
export function lockedPackages(lock: string): { name: string; version: string }[] {
  return [...lock.matchAll(/^\[\[package\]\]\nname = "([^"]+)"\nversion = "([^"]+)"/gm)].map((match) => ({
    name: match[1] ?? '',
    version: match[2] ?? '',
  }));
}

/**
 * The commands that make the environment, in order. With CPU wheels the GPU-only packages of the lock are left out and
 * torch comes from PyTorch's CPU index in the locked version; everything else is as locked.
 */
export function installPlan(options: {
  lock: string;
  project: string;
  python: string;
  groups: 'main' | 'dev';
  wheels: 'cpu' | 'default';
}): { args: string[]; what: string }[] {
  const sync = [
    'sync',
    '--frozen',
    '--project',
    options.project,
    '--python',
    options.python,
    ...(options.groups === 'main' ? ['--no-dev'] : []),
  ];
  if (options.wheels === 'default') return [{ args: sync, what: 'installing Python packages' }];
  const locked = lockedPackages(options.lock);
  const left = locked.filter(({ name }) => GPU_ONLY.test(name) || FROM_TORCH_INDEX.includes(name)).map(({ name }) => name);
  const torch = locked
    .filter(({ name }) => FROM_TORCH_INDEX.includes(name))
    .map(({ name, version }) => `${name}==${version.replace(/\+.*$/, '')}`);
  const interpreter = path.join(options.project, '.venv', 'bin', 'python');
  return [
    { args: [...sync, '--inexact', ...left.flatMap((name) => ['--no-install-package', name])], what: 'installing Python packages' },
    {
      args: ['pip', 'install', '--python', interpreter, '--index-url', CPU_INDEX, '--no-deps', ...torch],
      what: 'installing PyTorch for the CPU',
    },
  ];
}

/** Turns a line that uv prints into one line of progress, or null when it says nothing of progress. */
export function parseUvLine(line: string): string | null {
  const text = line.replace(/\x1b\[[0-9;]*m/g, '').trim();
  if (/^(Resolved|Prepared|Installed|Uninstalled|Audited) \d+ packages?/.test(text)) return text;
  const downloading = /^(Downloading|Downloaded|Building|Built) (\S+)/.exec(text);
  return downloading === null ? null : downloading[0];
}

/** Explains a failed installation from what the tool said. */
export function explainInstallFailure(output: string): string {
  if (/No space left on device|os error 28|ENOSPC/.test(output))
    return 'The disk is full. Free some space (up to 7 GB are needed), then start again: what was downloaded is kept.';
  if (
    /dns error|failed to lookup|Name or service not known|Temporary failure in name resolution|Connection refused|tcp connect error|Could not connect|timed out|No matching distribution|NewConnectionError/i.test(
      output,
    )
  ) {
    return 'The package index is out of reach. Check the network (and UV_DEFAULT_INDEX or PIP_INDEX_URL where a mirror is used), then start again: what was downloaded is kept.';
  }
  if (/hash mismatch/i.test(output))
    return 'A package does not match the lock file. Do not use it: clear the cache with `uv cache clean` and start again.';
  return 'What was installed so far is kept; start again when the cause below is mended.';
}

function readStamp(file: string): Stamp | null {
  try {
    return Stamp.parse(JSON.parse(readFileSync(file, 'utf8')));
  } catch {
    // No stamp, or one of another version: the environment is checked by uv again, which is quick when it is right.
    return null;
  }
}

/** uv from PATH, else one in a private environment of the cache, put there by pip. */
export async function ensureUv(python: string, onProgress: OnProgress): Promise<string> {
  const onPath = findOnPath('uv');
  if (onPath !== null) return onPath;
  const folder = path.join(cacheDir(), 'uv');
  const uv = path.join(folder, 'bin', 'uv');
  if (isExecutable(uv) && (await runCommand(uv, ['--version'], { timeoutMs: 20_000 })).code === 0) return uv;
  onProgress('installing uv');
  rmSync(folder, { recursive: true, force: true });
  const made = await runCommand(python, ['-m', 'venv', folder], { timeoutMs: 180_000 });
  if (made.code !== 0) {
    throw new ServiceUnavailableError(
      `${python} cannot make a virtual environment (Debian: apt-get install python3-venv). Nothing else was started.\n${tail(made.output, 6)}`,
    );
  }
  const installed = await runCommand(
    path.join(folder, 'bin', 'python'),
    ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', 'uv'],
    { timeoutMs: 300_000 },
  );
  if (installed.code !== 0 || !isExecutable(uv))
    throw new ServiceUnavailableError(
      `uv could not be installed. ${explainInstallFailure(installed.output)}\n${tail(installed.output, 6)}`,
    );
  return uv;
}

export interface PythonEnvironment {
  /** the interpreter of the project's environment */
  python: string;
  /** false when it was there already */
  installed: boolean;
  wheels: 'cpu' | 'default';
}

/** The interpreter when the environment is ready for use, without installing anything; else null. */
export function readyPython(groups: 'main' | 'dev' = 'main', project = path.join(packageRoot, 'gpu-jobs')): string | null {
  const python = path.join(project, '.venv', 'bin', 'python');
  const stamp = readStamp(path.join(project, '.venv', 'flywheel.json'));
  return existsSync(python) && stampServes(stamp, { lock: digestOfLock(project), groups }) ? python : null;
}

function digestOfLock(project: string): string {
  const hash = createHash('sha256');
  for (const name of ['uv.lock', 'pyproject.toml']) hash.update(readFileSync(path.join(project, name)));
  return hash.digest('hex');
}

/**
 * Makes the environment at `gpu-jobs/.venv` unless it is there as locked. Several processes may call it at once.
 * @param options.groups `dev` adds the test and lint tools
 * @throws ServiceUnavailableError when Python is missing or of the wrong version, the disk full, or the index out of reach
 */
export async function ensurePython(
  onProgress: OnProgress = () => undefined,
  options: { groups?: 'main' | 'dev'; project?: string; signal?: AbortSignal } = {},
): Promise<PythonEnvironment> {
  const project = options.project ?? path.join(packageRoot, 'gpu-jobs');
  const groups = options.groups ?? 'main';
  const venv = path.join(project, '.venv');
  const interpreter = path.join(venv, 'bin', 'python');
  const stampFile = path.join(venv, 'flywheel.json');
  const ready = (): PythonEnvironment | null => {
    const python = readyPython(groups, project);
    return python === null ? null : { python, installed: false, wheels: readStamp(stampFile)?.wheels ?? 'default' };
  };
  const before = ready();
  if (before !== null) return before;

  const { found, seen } = await findPython();
  if (found === null) {
    const what =
      seen.length === 0 ? 'No Python was found' : `Found only ${seen.map((python) => `${python.path} (${python.text})`).join(', ')}`;
    throw new ServiceUnavailableError(
      `${what}; Python 3.${PYTHON_MIN} to 3.${PYTHON_BELOW - 1} is needed. Nothing was started. Install one (Debian: apt-get install python3 python3-venv), or name it with FLYWHEEL_PYTHON.`,
    );
  }
  mkdirSync(cacheDir('locks'), { recursive: true });
  const lock = await waitForLock(
    path.join(cacheDir('locks'), `python-${createHash('sha256').update(project).digest('hex').slice(0, 12)}.lock`),
    'The Python environment',
    onProgress,
    options.signal,
  );
  try {
    const meanwhile = ready();
    if (meanwhile !== null) return meanwhile;
    const uv = await ensureUv(found.path, onProgress);
    const wheels =
      !hasNvidiaDriver() && (process.platform === 'darwin' ? false : await answers(`${CPU_INDEX}/torch/`, 3_000)) ? 'cpu' : 'default';
    const space = statfsSync(project);
    const free = space.bavail * space.bsize;
    if (!existsSync(interpreter) && free < NEEDS_BYTES[wheels]) {
      throw new ServiceUnavailableError(
        `${(free / 1e9).toFixed(1)} GB are free at ${project}, ${NEEDS_BYTES[wheels] / 1e9} GB are needed for the Python packages. Nothing was installed. Free some space, then start again.`,
      );
    }
    // Packages of the last stamp may be half replaced from here on.
    rmSync(stampFile, { force: true });
    for (const step of installPlan({
      lock: readFileSync(path.join(project, 'uv.lock'), 'utf8'),
      project,
      python: found.path,
      groups,
      wheels,
    })) {
      const started = Date.now();
      let latest = step.what;
      const report = (): void => {
        onProgress(latest, Math.round((Date.now() - started) / 1000));
      };
      report();
      const ticker = setInterval(report, 1_000);
      try {
        const env = {
          ...process.env,
          UV_PYTHON_DOWNLOADS: 'never',
          UV_PROJECT_ENVIRONMENT: venv,
          VIRTUAL_ENV: undefined,
          UV_HTTP_TIMEOUT: process.env.UV_HTTP_TIMEOUT ?? '120',
        };
        const result = await runCommand(uv, step.args, {
          cwd: project,
          env,
          onLine: (line) => {
            const parsed = parseUvLine(line);
            if (parsed !== null) latest = `${step.what}: ${parsed}`;
          },
          ...(options.signal === undefined ? {} : { signal: options.signal }),
        });
        options.signal?.throwIfAborted();
        if (result.code !== 0)
          throw new ServiceUnavailableError(
            `Python packages could not be installed. ${explainInstallFailure(result.output)}\n${tail(result.output, 10)}`,
          );
      } finally {
        clearInterval(ticker);
      }
    }
    const check = await runCommand(interpreter, ['-c', 'import torch, timm, onnx, flywheel_jobs'], { timeoutMs: 180_000 });
    if (check.code !== 0)
      throw new ServiceUnavailableError(
        `The Python packages were installed but do not load. Remove ${venv} and start again.\n${tail(check.output, 10)}`,
      );
    await writeJsonAtomic(stampFile, { lock: digestOfLock(project), python: found.text, groups, wheels } satisfies Stamp);
    return { python: interpreter, installed: true, wheels };
  } finally {
    lock.release();
  }
}
