import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ChildFailedError, exitCodeOf } from '../../src/cli/exit.js';
import { type ChildEvent, Supervisor } from '../../src/cli/supervisor.js';
import { homePaths, type HomePaths, readServices } from '../../src/platform/home.js';
import { takeLock } from '../../src/platform/lock.js';
import { isAlive, processStart, waitUntil } from '../../src/platform/process.js';

const service = fileURLToPath(new URL('./fixtures/service.mjs', import.meta.url));
const parent = fileURLToPath(new URL('./fixtures/parent.mjs', import.meta.url));

let folder: string;
let paths: HomePaths;
let journal: string;
let supervisor: Supervisor;
beforeEach(() => {
  folder = mkdtempSync(path.join(os.tmpdir(), 'flywheel-supervisor-'));
  paths = homePaths(path.join(folder, 'home'));
  journal = path.join(folder, 'journal');
  supervisor = new Supervisor(paths);
});
afterEach(async () => {
  await supervisor.stopAll();
  rmSync(folder, { recursive: true, force: true });
});

const lines = (): string[] => (existsSync(journal) ? readFileSync(journal, 'utf8').trimEnd().split('\n') : []);
const child = (name: string, behaviour = 'good', more: object = {}) => ({
  name,
  command: process.execPath,
  args: [service, behaviour, journal],
  ipc: true,
  ...more,
});

async function identity(name: string): Promise<{ pid: number; start: string }> {
  const pid = supervisor.pid(name) ?? 0;
  return { pid, start: (await processStart(pid)) ?? 'gone' };
}

describe('a supervised child', () => {
  it('is ready when it says so, and what it says is handed on', async () => {
    const info = await supervisor.start(child('a'));
    expect(info).toEqual({ pid: supervisor.pid('a') });
  });

  it('is noted by id and start time while it runs, and no longer after', async () => {
    await supervisor.start(child('a'));
    expect(readServices(paths).children).toEqual({ a: await identity('a') });
    await supervisor.stop('a');
    expect(readServices(paths).children).toEqual({});
  });

  it('is started again when it was killed', async () => {
    await supervisor.start(child('a'));
    const before = await identity('a');
    const events: ChildEvent[] = [];
    supervisor.on('child', (event) => events.push(event));
    process.kill(before.pid, 'SIGKILL');
    expect(await waitUntil(() => events.some((event) => event.kind === 'restarted'), 15_000)).toBe(true);
    expect(events[0]).toEqual({ name: 'a', kind: 'ended', detail: 'ended by SIGKILL' });
    const after = await identity('a');
    expect(after.pid).not.toBe(before.pid);
    expect(await isAlive(after.pid, after.start)).toBe(true);
  });

  it('is not started again once it was stopped', async () => {
    await supervisor.start(child('a'));
    const before = await identity('a');
    await supervisor.stop('a');
    expect(await isAlive(before.pid, before.start)).toBe(false);
    expect(lines()).toEqual([`start ${before.pid}`, `term ${before.pid}`]);
  });

  it('is killed when it does not end within its grace', async () => {
    await supervisor.start(child('a', 'stubborn', { graceMs: 300 }));
    const before = await identity('a');
    await supervisor.stop('a');
    expect(await isAlive(before.pid, before.start)).toBe(false);
    expect(lines()).toContain(`term ${before.pid}`);
  });

  it('that dies before it is ready is tried three times, then given up with the end of its log', async () => {
    await expect(supervisor.start(child('a', 'dies'))).rejects.toThrow(/a did not start: ended with code 7/);
    expect(lines()).toHaveLength(3);
  });

  it('that refuses its input is not tried again, and its exit code is kept', async () => {
    const error = await supervisor.start(child('a', 'bad-input')).catch((caught: unknown) => caught);
    expect(error).toBeInstanceOf(ChildFailedError);
    expect((error as Error).message).toContain('the configuration is wrong');
    expect(exitCodeOf(error)).toBe(2);
    expect(lines()).toHaveLength(1);
  });

  it('that never says that it is ready is ended', async () => {
    await expect(supervisor.start(child('a', 'silent', { readyWithinMs: 700 }))).rejects.toThrow('not ready after');
    expect(readServices(paths).children).toEqual({});
  });
});

describe('all children', () => {
  it('are ended in reverse order of their start', async () => {
    await supervisor.start(child('a'));
    await supervisor.start(child('b'));
    const [a, b] = [supervisor.pid('a') ?? 0, supervisor.pid('b') ?? 0];
    await supervisor.stopAll();
    expect(lines().filter((line) => line.startsWith('term'))).toEqual([`term ${b}`, `term ${a}`]);
  });

  it('of a killed supervisor end: those with a channel by themselves, the others at the next start', async () => {
    const killed = spawn(process.execPath, [parent, paths.root, journal], { stdio: ['ignore', 'pipe', 'inherit'] });
    await new Promise((resolve) => killed.stdout.once('data', resolve));
    const { linked, unlinked } = readServices(paths).children;
    expect(linked && unlinked).toBeTruthy();
    killed.kill('SIGKILL');
    expect(await waitUntil(async () => !(await isAlive(linked?.pid ?? 0, linked?.start ?? '')), 10_000)).toBe(true);
    expect(lines()).toContain(`orphaned ${linked?.pid ?? 0}`);
    expect(await isAlive(unlinked?.pid ?? 0, unlinked?.start ?? '')).toBe(true);

    expect(await supervisor.endLeftovers()).toEqual(['unlinked']);
    expect(await isAlive(unlinked?.pid ?? 0, unlinked?.start ?? '')).toBe(false);
    expect(readServices(paths).children).toEqual({});
  });

  it('of a note whose ids belong to other processes by now are let be', async () => {
    const own = { pid: process.pid, start: 'another time' };
    await supervisor.note({ children: { a: own } });
    expect(await new Supervisor(paths).endLeftovers()).toEqual([]);
  });
});

describe('the lock on a home', () => {
  it('refuses a second holder while the first lives, naming it', async () => {
    const lock = await takeLock(paths.lock, 'The home');
    await expect(takeLock(paths.lock, 'The home')).rejects.toThrow(`The home is held by process ${process.pid}, which runs`);
    lock.release();
    (await takeLock(paths.lock, 'The home')).release();
  });

  it('ends with its holder, however that ended', async () => {
    const holder = spawn(process.execPath, [parent, paths.root, journal, 'lock'], { stdio: ['ignore', 'pipe', 'inherit'] });
    await new Promise((resolve) => holder.stdout.once('data', resolve));
    await expect(takeLock(paths.lock, 'The home')).rejects.toThrow(`held by process ${holder.pid ?? 0}`);
    holder.kill('SIGKILL');
    await new Promise((resolve) => holder.once('exit', resolve));
    (await takeLock(paths.lock, 'The home')).release();
  });

  it('goes to exactly one of many takers', async () => {
    const results = await Promise.allSettled(Array.from({ length: 8 }, () => takeLock(paths.lock, 'The home')));
    const taken = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
    expect(taken).toHaveLength(1);
    taken[0]?.release();
  });
});
