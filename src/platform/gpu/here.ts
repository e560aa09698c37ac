/** One job on this machine, started and awaited: for commands that need no Temporal. */
import { promises as fs } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  JOB_CONTRACT_VERSION,
  JobResult,
  JOBS,
  type JobInput,
  type JobKind,
  type JobOutput,
  type JobProgress,
} from '../../domain/contracts/jobs.js';
import { BadInputError, JobFailedError } from '../../domain/errors.js';
import type { HomePaths } from '../home.js';
import { jobDir, LocalGpu } from './local.js';

const LOOK_EVERY_MS = 200;
const END_GRACE_MS = 5000;

export interface HereOptions<K extends JobKind> {
  home: Pick<HomePaths, 'jobs' | 'objects' | 'cache'>;
  /** interpreter of the jobs' environment */
  python: string;
  kind: K;
  /** the same name and input adopt what is there already */
  name: string;
  input: JobInput<K>;
  threads: number;
  nice: number;
  maxSeconds: number;
  onProgress?: (progress: JobProgress) => void;
  signal?: AbortSignal;
}

/** @throws BadInputError for bad input, JobFailedError for any other failure, the signal's reason; the job is ended before it throws */
export async function runJobHere<K extends JobKind>(options: HereOptions<K>): Promise<JobOutput<K>> {
  const { home, kind, name } = options;
  const gpu = new LocalGpu({ jobs: home.jobs, command: [options.python, '-m', 'flywheel_jobs.cli'] });
  const workDir = jobDir(home.jobs, name);
  try {
    await gpu.launchOrAdopt(
      {
        version: JOB_CONTRACT_VERSION,
        job: kind,
        name,
        objects: { kind: 'file', root: home.objects },
        cacheDir: home.cache,
        workDir,
        threads: options.threads,
        input: options.input,
      },
      { maxSeconds: options.maxSeconds, nice: options.nice },
    );
    for (;;) {
      options.signal?.throwIfAborted();
      const status = await gpu.status(name);
      if (status.state === 'running') {
        if (status.progress) options.onProgress?.(status.progress);
        await sleep(LOOK_EVERY_MS);
        continue;
      }
      const said = await readResult(path.join(workDir, 'result.json'));
      if (said?.ok === true) return JOBS[kind].output.parse(said.output) as JobOutput<K>;
      const why = said ? said.error.message : status.state === 'ended' ? status.logTail.slice(-2000) : 'it left no trace';
      if (said?.error.kind === 'bad-input') throw new BadInputError(why);
      throw new JobFailedError(`The ${kind} job failed: ${why}. Its folder ${workDir} is kept.`);
    }
  } finally {
    await gpu.end(name, END_GRACE_MS);
  }
}

async function readResult(file: string): Promise<JobResult | null> {
  try {
    return JobResult.parse(JSON.parse(await fs.readFile(file, 'utf8')));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}
