/** Finds the `temporal` program, or gets it once: PATH, the SDK's cached download, a build with Go. */
import { existsSync, mkdtempSync, readdirSync, renameSync, rmSync, statSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { cacheDir } from '../cacheDir.js';
import { findOnPath, isExecutable, runCommand, tail } from '../command.js';
import { HomeLockedError, takeLock } from '../lock.js';
import { answers } from '../network.js';
import { ServiceUnavailableError } from '../unavailable.js';

/** The newest tag of the CLI that installs with `go install`: server 1.29, web UI included. */
export const CLI_VERSION = 'v1.5.1';
const CLI_MODULE = 'github.com/temporalio/cli/cmd/temporal';
/** Where the SDK downloads from; asked first whether it answers, since the SDK itself waits long for a network that is not there. */
const DOWNLOAD_HOST = 'https://temporal.download/';

export interface TemporalBinary {
  path: string;
  source: 'FLYWHEEL_TEMPORAL' | 'PATH' | 'cached' | 'download' | 'go install';
}

/** Called with what is being done; `elapsedSeconds` while a build that says little goes on. */
export type OnProgress = (message: string, elapsedSeconds?: number) => void;

/** Looks without fetching anything. @returns null when there is none yet */
export function findTemporal(): TemporalBinary | null {
  const named = process.env.FLYWHEEL_TEMPORAL;
  if (named !== undefined && named !== '' && isExecutable(named)) return { path: named, source: 'FLYWHEEL_TEMPORAL' };
  const onPath = findOnPath('temporal');
  if (onPath !== null) return { path: onPath, source: 'PATH' };
  const built = path.join(cacheDir('bin'), 'temporal');
  if (isExecutable(built)) return { path: built, source: 'cached' };
  for (const folder of [cacheDir('bin'), os.tmpdir()]) {
    const found = downloadedIn(folder);
    if (found !== null) return { path: found, source: 'cached' };
  }
  return null;
}

/** The SDK names its download after itself; only a file that this user owns is trusted, as the temporary folder is everybody's. */
function downloadedIn(folder: string): string | null {
  const names = existsSync(folder) ? readdirSync(folder).filter((name) => /^temporal-sdk-typescript-[0-9.]+$/.test(name)) : [];
  for (const name of names.sort().reverse()) {
    const file = path.join(folder, name);
    const owner = statSync(file).uid;
    if (isExecutable(file) && (process.getuid === undefined || owner === process.getuid())) return file;
  }
  return null;
}

const FOUR_WAYS = [
  '1. TEMPORAL_ADDRESS=host:port of a running server (TEMPORAL_TLS_CLIENT_CERT_PATH and _KEY_PATH or TEMPORAL_API_KEY, TEMPORAL_NAMESPACE)',
  '2. the `temporal` program on PATH (or FLYWHEEL_TEMPORAL=/path/to/temporal): https://docs.temporal.io/cli',
  "3. the SDK's own download from temporal.download: needs that host to be reachable",
  `4. Go 1.24 or newer on PATH: \`go install ${CLI_MODULE}@${CLI_VERSION}\` is then run once`,
].join('\n  ');

/**
 * Finds it, or gets it once into the cache.
 * @throws ServiceUnavailableError naming all four ways when none works
 */
export async function ensureTemporal(onProgress: OnProgress = () => undefined, signal?: AbortSignal): Promise<TemporalBinary> {
  const named = process.env.FLYWHEEL_TEMPORAL;
  if (named !== undefined && named !== '' && !isExecutable(named)) {
    throw new ServiceUnavailableError(`FLYWHEEL_TEMPORAL names ${named}, which is not an executable file. Nothing was started.`);
  }
  const bin = cacheDir('bin');
  const tried: string[] = [];
  const lock = await waitForLock(path.join(bin, '.temporal.lock'), 'The place where the Temporal program is put', onProgress, signal);
  try {
    const found = findTemporal();
    if (found !== null) return found;
    tried.push('TEMPORAL_ADDRESS is not set', 'no `temporal` on PATH');
    if (process.env.FLYWHEEL_OFFLINE !== '1' && (await answers(DOWNLOAD_HOST, 3_000))) {
      onProgress('downloading the Temporal server');
      const result = await downloadWithSdk('dev-server', bin, signal);
      const downloaded = downloadedIn(bin);
      if (downloaded !== null) return { path: downloaded, source: 'download' };
      tried.push(`download failed: ${tail(result, 3)}`);
    } else {
      tried.push('temporal.download does not answer');
    }
    const go = findOnPath('go');
    if (go === null) {
      tried.push('no `go` on PATH');
    } else {
      const built = await buildWithGo(go, bin, onProgress, signal);
      if (typeof built === 'object') return built;
      tried.push(built);
    }
  } finally {
    lock.release();
  }
  throw new ServiceUnavailableError(
    `There is no Temporal server, and none could be got (${tried.join('; ')}). Nothing was started. One of these four ways helps:\n  ${FOUR_WAYS}`,
  );
}

async function buildWithGo(go: string, bin: string, onProgress: OnProgress, signal?: AbortSignal): Promise<TemporalBinary | string> {
  const started = Date.now();
  const seconds = (): number => Math.round((Date.now() - started) / 1000);
  onProgress('building the Temporal server with Go (once, some 3 minutes)', 0);
  const ticker = setInterval(() => {
    onProgress('building the Temporal server with Go (once, some 3 minutes)', seconds());
  }, 1_000);
  // Built aside and renamed, so that an interrupted build never leaves half a program under the final name.
  const aside = mkdtempSync(path.join(bin, 'build-'));
  try {
    const result = await runCommand(go, ['install', `${CLI_MODULE}@${CLI_VERSION}`], {
      env: { ...process.env, GOBIN: aside, GOFLAGS: process.env.GOFLAGS ?? '' },
      ...(signal === undefined ? {} : { signal }),
    });
    const file = path.join(aside, 'temporal');
    if (result.code !== 0 || !isExecutable(file)) return `\`go install\` failed: ${tail(result.output, 4)}`;
    renameSync(file, path.join(bin, 'temporal'));
    return { path: path.join(bin, 'temporal'), source: 'go install' };
  } finally {
    clearInterval(ticker);
    rmSync(aside, { recursive: true, force: true });
  }
}

/**
 * Lets the SDK do its download in a process of its own (its runtime is one a process, and stays): it starts what it
 * downloaded on a free loopback port, and ends it with that process.
 * @returns what was said, for an error message
 */
export async function downloadWithSdk(kind: 'dev-server' | 'time-skipping', folder: string, signal?: AbortSignal): Promise<string> {
  const worker = fileURLToPath(import.meta.resolve('@temporalio/worker'));
  const bridge = fileURLToPath(import.meta.resolve('@temporalio/worker/package.json'));
  const script = `
    const { Runtime } = require(${JSON.stringify(worker)});
    const { native } = require(require.resolve('@temporalio/core-bridge', { paths: [${JSON.stringify(path.dirname(bridge))}] }));
    const sdkVersion = require(${JSON.stringify(bridge)}).version;
    const exe = { type: 'cached-download', downloadDir: ${JSON.stringify(folder)}, version: 'default', ttl: 315360000000, sdkName: 'sdk-typescript', sdkVersion };
    const config = ${JSON.stringify(kind)} === 'dev-server'
      ? { type: 'dev-server', exe, ip: '127.0.0.1', port: null, ui: false, uiPort: null, namespace: 'default', dbFilename: null, log: { format: 'pretty', level: 'error' }, extraArgs: [] }
      : { type: 'time-skipping', exe, port: null, extraArgs: [] };
    Runtime.instance().createEphemeralServer(config)
      .then((server) => native.ephemeralServerShutdown(server))
      .then(() => process.exit(0), (error) => { console.error(String(error)); process.exit(1); });`;
  const result = await runCommand(process.execPath, ['-e', script], { timeoutMs: 300_000, ...(signal === undefined ? {} : { signal }) });
  return result.output;
}

/** Takes a lock, waiting while another live process does the same work. */
export async function waitForLock(file: string, what: string, onProgress: OnProgress, signal?: AbortSignal): Promise<{ release(): void }> {
  const started = Date.now();
  for (;;) {
    try {
      return await takeLock(file, what);
    } catch (error) {
      if (!(error instanceof HomeLockedError)) throw error;
      signal?.throwIfAborted();
      onProgress(
        `waiting for ${error.holder === null ? 'another process' : `process ${error.holder.pid}`}, which does the same`,
        Math.round((Date.now() - started) / 1000),
      );
      await sleep(500);
    }
  }
}
