/**
 * `kill -9` of the worker, of a training job, of the miner and of the Temporal server, each once in one seeded turn, and of
 * `up` itself: the turn ends with the same snapshot, weights and verdict as an undisturbed one.
 */
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, describe, expect, it } from 'vitest';
import { openCatalogReadOnly } from '../../src/platform/catalog/index.js';
import { homePaths, readServices } from '../../src/platform/home.js';
import type { TurnResult } from '../../src/domain/turnSummary.js';
import { resultOf, start, temporaryHome, type Running } from '../e2e/support.js';

const PATIENCE_MS = 600_000;

interface Facts {
  result: TurnResult;
  snapshot: string;
  champion: string;
  candidate: string;
}

async function factsOf(home: string, result: TurnResult): Promise<Facts> {
  const catalog = await openCatalogReadOnly(homePaths(home).catalog);
  try {
    const turn = await catalog.turn('turn-0001');
    const models = await catalog.models();
    const bundle = (id: string | undefined) => models.find((m) => m.id === id)?.bundle ?? '';
    return {
      result,
      snapshot: (turn?.summary['snapshot'] as { snapshot: string }).snapshot,
      champion: bundle(result.champion?.id),
      candidate: bundle(result.candidate?.id),
    };
  } finally {
    await catalog.close();
  }
}

async function until(what: string, condition: () => boolean | Promise<boolean>, running: Running): Promise<void> {
  const deadline = Date.now() + PATIENCE_MS;
  while (!(await condition())) {
    if (running.child.exitCode !== null) throw new Error(`up ended before "${what}":\n${running.err().slice(-3000)}`);
    if (Date.now() > deadline) throw new Error(`"${what}" did not come:\n${running.err().slice(-3000)}`);
    await sleep(50);
  }
}

/** The process that computes a job, found by its own lock-free sign of life: the wrapper's child is what is killed. */
function jobPids(home: string, part: string): number[] {
  const pids: number[] = [];
  for (const entry of readdirSync('/proc').filter((e) => /^\d+$/.test(e))) {
    try {
      const command = readFileSync(`/proc/${entry}/cmdline`, 'utf8').split('\0');
      if (
        command.some((c) => c.includes(path.join(home, 'jobs')) && c.includes(part) && c.endsWith('spec.json')) &&
        command.some((c) => c.includes('python'))
      )
        pids.push(Number(entry));
    } catch {
      // ended meanwhile
    }
  }
  return pids;
}

describe.runIf(process.platform === 'linux')('kill -9 in the middle of a turn', () => {
  const calm = temporaryHome();
  const rough = temporaryHome();
  afterAll(() => {
    calm.remove();
    rough.remove();
  });

  it('changes neither snapshot nor weights nor verdict', async () => {
    const undisturbed = start(['up', '--once', '--json', '--home', calm.home, '--config', calm.config]);
    const calmRan = await undisturbed.ended;
    expect(calmRan.code, calmRan.err.slice(-3000)).toBe(0);
    const expected = await factsOf(calm.home, resultOf(calmRan));

    const args = ['up', '--once', '--json', '--home', rough.home, '--config', rough.config];
    let running = start(args);
    const killed: string[] = [];
    const kill = (what: string, pid: number | undefined) => {
      expect(pid, what).toBeTypeOf('number');
      process.kill(pid as number, 'SIGKILL');
      killed.push(what);
    };
    const child = (name: string) => readServices(homePaths(rough.home)).children[name]?.pid;

    await until('training of the first champion', () => jobPids(rough.home, 'train').length > 0, running);
    await sleep(1500);
    for (const pid of jobPids(rough.home, 'train').slice(0, 1)) kill('training job', pid);

    await until('the worker at work after it', () => existsSync(path.join(rough.home, 'champion.json')), running);
    kill('worker', child('worker'));

    const segments = path.join(rough.home, 'journal', 'segments');
    await until('traffic', () => existsSync(segments) && readdirSync(segments).length > 0, running);
    kill('miner', child('miner'));

    await until('synthesis', () => readdirSync(path.join(rough.home, 'jobs')).some((j) => j.includes('synthesize')), running);
    kill('temporal', child('temporal'));

    await until('the retrain', () => readdirSync(path.join(rough.home, 'jobs')).some((j) => /turn-0001-train/.test(j)), running);
    kill('up', running.child.pid);
    await running.ended;
    await sleep(500);
    running = start(args);
    const roughRan = await running.ended;
    expect(roughRan.code, `${roughRan.err.slice(-3000)}`).toBe(0);
    expect(killed).toEqual(['training job', 'worker', 'miner', 'temporal', 'up']);
    const got = await factsOf(rough.home, resultOf(roughRan));

    expect(got.snapshot).toBe(expected.snapshot);
    // Bundles are named by the digest of all their weights: equal names are equal weights, to the last bit.
    expect(got.champion).toBe(expected.champion);
    expect(got.candidate).toBe(expected.candidate);
    expect(got.result.verdict.decision).toBe(expected.result.verdict.decision);
    expect(got.result.champion?.metrics.heldOut).toEqual(expected.result.champion?.metrics.heldOut);
    expect(got.result.candidate?.metrics.challenges).toEqual(expected.result.candidate?.metrics.challenges);
  });
});
