import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { readdir, readFile, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { describe, expect, it } from 'vitest';
import type { JobSpec } from '../../src/domain/contracts/jobs.js';
import { BadInputError, JobFailedError } from '../../src/domain/errors.js';
import { compiledEntry } from '../../src/platform/entry.js';
import { EXIT_TIME_LIMIT, jobDir, LocalGpu } from '../../src/platform/gpu/local.js';
import { processStart, waitUntil } from '../../src/platform/process.js';
import { atEnd, ended, startNode, temporaryFolder } from './support.js';

const fakeJob = fileURLToPath(new URL('./fixtures/fakeJob.mjs', import.meta.url));
const command = [process.execPath, fakeJob];
const limits = { maxSeconds: 600, nice: 5 };

async function bench(): Promise<{ gpu: LocalGpu; jobs: string; spec(behaviour: string, name?: string): JobSpec; dir: string }> {
  const jobs = path.join(await temporaryFolder(), 'jobs');
  const gpu = new LocalGpu({ jobs, command });
  atEnd(async () => {
    for (const name of await gpu.listOwned()) await gpu.end(name, 0);
  });
  const spec = (behaviour: string, name = 'turn-1-train'): JobSpec => ({
    version: 1,
    job: 'train',
    name,
    objects: { kind: 'file', root: path.join(jobs, 'objects') },
    cacheDir: path.join(jobs, 'cache'),
    workDir: jobDir(jobs, name),
    threads: 1,
    input: { behaviour },
  });
  return { gpu, jobs, spec, dir: jobDir(jobs, 'turn-1-train') };
}

async function until(what: string, done: () => Promise<boolean> | boolean): Promise<void> {
  if (!(await waitUntil(done, 20_000))) throw new Error(`waited 20 s in vain: ${what}`);
}
const up = (dir: string): Promise<void> => until('the job is up', () => existsSync(path.join(dir, 'up')));
const over = (gpu: LocalGpu, name = 'turn-1-train'): Promise<void> =>
  until('the job ended', async () => (await gpu.status(name)).state === 'ended');
const starts = async (dir: string): Promise<number[]> => (await readFile(path.join(dir, 'starts'), 'utf8')).trim().split('\n').map(Number);
const gone = async (pid: number): Promise<boolean> => (await processStart(pid)) === null;
/** The file a launch's wrapper wrote: `<pid> <start>`. */
const wrapperFile = async (dir: string): Promise<string> =>
  path.join(
    dir,
    (await readdir(dir)).find((name) => name.startsWith('wrapper.'))!,
  );
const wrapperPid = async (dir: string): Promise<number> => Number((await readFile(await wrapperFile(dir), 'utf8')).split(' ')[0]);

describe('the local GPU backend', () => {
  it('runs a job to its end, niced and with capped threads, and knows its exit code', async () => {
    const { gpu, spec, dir } = await bench();
    expect(await gpu.launchOrAdopt(spec('waiting'), limits)).toEqual({ adopted: false });
    await up(dir);
    expect(os.getPriority((await starts(dir))[0])).toBe(os.getPriority() + 5);
    await writeFile(path.join(dir, 'go'), '');
    await over(gpu);
    expect(await gpu.status('turn-1-train')).toMatchObject({ state: 'ended', exitCode: 0 });
    expect(JSON.parse(await readFile(path.join(dir, 'result.json'), 'utf8'))).toMatchObject({ ok: true, output: { threads: '1' } });
  });

  it('tells the last progress while it runs, also when the last line is half written', async () => {
    const { gpu, spec, dir } = await bench();
    await gpu.launchOrAdopt(spec('waiting'), limits);
    await up(dir);
    await writeFile(path.join(dir, 'progress.jsonl'), '{"phase":"epoch","done":3,"total":10,"unit":"steps"}\n{"phase":"epo');
    expect(await gpu.status('turn-1-train')).toEqual({ state: 'running', progress: { phase: 'epoch', done: 3, total: 10, unit: 'steps' } });
    expect(await gpu.listOwned()).toEqual(['turn-1-train']);
  });

  it('keeps the exit code and the end of the log of a job that failed', async () => {
    const { gpu, spec } = await bench();
    await gpu.launchOrAdopt(spec('bad'), limits);
    await over(gpu);
    expect(await gpu.status('turn-1-train')).toEqual({ state: 'ended', exitCode: 65, logTail: 'the data is wrong\n' });
  });

  it('knows nothing of a job that was never launched, and ends it without complaint', async () => {
    const { gpu } = await bench();
    expect(await gpu.status('nobody')).toEqual({ state: 'unknown' });
    await gpu.end('nobody', 0);
    expect(await gpu.listOwned()).toEqual([]);
  });

  it('adopts a running job instead of starting it twice, also from two calls at once', async () => {
    const { gpu, spec, dir } = await bench();
    const both = await Promise.all([gpu.launchOrAdopt(spec('waiting'), limits), gpu.launchOrAdopt(spec('waiting'), limits)]);
    expect(both.map((one) => one.adopted).sort()).toEqual([false, true]);
    await up(dir);
    expect(await gpu.launchOrAdopt(spec('waiting'), limits)).toEqual({ adopted: true });
    expect(await starts(dir)).toHaveLength(1);
  });

  it('adopts a finished job without running it again', async () => {
    const { gpu, spec, dir } = await bench();
    await gpu.launchOrAdopt(spec('quick'), limits);
    await over(gpu);
    expect(await gpu.launchOrAdopt(spec('quick'), limits)).toEqual({ adopted: true });
    expect(await starts(dir)).toHaveLength(1);
  });

  it('does not take the answer to another question under the same name', async () => {
    const { gpu, spec, dir } = await bench();
    await gpu.launchOrAdopt(spec('quick'), limits);
    await over(gpu);
    expect(await gpu.launchOrAdopt(spec('waiting'), limits)).toEqual({ adopted: false });
    await up(dir);
    expect(existsSync(path.join(dir, 'result.json'))).toBe(false);
    expect(await gpu.status('turn-1-train')).toMatchObject({ state: 'running' });
  });

  it('adopts a job whose launcher was killed, and learns its exit code', async () => {
    const { gpu, spec, dir, jobs } = await bench();
    const { child } = await startNode(
      `const { LocalGpu } = await import(${JSON.stringify(pathToFileURL(compiledEntry('platform/gpu/local')).href)});
       const gpu = new LocalGpu({ jobs: ${JSON.stringify(jobs)}, command: ${JSON.stringify(command)} });
       await gpu.launchOrAdopt(${JSON.stringify(spec('waiting'))}, ${JSON.stringify(limits)});
       console.log('launched');
       setInterval(() => {}, 1000);`,
    );
    child.kill('SIGKILL');
    await ended(child);
    await up(dir);
    expect(await gpu.launchOrAdopt(spec('waiting'), limits)).toEqual({ adopted: true });
    await writeFile(path.join(dir, 'go'), '');
    await over(gpu);
    expect(await gpu.status('turn-1-train')).toMatchObject({ exitCode: 0 });
    expect(await starts(dir)).toHaveLength(1);
  });

  it('starts a killed job again in the same folder, where its checkpoint is', async () => {
    const { gpu, spec, dir } = await bench();
    await gpu.launchOrAdopt(spec('resume'), limits);
    await up(dir);
    await writeFile(path.join(dir, 'checkpoint'), 'x');
    process.kill((await starts(dir))[0]!, 'SIGKILL');
    await over(gpu);
    expect(await gpu.status('turn-1-train')).toMatchObject({ exitCode: 137 });
    expect(await gpu.launchOrAdopt(spec('resume'), limits)).toEqual({ adopted: false });
    await over(gpu);
    expect(await gpu.status('turn-1-train')).toMatchObject({ exitCode: 0 });
    expect(await starts(dir)).toHaveLength(2);
  });

  it.runIf(process.platform === 'linux')(
    'ends a job that lost its wrapper before it starts it again, so that never two write one checkpoint',
    async () => {
      const { gpu, spec, dir } = await bench();
      await gpu.launchOrAdopt(spec('waiting'), limits);
      await up(dir);
      const [orphan] = await starts(dir);
      process.kill(await wrapperPid(dir), 'SIGKILL');
      await until('the wrapper is gone', async () => gone(await wrapperPid(dir)));
      expect(await gpu.status('turn-1-train')).toMatchObject({ state: 'running' });
      expect(await gpu.launchOrAdopt(spec('waiting'), limits)).toEqual({ adopted: false });
      expect(await gone(orphan!)).toBe(true);
      await until('the second start', async () => (await starts(dir)).length === 2);
    },
  );

  it('does not take another process that has the recorded id by now for the job, and leaves it alone', async () => {
    const { gpu, spec, dir } = await bench();
    await gpu.launchOrAdopt(spec('resume'), limits);
    await up(dir);
    await gpu.end('turn-1-train', 10_000);
    const stranger = spawn('sleep', ['600'], { stdio: 'ignore', detached: true });
    atEnd(() => void stranger.kill('SIGKILL'));
    // The job as a crash would have left it: no exit code, and its id given to a stranger.
    const wrapper = await wrapperFile(dir);
    const [, start] = (await readFile(wrapper, 'utf8')).trim().split(' ');
    await writeFile(wrapper, `${stranger.pid} ${start}\n`);
    for (const name of await readdir(dir)) if (name.startsWith('exitcode') || name === 'result.json') await rm(path.join(dir, name));
    expect(await gpu.status('turn-1-train')).toMatchObject({ state: 'ended', exitCode: null });
    await gpu.end('turn-1-train', 0);
    expect(await gpu.launchOrAdopt(spec('resume'), limits)).toEqual({ adopted: false });
    expect(await gone(stranger.pid!)).toBe(false);
  });

  it('lets a job write its checkpoint when it is ended', async () => {
    const { gpu, spec, dir } = await bench();
    await gpu.launchOrAdopt(spec('waiting'), limits);
    await up(dir);
    await gpu.end('turn-1-train', 20_000);
    expect(existsSync(path.join(dir, 'checkpoint'))).toBe(true);
    expect(await gpu.status('turn-1-train')).toMatchObject({ state: 'ended', exitCode: 75 });
    await gpu.end('turn-1-train', 20_000);
  });

  it('ends a job that does not listen, with everything it started', async () => {
    const { gpu, spec, dir } = await bench();
    await gpu.launchOrAdopt(spec('family'), limits);
    await until('its child is up', () => existsSync(path.join(dir, 'up')));
    const child = Number(await readFile(path.join(dir, 'child'), 'utf8'));
    await gpu.end('turn-1-train', 20_000);
    expect(await gone(child)).toBe(true);

    await rm(path.join(dir, 'up'));
    await gpu.launchOrAdopt(spec('deaf'), limits);
    await up(dir);
    await gpu.end('turn-1-train', 200);
    expect(await gone((await starts(dir)).at(-1)!)).toBe(true);
    expect(await gpu.listOwned()).toEqual([]);
  });

  it('ends a job at its time limit though nobody watches, says so, and starts it again only with a higher limit', async () => {
    const { gpu, spec, dir } = await bench();
    await gpu.launchOrAdopt(spec('waiting'), { maxSeconds: 1, nice: 0 });
    await over(gpu);
    expect(await gpu.status('turn-1-train')).toMatchObject({
      state: 'ended',
      exitCode: EXIT_TIME_LIMIT,
      logTail: expect.stringContaining('time limit of 1 s') as string,
    });
    expect(existsSync(path.join(dir, 'checkpoint'))).toBe(true);
    await expect(gpu.launchOrAdopt(spec('waiting'), { maxSeconds: 1, nice: 0 })).rejects.toThrow(JobFailedError);
    expect(await gpu.launchOrAdopt(spec('waiting'), limits)).toEqual({ adopted: false });
  });

  it('leaves no process of its own behind when a job ended', async () => {
    const { gpu, spec, dir } = await bench();
    await gpu.launchOrAdopt(spec('quick'), limits);
    await over(gpu);
    const group = await wrapperPid(dir);
    await until('the group is empty', () => {
      try {
        process.kill(-group, 0);
        return false;
      } catch {
        return true;
      }
    });
  });

  it('says when its command cannot be run', async () => {
    const { jobs, spec } = await bench();
    const gpu = new LocalGpu({ jobs, command: ['/nowhere/python'] });
    await gpu.launchOrAdopt(spec('quick'), limits);
    await over(gpu);
    const status = await gpu.status('turn-1-train');
    expect(status).toMatchObject({ exitCode: 127 });
    expect('logTail' in status && status.logTail).toContain('/nowhere/python');
  });

  it('reserves the whole time limit, rounded up to a cent', async () => {
    const gpu = new LocalGpu({ jobs: path.join(await temporaryFolder(), 'jobs'), command, centsPerHour: 10 });
    expect(await gpu.offer(3600)).toEqual({ centsPerHour: 10, reserveCents: 10 });
    expect(await gpu.offer(1)).toEqual({ centsPerHour: 10, reserveCents: 1 });
  });

  it('gives every name a folder of its own, below the folder of jobs', () => {
    const names = ['a/b', 'a-b', 'a b', '../a', '..', '.hidden', 'turn-2026-01-01T02:00:00Z/train', 'x'.repeat(300)];
    const dirs = names.map((name) => jobDir('/jobs', name));
    expect(new Set(dirs).size).toBe(names.length);
    for (const dir of dirs) expect(path.dirname(dir)).toBe('/jobs');
    for (const dir of dirs) expect(path.basename(dir)).toMatch(/^[A-Za-z0-9][A-Za-z0-9._-]*$/);
    expect(() => new LocalGpu({ jobs: 'relative', command })).toThrow(BadInputError);
  });
});
