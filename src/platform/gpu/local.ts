/**
 * Jobs as detached processes of this machine. A job outlives the worker that started it: its folder says everything that
 * another worker needs to find it again, and its end is written down by a wrapper that needs no parent.
 *
 * `<jobs>/<safe name>/`
 *   launch.json        written before the process is started: a random token for this start, limits, what is run
 *   wrapper.<token>    `<pid> <start time>`, written by the wrapper itself, so that no process is ever unrecorded
 *   exitcode.<token>   written by the wrapper, by rename, when the job ended (124: ended by its time limit)
 *   expired.<token>    there when the time limit came
 *   spec.json, stdout.log, stderr.log, and what the job writes: progress.jsonl, result.json, checkpoints
 */
import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { promises as fs } from 'node:fs';
import path from 'node:path';
import { z } from 'zod';
import { exitOf, JobProgress, JobResult, JOB_EXIT, type JobSpec } from '../../domain/contracts/jobs.js';
import { BadInputError, JobFailedError } from '../../domain/errors.js';
import { packageRoot } from '../entry.js';
import { ensureDir, isMissing, readJsonIfExists, readTail, writeFileAtomic, writeJsonAtomic } from '../fsutil.js';
import type { GpuBackend } from '../ports.js';
import { isAlive, processesWithEnvironment, signal, waitUntil, type ProcessIdentity } from '../process.js';

/** Exit code of a job that its own time limit ended, as coreutils' `timeout` has it. */
export const EXIT_TIME_LIMIT = 124;
/** From the time limit's SIGTERM to its SIGKILL, s: time to write a checkpoint. */
const LIMIT_GRACE_S = 20;
/** Name in the environment of a job and all its children by which they are found when the wrapper was killed. */
const TOKEN_NAME = 'FLYWHEEL_JOB_TOKEN';
/** The same for the wrapper and its dead-man: strays of a wrapper that was killed. */
const GROUP_NAME = 'FLYWHEEL_JOB_GROUP';
const LOG_TAIL_BYTES = 4096;

/**
 * The wrapper. It survives SIGTERM (a handler, not `ignore`, which children would inherit) to write down how the job ended,
 * and carries the dead-man: a sleep in the job's own process group that ends the group even when nobody watches any more.
 * Plain sh, so that it runs wherever Node does. Arguments: folder, token, time limit s, grace s, niceness, command...
 */
const WRAPPER = `
trap : TERM INT HUP
dir=$1; token=$2; limit=$3; grace=$4; nice=$5; shift 5
cd "$dir" || exit 71
grep -q "\\"$token\\"" launch.json || exit 0
if [ -r /proc/$$/stat ]; then
  boot="$(cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo boot)"
  start="$boot/$(sed 's/.*) //' /proc/$$/stat | cut -d' ' -f20)"
else
  start="$(LC_ALL=C ps -o lstart= -p $$ | sed 's/^ *//; s/ *$//; s/  */ /g')"
fi
printf '%s %s\\n' "$$" "$start" > ".wrapper.$token" && mv ".wrapper.$token" "wrapper.$token" || exit 71
( trap '' TERM; sleep "$limit"; : > "expired.$token"; kill -TERM -$$; sleep "$grace"; kill -KILL -$$ ) </dev/null >/dev/null 2>&1 &
${TOKEN_NAME}=$token nice -n "$nice" "$@"
code=$?
[ -e "expired.$token" ] && [ "$code" -ne 0 ] && code=${EXIT_TIME_LIMIT}
echo "$code" > ".exitcode.$token" && mv ".exitcode.$token" "exitcode.$token"
kill -KILL -$$
`;

const Launch = z.object({
  token: z.string(),
  /** the job's name, for listOwned */
  name: z.string(),
  /** digest of what the job is asked for: another question under the same name is another job */
  input: z.string(),
  workDir: z.string(),
  launchedAt: z.number(),
  maxSeconds: z.number(),
  command: z.array(z.string()),
});
type Launch = z.infer<typeof Launch>;

export interface LocalGpuOptions {
  /** absolute folder that holds a folder a job, `<home>/jobs` */
  jobs: string;
  /** what runs a job, `run SPEC` is put behind it: `[python, '-m', 'flywheel_jobs.cli']`. The first one absolute or on PATH */
  command: readonly string[];
  /** more environment for the jobs */
  env?: Record<string, string>;
  /** cents an hour that this machine costs its operator (electricity); default 0 */
  centsPerHour?: number;
  clock?: () => number;
}

/** A job's folder below `jobs`. Names that are no plain file names get a digest behind, so that no two share a folder. */
export function jobDir(jobs: string, name: string): string {
  if (/^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$/.test(name)) return path.join(jobs, name);
  const safe = name
    .replace(/[^A-Za-z0-9._-]+/g, '-')
    .replace(/^[^A-Za-z0-9]+/, '')
    .slice(0, 120);
  return path.join(jobs, `${safe || 'job'}-${createHash('sha256').update(name).digest('hex').slice(0, 10)}`);
}

export class LocalGpu implements GpuBackend {
  readonly kind = 'local';
  private readonly clock: () => number;
  private readonly launching = new Map<string, Promise<{ adopted: boolean }>>();

  constructor(private readonly options: LocalGpuOptions) {
    if (!path.isAbsolute(options.jobs)) throw new BadInputError(`The folder of jobs must be absolute, not ${options.jobs}.`);
    this.clock = options.clock ?? Date.now;
  }

  async offer(maxSeconds: number): Promise<{ centsPerHour: number; reserveCents: number }> {
    const centsPerHour = this.options.centsPerHour ?? 0;
    return { centsPerHour, reserveCents: Math.ceil((centsPerHour * maxSeconds) / 3600) };
  }

  /**
   * A finished job of that name is adopted; a running one only when process id and start time are the recorded ones; a dead
   * one without a good result is started again in the same folder, where its checkpoint is.
   * @param limits maxSeconds: wall-clock s from this start, kept by the job itself; nice 0 to 19
   * @throws JobFailedError when its time limit ended it before and the limit is not higher now
   */
  async launchOrAdopt(spec: JobSpec, limits: { maxSeconds: number; nice: number }): Promise<{ adopted: boolean }> {
    // Two calls at once in this process (a retry beside a slow first attempt) must not both start it.
    const before = this.launching.get(spec.name);
    const mine = (async () => {
      await before?.catch(() => undefined);
      return this.launchOnce(spec, limits);
    })();
    this.launching.set(spec.name, mine);
    try {
      return await mine;
    } finally {
      if (this.launching.get(spec.name) === mine) this.launching.delete(spec.name);
    }
  }

  async status(name: string): ReturnType<GpuBackend['status']> {
    const dir = jobDir(this.options.jobs, name);
    const launch = await this.readLaunch(dir);
    if (!launch) return { state: 'unknown' };
    let running = await this.runningProcesses(dir, launch);
    // The dead-man ends a job that is too old; should it have been killed, this does.
    if (running.length > 0 && this.clock() - launch.launchedAt > (launch.maxSeconds + LIMIT_GRACE_S + 5) * 1000) {
      await writeFileAtomic(path.join(dir, `expired.${launch.token}`), '');
      await this.endProcesses(dir, launch, 0);
      running = [];
    }
    if (running.length > 0) return { state: 'running', progress: await this.progress(launch) };
    return { state: 'ended', exitCode: await this.exitCode(dir, launch), logTail: await this.logTail(dir, launch) };
  }

  async end(name: string, graceMs: number): Promise<void> {
    const dir = jobDir(this.options.jobs, name);
    await this.launching.get(name)?.catch(() => undefined);
    const launch = await this.readLaunch(dir);
    if (launch) await this.endProcesses(dir, launch, graceMs);
  }

  /** Names of the jobs that run now. */
  async listOwned(): Promise<string[]> {
    let entries: string[];
    try {
      entries = await fs.readdir(this.options.jobs);
    } catch (error) {
      if (isMissing(error)) return [];
      throw error;
    }
    const names: string[] = [];
    for (const entry of entries.sort()) {
      const dir = path.join(this.options.jobs, entry);
      const launch = await this.readLaunch(dir);
      if (launch && (await this.runningProcesses(dir, launch)).length > 0) names.push(launch.name);
    }
    return names;
  }

  // --- inside

  private async launchOnce(spec: JobSpec, limits: { maxSeconds: number; nice: number }): Promise<{ adopted: boolean }> {
    const dir = jobDir(this.options.jobs, spec.name);
    const input = digestOfInput(spec);
    const before = await this.readLaunch(dir);
    if (before) {
      const sameInput = before.input === input;
      if ((await this.runningProcesses(dir, before)).length > 0) {
        // Alive without its wrapper, nobody would write down its end: ended and started again, from its checkpoint.
        if (sameInput && (await this.wrapper(dir, before))) return { adopted: true };
      } else if (sameInput) {
        const result = await this.result(before);
        if (result?.ok && (await this.exitCode(dir, before)) === JOB_EXIT.ok) return { adopted: true };
        if ((await this.expired(dir, before)) && limits.maxSeconds <= before.maxSeconds) {
          throw new JobFailedError(
            `Job ${spec.name} was ended by its time limit of ${before.maxSeconds} s before and the limit is not higher now. Its folder ${dir} with logs and checkpoint is kept. Raise gpu.maxJobSeconds.`,
          );
        }
      }
      await this.endProcesses(dir, before, 10_000);
      // Another question under the same name: nothing of the old answer may be mistaken for the new one.
      if (!sameInput) {
        await fs.rm(dir, { recursive: true, force: true });
        if (before.workDir !== dir) await fs.rm(path.join(before.workDir, 'result.json'), { force: true });
      }
    }
    await this.start(dir, spec, input, limits);
    return { adopted: false };
  }

  private async start(dir: string, spec: JobSpec, input: string, limits: { maxSeconds: number; nice: number }): Promise<void> {
    const { options } = this;
    await ensureDir(dir);
    await ensureDir(spec.workDir);
    // Of earlier starts; every start has its own token, so that none is ever taken for another's.
    for (const file of await fs.readdir(dir))
      if (/^\.?(exitcode|expired|wrapper)\./.test(file)) await fs.rm(path.join(dir, file), { force: true });
    // Only a bad result can be here: it would be taken for this attempt's.
    await fs.rm(path.join(spec.workDir, 'result.json'), { force: true });
    const specFile = path.join(dir, 'spec.json');
    await writeJsonAtomic(specFile, spec);
    const command = [...options.command, 'run', specFile];
    const token = randomBytes(16).toString('hex');
    // Before the process exists: should this process die right after starting it, the next one finds it by this record.
    await writeJsonAtomic(path.join(dir, 'launch.json'), {
      token,
      name: spec.name,
      input,
      workDir: spec.workDir,
      launchedAt: this.clock(),
      maxSeconds: limits.maxSeconds,
      command,
    } satisfies Launch);

    const [stdout, stderr] = await Promise.all([fs.open(path.join(dir, 'stdout.log'), 'a'), fs.open(path.join(dir, 'stderr.log'), 'a')]);
    try {
      const child = spawn(
        '/bin/sh',
        [
          '-c',
          WRAPPER,
          'flywheel-job',
          dir,
          token,
          String(Math.ceil(limits.maxSeconds)),
          String(LIMIT_GRACE_S),
          String(limits.nice),
          ...command,
        ],
        {
          // A session and group of its own: neither Ctrl-C nor the end of this process reaches it.
          detached: true,
          stdio: ['ignore', stdout.fd, stderr.fd],
          env: {
            ...process.env,
            ...threadLimits(spec.threads),
            ...options.env,
            [GROUP_NAME]: token,
            PYTHONUNBUFFERED: '1',
            PYTHONPATH: pythonPath(options.env?.['PYTHONPATH'] ?? process.env['PYTHONPATH']),
          },
        },
      );
      child.unref();
      const failed = new Promise<never>((_resolve, reject) => child.once('error', reject));
      const recorded = waitUntil(async () => child.exitCode !== null || (await this.wrapperFile(dir, { token })) !== null, 30_000);
      if (!(await Promise.race([recorded, failed]))) {
        if (child.pid !== undefined) signal(-child.pid, 'SIGKILL');
        throw new Error(
          `Job ${spec.name} did not start within 30 s (machine overloaded?). Nothing of it runs; see ${dir}/stderr.log. It may be started again.`,
        );
      }
    } finally {
      await stdout.close();
      await stderr.close();
    }
  }

  private async readLaunch(dir: string): Promise<Launch | null> {
    return readJsonIfExists(path.join(dir, 'launch.json'), Launch);
  }

  /** What the wrapper of this very launch wrote about itself. */
  private async wrapperFile(dir: string, launch: Pick<Launch, 'token'>): Promise<ProcessIdentity | null> {
    let text: string;
    try {
      text = await fs.readFile(path.join(dir, `wrapper.${launch.token}`), 'utf8');
    } catch (error) {
      if (isMissing(error)) return null;
      throw error;
    }
    const match = /^(\d+) (.+)\n$/.exec(text);
    return match ? { pid: Number(match[1]), start: match[2]! } : null;
  }

  /** The wrapper, when it still runs and is the same process. */
  private async wrapper(dir: string, launch: Launch): Promise<ProcessIdentity | null> {
    const written = await this.wrapperFile(dir, launch);
    return written && (await isAlive(written.pid, written.start)) ? written : null;
  }

  /** The wrapper and, should it have been killed, what it started. */
  private async runningProcesses(dir: string, launch: Launch): Promise<ProcessIdentity[]> {
    // The wrapper's last act is to end its own group: with an exit code the job is over even if it is still there.
    if ((await this.readExitFile(dir, launch)) !== null) return [];
    const wrapper = await this.wrapper(dir, launch);
    if (wrapper) return [wrapper];
    return processesWithEnvironment(TOKEN_NAME, launch.token);
  }

  private async endProcesses(dir: string, launch: Launch, graceMs: number): Promise<void> {
    const written = await this.wrapperFile(dir, launch);
    const send = async (name: NodeJS.Signals): Promise<void> => {
      // The group's number is safe only while its leader is known to be ours.
      if (written && (await isAlive(written.pid, written.start))) signal(-written.pid, name);
      else for (const child of await processesWithEnvironment(TOKEN_NAME, launch.token)) signal(child.pid, name);
    };
    const gone = async (): Promise<boolean> =>
      !(written && (await isAlive(written.pid, written.start))) && (await processesWithEnvironment(TOKEN_NAME, launch.token)).length === 0;
    const endStrays = async (): Promise<void> => {
      for (const stray of await processesWithEnvironment(GROUP_NAME, launch.token)) signal(stray.pid, 'SIGKILL');
    };
    if (await gone()) return endStrays();
    if (graceMs > 0) {
      await send('SIGTERM');
      if (await waitUntil(gone, graceMs, 50)) return endStrays();
    }
    // Repeated: a child that was starting while the first signal went out is caught by the next.
    const ended = await waitUntil(async () => {
      await send('SIGKILL');
      return gone();
    }, 10_000);
    if (!ended)
      throw new Error(
        `Job ${launch.name} is still there 10 s after SIGKILL (blocked in the kernel?). Its folder ${dir} is kept. End it by hand.`,
      );
    await endStrays();
  }

  private async readExitFile(dir: string, launch: Launch): Promise<number | null> {
    const text = (await readTail(path.join(dir, `exitcode.${launch.token}`), 64)).trim();
    return /^\d+$/.test(text) ? Number(text) : null;
  }

  private async exitCode(dir: string, launch: Launch): Promise<number | null> {
    const written = await this.readExitFile(dir, launch);
    if (written !== null) return written;
    if (await this.expired(dir, launch)) return EXIT_TIME_LIMIT;
    // The wrapper was killed but the job came to its end: its result, written by rename, says how.
    const result = await this.result(launch);
    if (!result) return null;
    if (result.ok) return JOB_EXIT.ok;
    return exitOf(result.error);
  }

  private async expired(dir: string, launch: Launch): Promise<boolean> {
    return (await exists(path.join(dir, `expired.${launch.token}`))) && (await this.readExitFile(dir, launch)) !== JOB_EXIT.ok;
  }

  /** This attempt's result; one that can't be read counts as none: the job is then started again. */
  private async result(launch: Launch): Promise<JobResult | null> {
    try {
      return await readJsonIfExists(path.join(launch.workDir, 'result.json'), JobResult);
    } catch (error) {
      if (error instanceof BadInputError) return null;
      throw error;
    }
  }

  private async progress(launch: Launch): Promise<JobProgress | null> {
    const lines = (await readTail(path.join(launch.workDir, 'progress.jsonl'), LOG_TAIL_BYTES)).trimEnd().split('\n');
    for (const line of lines.reverse()) {
      // The last line may be half written: the one before it will do.
      const parsed = JobProgress.safeParse(tryJson(line));
      if (parsed.success) return parsed.data;
    }
    return null;
  }

  private async logTail(dir: string, launch: Launch): Promise<string> {
    const said =
      (await readTail(path.join(dir, 'stderr.log'), LOG_TAIL_BYTES)) || (await readTail(path.join(dir, 'stdout.log'), LOG_TAIL_BYTES));
    return (await this.expired(dir, launch)) ? `${said}\nEnded by its time limit of ${launch.maxSeconds} s (gpu.maxJobSeconds).` : said;
  }
}

function tryJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Folders and thread counts may differ between starts of one job; what it is asked for may not. */
function digestOfInput(spec: JobSpec): string {
  return createHash('sha256')
    .update(JSON.stringify({ version: spec.version, job: spec.job, input: sorted(spec.input) }))
    .digest('hex');
}

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, inner]) => [key, sorted(inner)]),
  );
}

/** Every library that starts threads by itself is told how many. */
function threadLimits(threads: number): Record<string, string> {
  return Object.fromEntries(
    ['OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'NUMEXPR_NUM_THREADS', 'VECLIB_MAXIMUM_THREADS'].map((name) => [
      name,
      String(threads),
    ]),
  );
}

function pythonPath(own: string | undefined): string {
  const jobs = path.join(packageRoot, 'gpu-jobs');
  return own ? `${jobs}${path.delimiter}${own}` : jobs;
}

async function exists(file: string): Promise<boolean> {
  return (await fs.stat(file).catch(() => null)) !== null;
}
