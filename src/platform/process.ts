/**
 * Processes told apart by id *and* start time, so that a reused id is never taken for the process that had it before;
 * and free ports. Linux reads /proc, other systems ask `ps`. Knows nothing of what the processes do.
 */
import { execFile, spawnSync } from 'node:child_process';
import { readFileSync, promises as fs } from 'node:fs';
import net from 'node:net';
import { promisify } from 'node:util';
import { setTimeout as sleep } from 'node:timers/promises';

const run = promisify(execFile);

/** Which process: the id alone may be reused by another. `start` is opaque and stable over the process's life. */
export interface ProcessIdentity {
  pid: number;
  start: string;
}

let boot: string | undefined;
/** Start times on Linux count from boot: two boots must not be mistaken for each other. */
function bootId(): string {
  if (boot === undefined) {
    try {
      boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
    } catch {
      // some sandboxes have none; ticks since boot must do then
      boot = 'boot';
    }
  }
  return boot;
}

interface Stat {
  state: string;
  ticks: string;
}

function parseStat(text: string): Stat {
  // The second field is the command in brackets and may hold spaces and brackets itself: count from the last one.
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return { state: fields[0] ?? '', ticks: fields[19] ?? '' };
}

function startOfStat(text: string): string | null {
  const stat = parseStat(text);
  return stat.state === 'Z' || stat.state === 'X' ? null : `${bootId()}/${stat.ticks}`;
}

const PS_ARGUMENTS = (pid: number): string[] => ['-o', 'stat=,lstart=', '-p', String(pid)];

function startOfPs(text: string): string | null {
  const [state, ...start] = text.trim().split(/\s+/);
  return !state || state.startsWith('Z') || start.length === 0 ? null : start.join(' ');
}

function isGone(error: unknown): boolean {
  return ['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '');
}

/** @returns when the process started, as an opaque string that is equal only for the same process; null when there is none (a zombie counts as none) */
export async function processStart(pid: number): Promise<string | null> {
  if (!Number.isInteger(pid) || pid <= 0) return null;
  if (process.platform === 'linux') {
    try {
      return startOfStat(await fs.readFile(`/proc/${pid}/stat`, 'utf8'));
    } catch (error) {
      if (isGone(error)) return null;
      throw error;
    }
  }
  try {
    const { stdout } = await run('ps', PS_ARGUMENTS(pid), { env: { ...process.env, LC_ALL: 'C' } });
    return startOfPs(stdout);
  } catch (error) {
    // ps ends with 1 when there is no such process; a missing ps is a real fault
    if ((error as { code?: unknown }).code === 1) return null;
    throw error;
  }
}

/** As `processStart`, for code that must stay synchronous. */
export function processStartSync(pid: number): string | null {
  if (!Number.isInteger(pid) || pid <= 0) return null;
  if (process.platform === 'linux') {
    try {
      return startOfStat(readFileSync(`/proc/${pid}/stat`, 'utf8'));
    } catch (error) {
      if (isGone(error)) return null;
      throw error;
    }
  }
  const ps = spawnSync('ps', PS_ARGUMENTS(pid), { encoding: 'utf8', env: { ...process.env, LC_ALL: 'C' } });
  if (ps.error) throw ps.error;
  return startOfPs(ps.stdout);
}

/** Whether exactly this process still runs: same id, same start. */
export async function isAlive(pid: number, start: string): Promise<boolean> {
  return (await processStart(pid)) === start;
}

/** Identity of the running process itself. */
export async function ownIdentity(): Promise<ProcessIdentity> {
  const start = await processStart(process.pid);
  if (start === null) throw new Error(`The start time of this process (${process.pid}) cannot be read; is /proc mounted, or ps installed?`);
  return { pid: process.pid, start };
}

/** Sends the signal; a process that is already gone is no error. @param pid negative: the process group */
export function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

/** Polls until `done` holds. @returns whether it did within `ms` */
export async function waitUntil(done: () => Promise<boolean> | boolean, ms: number, everyMs = 25): Promise<boolean> {
  const end = performance.now() + ms;
  for (;;) {
    if (await done()) return true;
    if (performance.now() >= end) return false;
    await sleep(Math.min(everyMs, Math.max(1, end - performance.now())));
  }
}

/**
 * SIGTERM, a grace, SIGKILL; resolves when the process is gone. Does nothing when `pid` is by now another process.
 * @param options.group signals go to the process group that the process leads
 */
export async function endProcess(which: ProcessIdentity, options: { graceMs?: number; group?: boolean } = {}): Promise<void> {
  const target = options.group ? -which.pid : which.pid;
  const gone = async (): Promise<boolean> => !(await isAlive(which.pid, which.start));
  if (await gone()) return;
  signal(target, 'SIGTERM');
  if (await waitUntil(gone, options.graceMs ?? 10_000)) return;
  signal(target, 'SIGKILL');
  if (!(await waitUntil(gone, 10_000))) {
    throw new Error(`Process ${which.pid} is still there 10 s after SIGKILL (blocked in the kernel?). End it by hand, then start again.`);
  }
}

/**
 * Processes whose environment holds `NAME=value`, found even when their parent is gone. Linux only: elsewhere an empty list,
 * since another process's environment can't be read there.
 */
export async function processesWithEnvironment(name: string, value: string): Promise<ProcessIdentity[]> {
  if (process.platform !== 'linux') return [];
  const wanted = `${name}=${value}`;
  const found: ProcessIdentity[] = [];
  for (const entry of await fs.readdir('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    const pid = Number(entry);
    try {
      const environment = await fs.readFile(`/proc/${entry}/environ`, 'utf8');
      if (!environment.split('\0').includes(wanted)) continue;
    } catch {
      // gone meanwhile, or of another user: not ours
      continue;
    }
    const start = await processStart(pid);
    if (start !== null) found.push({ pid, start });
  }
  return found;
}

/** @returns a TCP port that was free a moment ago (the system's choice) */
export async function freePort(host = '127.0.0.1'): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = net.createServer();
    server.once('error', reject);
    server.listen(0, host, () => {
      const address = server.address();
      server.close(() =>
        address && typeof address === 'object' ? resolve(address.port) : reject(new Error(`No port on ${host} could be taken.`)),
      );
    });
  });
}

/** Whether a server could listen on this port now. @throws when the host is no address of this machine */
export async function portFree(port: number, host = '127.0.0.1'): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const server = net.createServer();
    server.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE' || error.code === 'EACCES') resolve(false);
      else reject(error);
    });
    server.listen({ port, host, exclusive: true }, () => server.close(() => resolve(true)));
  });
}
