/** Shared by the platform's tests: throw-away folders, children that are ended, rows. */
import { spawn, type ChildProcess } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { afterEach } from 'vitest';
import type { ImageRow } from '../../src/domain/contracts/common.js';
import type { JournalRecord } from '../../src/domain/contracts/miner.js';

const cleanups: (() => Promise<void> | void)[] = [];

/** Runs at the end of the test, the last one first. */
export function atEnd(work: () => Promise<void> | void): void {
  cleanups.push(work);
}

afterEach(async () => {
  for (const work of cleanups.splice(0).reverse()) await work();
});

export async function temporaryFolder(): Promise<string> {
  const dir = await mkdtemp(path.join(os.tmpdir(), 'flywheel-test-'));
  atEnd(() => rm(dir, { recursive: true, force: true }));
  return dir;
}

export const digest = (name: string): string => createHash('sha256').update(name).digest('hex');

export function image(name: string, over: Partial<ImageRow> = {}): ImageRow {
  return {
    digest: digest(name),
    label: 1,
    truth: 'truth',
    pool: 'train',
    group: `group of ${name}`,
    source: 'test',
    parents: [],
    provider: null,
    intent: null,
    weight: 1,
    width: 400,
    height: 300,
    ...over,
  };
}

export function answer(id: string, over: Partial<JournalRecord> = {}): JournalRecord {
  return {
    v: 1,
    id,
    at: 1000,
    image: digest(id),
    bytes: 10,
    prediction: 0.7,
    votes: { a: 0.6, b: 0.8 },
    latencyMs: 12.5,
    validator: 'validator',
    model: digest('model'),
    generation: 1,
    shadow: null,
    ...over,
  };
}

/** A Node program of its own, fed the script; killed at the end of the test. Resolves with the first line it prints. */
export async function startNode(script: string, ...args: string[]): Promise<{ child: ChildProcess; line: string }> {
  const child = spawn(process.execPath, ['--input-type=module', '-e', script, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  atEnd(async () => {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill('SIGKILL');
      await new Promise((resolve) => child.once('exit', resolve));
    }
  });
  let said = '';
  let complained = '';
  child.stderr.on('data', (chunk: Buffer) => (complained += chunk.toString()));
  const line = await new Promise<string>((resolve, reject) => {
    child.stdout.on('data', (chunk: Buffer) => {
      said += chunk.toString();
      const end = said.indexOf('\n');
      if (end >= 0) resolve(said.slice(0, end));
    });
    child.once('exit', (code) => reject(new Error(`ended with ${code} before it said anything: ${complained}`)));
  });
  return { child, line };
}

export function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
  return new Promise((resolve) => child.once('exit', () => resolve()));
}
