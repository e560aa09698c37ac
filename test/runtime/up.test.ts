import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { afterAll, afterEach, describe, expect, it } from 'vitest';
import { EXIT } from '../../src/cli/exit.js';
import { packageRoot } from '../../src/platform/entry.js';
import { homePaths, type ProcessNote, readServices } from '../../src/platform/home.js';
import { isAlive, waitUntil } from '../../src/platform/process.js';

// Runs the built command: `npm test` builds first.
const folder = mkdtempSync(path.join(os.tmpdir(), 'flywheel-up-'));
const started: ChildProcess[] = [];
afterEach(async () => {
  for (const child of started.splice(0)) {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill('SIGINT');
      await new Promise((resolve) => child.once('exit', resolve));
    }
  }
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 250 });
});

interface Up {
  child: ChildProcess;
  output: () => string;
  ended: Promise<number | null>;
}

function up(home: string, ...more: string[]): Up {
  const child = spawn(process.execPath, [path.join(packageRoot, 'bin', 'flywheel.js'), 'up', '--home', home, ...more], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, CI: 'true', TEMPORAL_ADDRESS: '' },
  });
  started.push(child);
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk: Buffer) => (output += chunk.toString()));
  return { child, output: () => output, ended: new Promise((resolve) => child.once('close', (code) => resolve(code))) };
}

async function children(home: string, running: Up): Promise<Record<string, ProcessNote>> {
  const paths = homePaths(home);
  const there = await waitUntil(
    () =>
      ['temporal', 'miner', 'worker'].every((name) => readServices(paths).children[name] !== undefined) || running.child.exitCode !== null,
    90_000,
    100,
  );
  if (!there || running.child.exitCode !== null) throw new Error(`up did not come up:\n${running.output()}`);
  return readServices(paths).children;
}

async function living(notes: Record<string, ProcessNote>): Promise<string[]> {
  const alive = await Promise.all(Object.entries(notes).map(async ([name, note]) => ((await isAlive(note.pid, note.start)) ? name : null)));
  return alive.filter((name) => name !== null);
}

describe('flywheel up', () => {
  it('refuses a second instance on its home, and on Ctrl-C leaves nothing running', { timeout: 180_000 }, async () => {
    const home = path.join(folder, 'one');
    const first = up(home);
    const notes = await children(home, first);

    const second = up(home);
    expect(await second.ended).toBe(EXIT.busy);
    expect(second.output()).toContain(`is held by process ${first.child.pid ?? 0}`);

    // In the middle of the turn, with calls to Temporal under way.
    expect(await waitUntil(() => first.output().includes('[flywheel] import'), 60_000)).toBe(true);
    first.child.kill('SIGINT');
    expect(await first.ended).toBe(EXIT.interrupted);
    expect(await living(notes)).toEqual([]);
    expect(first.output()).not.toContain('at Timeout');
    expect(readServices(homePaths(home))).toEqual({ up: null, temporal: null, miner: null, children: {} });
  });

  it('after a kill ends what was left and comes up on the same home', { timeout: 240_000 }, async () => {
    const home = path.join(folder, 'two');
    const first = up(home);
    const before = await children(home, first);
    first.child.kill('SIGKILL');
    await first.ended;

    const second = up(home);
    const said = await waitUntil(() => second.output().includes('ended what a killed instance had left running'), 60_000);
    expect(said).toBe(true);
    const after = await children(home, second);
    expect(await living(before)).toEqual([]);
    expect(after.temporal?.pid).not.toBe(before.temporal?.pid);
    second.child.kill('SIGTERM');
    expect(await second.ended).toBe(EXIT.terminated);
    expect(await living(after)).toEqual([]);
  });

  it('refuses a port that was asked for by name and is in use, before anything is started', { timeout: 60_000 }, async () => {
    const taken = net.createServer();
    const port = await new Promise<number>((resolve) => {
      taken.listen(0, '127.0.0.1', () => resolve((taken.address() as net.AddressInfo).port));
    });
    try {
      const home = path.join(folder, 'three');
      const refused = up(home, '--port', String(port));
      expect(await refused.ended).toBe(EXIT.unavailable);
      expect(refused.output()).toContain(`Port ${port} of 127.0.0.1, asked for by name for the miner, is in use`);
      expect(refused.output()).not.toContain('temporal');
    } finally {
      taken.close();
    }
  });
});
