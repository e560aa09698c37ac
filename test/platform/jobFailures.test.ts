import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { MockActivityEnvironment } from '@temporalio/testing';
import { pino } from 'pino';
import { describe, expect, it } from 'vitest';
import { jobActivities, type JobEnd } from '../../src/activities/jobs.js';
import type { ActivityDeps } from '../../src/activities/deps.js';
import { exitOf, JOB_EXIT, JOB_FAILURES, jobFailure, JobFailureReason, JobResult } from '../../src/domain/contracts/jobs.js';
import { LocalGpu } from '../../src/platform/gpu/local.js';
import { atEnd, temporaryFolder } from './support.js';

/**
 * A real process as the job: it dies as the script says. The deps of the activities under test are real where they matter (backend,
 * folders) and left out where they don't.
 */
async function bench(script: string) {
  const home = await temporaryFolder();
  const file = path.join(home, 'job.mjs');
  await writeFile(
    file,
    `import { readFileSync, appendFileSync, writeFileSync } from 'node:fs';
     const spec = JSON.parse(readFileSync(process.argv[3], 'utf8'));
     appendFileSync(${JSON.stringify(path.join(home, 'divisors'))}, (spec.batchDivisor ?? 1) + '\\n');
     const end = (code, error) => {
       if (error) writeFileSync(spec.workDir + '/result.json', JSON.stringify({ version: 1, job: spec.job, name: spec.name, ok: false, error, seconds: 0 }));
       process.exit(code);
     };
     ${script}`,
  );
  const jobs = path.join(home, 'jobs');
  const gpu = new LocalGpu({ jobs, command: [process.execPath, file] });
  atEnd(async () => {
    for (const name of await gpu.listOwned()) await gpu.end(name, 0);
  });
  const deps = {
    gpu,
    home: { jobs, objects: path.join(home, 'objects'), cache: path.join(home, 'cache') },
    config: { gpu: { threads: 1, nice: 0 } },
    log: pino({ level: 'silent' }),
  } as unknown as ActivityDeps;
  const { launchJob, watchJob } = jobActivities(deps);
  const start = async (): Promise<JobEnd> => {
    const env = new MockActivityEnvironment();
    await env.run(launchJob, { name: 'job', kind: 'render' as const, input: { count: 1, seed: 1 }, maxSeconds: 60, turn: 'turn-1' });
    const end: unknown = await env.run(watchJob, { name: 'job', turn: 'turn-1', kind: 'render' });
    return end as JobEnd;
  };
  return { start, divisors: path.join(home, 'divisors') };
}

describe('failures of jobs', () => {
  it('each have an exit code of their own that no shell, signal or time limit uses', () => {
    const codes = Object.values(JOB_FAILURES).map((failure) => failure.exit);
    expect(new Set(codes).size).toBe(codes.length);
    for (const code of codes) expect(code > 63 && code < 113).toBe(true);
  });

  it('are found again by their exit code, and their exit code by the result', () => {
    for (const reason of JobFailureReason.options) {
      const { exit, kind } = JOB_FAILURES[reason];
      expect(jobFailure(exit)).toEqual({ reason, kind });
      expect(exitOf({ kind, reason })).toBe(exit);
    }
    for (const code of [null, 0, 1, 124, 127, 137]) expect(jobFailure(code)).toBeNull();
    expect(exitOf({ kind: 'interrupted' })).toBe(JOB_EXIT.interrupted);
  });

  it('are read from results that older jobs wrote without a reason', () => {
    const old = { version: 1, job: 'train', name: 'x', ok: false, error: { kind: 'bad-input', message: 'm' }, seconds: 1 };
    expect(JobResult.parse(old)).toMatchObject({ ok: false, error: { kind: 'bad-input' } });
  });

  it.each([
    ['one-class', 'bad-input'],
    ['disk-full', 'again'],
    ['one-image-too-big', 'out-of-memory'],
  ] as const)('%s makes the job end as %s, with the message of the job', async (reason, outcome) => {
    const { exit, kind } = JOB_FAILURES[reason];
    const { start } = await bench(`end(${exit}, ${JSON.stringify({ kind, reason, message: `told: ${reason}` })})`);
    expect(await start()).toEqual({ outcome, message: `told: ${reason}` });
  });

  it('a job out of memory is started again with its batches halved, until it fits', async () => {
    const { start, divisors } = await bench(
      `if ((spec.batchDivisor ?? 1) < 4) end(76, { kind: 'out-of-memory', reason: 'out-of-memory', message: 'm' }); end(71);`,
    );
    for (let attempt = 0; attempt < 3; attempt++) expect((await start()).outcome).toBe('again');
    // the fourth start: an end that is no shortage of memory keeps what fitted
    await start();
    expect((await readFile(divisors, 'utf8')).trim().split('\n')).toEqual(['1', '2', '4', '4']);
  });

  it('a job that was killed without a word, as a kernel short of memory does, is started again with smaller batches', async () => {
    const { start, divisors } = await bench(`if ((spec.batchDivisor ?? 1) < 4) process.kill(process.pid, 'SIGKILL'); else end(71);`);
    const first = await start();
    expect(first).toMatchObject({ outcome: 'again', message: expect.stringMatching(/killed \(SIGKILL\).*batches halved/) as unknown });
    for (let attempt = 0; attempt < 3; attempt++) await start();
    expect((await readFile(divisors, 'utf8')).trim().split('\n')).toEqual(['1', '2', '4', '4']);
  });

  it.each([
    ['is out of memory', `end(76, { kind: 'out-of-memory', reason: 'out-of-memory', message: 'm' })`],
    ['is killed', `process.kill(process.pid, 'SIGKILL')`],
  ])('a job that %s at the smallest division is given up', async (_, end) => {
    const { start, divisors } = await bench(end);
    const outcomes: string[] = [];
    while (outcomes.at(-1) !== 'out-of-memory' && outcomes.length < 10) outcomes.push((await start()).outcome);
    expect(outcomes).toHaveLength(7);
    expect((await readFile(divisors, 'utf8')).trim().split('\n').at(-1)).toBe('64');
  });
});
