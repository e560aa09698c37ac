/** A writer of the journal is killed at seeded moments, again and again, on one folder: what is there then, and that it goes on. */
import { fork } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { MockActivityEnvironment } from '@temporalio/testing';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { ActivityDeps } from '../../src/activities/deps.js';
import { trafficActivities } from '../../src/activities/traffic.js';
import { seededRng } from '../../src/domain/rng.js';
import { Journal } from '../../src/miner/journal.js';
import { openCatalog } from '../../src/platform/catalog/index.js';
import { homePaths } from '../../src/platform/home.js';
import { journalImagePath, readJournal } from '../../src/platform/journal.js';
import { FileObjectStore } from '../../src/platform/objects/index.js';
import type { Catalog } from '../../src/platform/ports.js';
import { quiet } from '../support/miner.js';

const WRITER = path.join(import.meta.dirname, '..', 'support', 'journalWriter.mjs');
let root: string;
let catalog: Catalog;
beforeEach(async () => {
  root = await mkdtemp(path.join(os.tmpdir(), 'flywheel-killed-'));
  catalog = await openCatalog(path.join(root, 'catalog.db'));
});
afterEach(async () => {
  await catalog.close();
  await rm(root, { recursive: true, force: true });
});

/** Lets a writer go on from that record, and kills it some time after it has written anything. @returns first number not counted as written */
async function writeUntilKilled(dir: string, first: number, sync: string, afterMs: number): Promise<number> {
  const child = fork(WRITER, [dir, String(first), sync, '200000'], { stdio: ['ignore', 'pipe', 'pipe', 'ipc'], execArgv: [] });
  let said = '';
  let failed = '';
  child.stdout!.on('data', (piece: Buffer) => (said += piece.toString()));
  child.stderr!.on('data', (piece: Buffer) => (failed += piece.toString()));
  const closed = once(child, 'close');
  await Promise.race([once(child.stdout!, 'data'), closed]);
  await sleep(afterMs);
  child.kill('SIGKILL');
  await closed;
  expect([child.signalCode, failed]).toEqual(['SIGKILL', '']);
  return Number(said.split('\n').at(-2));
}

describe('a journal whose writer is killed', () => {
  it.each(['interval', 'always'])('holds all that was counted as written, whole and in order, and goes on (%s)', async (sync) => {
    const rng = seededRng(`kill ${sync}`);
    const home = homePaths(root);
    const dir = home.journal;
    const objects = new FileObjectStore(path.join(root, 'objects'));
    const ingest = (): Promise<{ added: number }> =>
      new MockActivityEnvironment().run(
        trafficActivities({ catalog, objects, home, clock: Date.now, log: quiet } as unknown as ActivityDeps).ingestJournal,
      );
    let next = 0;
    let added = 0;
    for (let kill = 0; kill < 5; kill++) {
      const written = await writeUntilKilled(dir, next, sync, 250 * rng.next());
      const parts = await readJournal(dir);
      const records = parts.flatMap((part) => part.records);
      // A prefix, nothing twice, nothing left out; all that was counted is in it, and what waited in the queue is all that can be lost.
      expect(records.map((record) => Number(record.id.slice(3)))).toEqual(records.map((_, i) => i));
      expect(records.length).toBeGreaterThanOrEqual(written);
      expect(records.length - next).toBeGreaterThan(0);
      expect(parts.flatMap((part) => part.problems)).toEqual([]);
      for (const record of records.slice(next)) {
        const image = await readFile(journalImagePath(dir, record.image));
        expect(createHash('sha256').update(image).digest('hex')).toBe(record.image);
      }
      // Read while a torn line may stand at its end, as the worker does while the miner is down.
      if (kill % 2 === 0) added += (await ingest()).added;
      next = records.length;
    }
    // The next writer leaves no image without a record, nor half of one.
    await (await Journal.open({ dir, maxBytes: 1e9, logger: quiet, clock: Date.now })).close();
    const named = new Set((await readJournal(dir)).flatMap((part) => part.records.map((record) => record.image)));
    const folders = await readdir(path.join(dir, 'images'));
    const files = await Promise.all(folders.map((folder) => readdir(path.join(dir, 'images', folder))));
    expect(new Set(files.flat())).toEqual(named);
    added += (await ingest()).added;
    expect(added).toBe(next);
    expect(await ingest()).toEqual({ added: 0 });
    // From the beginning, as with offsets that were lost: every record is known.
    for (const { segment } of await readJournal(dir)) await catalog.setJournalOffset(segment, 0);
    expect(await ingest()).toEqual({ added: 0 });
    expect(await catalog.traffic({})).toHaveLength(next);
  });
});
