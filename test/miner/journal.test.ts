import { appendFile, mkdir, mkdtemp, open as openFile, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { JournalRecord } from '../../src/domain/contracts/miner.js';
import { Journal, type JournalDisk, type JournalOptions } from '../../src/miner/journal.js';
import { journalImagePath, readJournal, segmentsDir } from '../../src/platform/journal.js';
import { journalRecord } from '../support/journalRecord.mjs';

const logger = { info: () => undefined, warn: () => undefined, error: () => undefined };

let dir: string;
const open: Journal[] = [];
beforeEach(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), 'flywheel-journal-'));
});
afterEach(async () => {
  await Promise.all(open.splice(0).map((journal) => journal.close()));
  await rm(dir, { recursive: true, force: true });
});

async function journal(options: Partial<JournalOptions> = {}): Promise<Journal> {
  const made = await Journal.open({ dir, maxBytes: 10_000_000, logger, clock: Date.now, ...options });
  open.push(made);
  return made;
}
const image = (i: number, bytes = 500): Buffer => Buffer.alloc(bytes, `image ${i} `);
const record = (i: number, of: Buffer = image(i)): JournalRecord => journalRecord(`id-${i}`, of);
const ids = async (offsets: Record<string, number> = {}): Promise<string[]> =>
  (await readJournal(dir, offsets)).flatMap((part) => part.records.map((r) => r.id));
const segments = async (): Promise<string[]> => (await readdir(segmentsDir(dir))).sort();

describe('the journal', () => {
  it('gives back what was written, images included', async () => {
    const j = await journal();
    for (let i = 0; i < 5; i++) j.append(record(i), image(i));
    await j.flush();
    expect(await ids()).toEqual(['id-0', 'id-1', 'id-2', 'id-3', 'id-4']);
    expect(await readFile(journalImagePath(dir, record(3).image))).toEqual(image(3));
    expect(j.written).toBe(5);
  });

  it('goes on for a reader where it left off', async () => {
    const j = await journal();
    j.append(record(0), image(0));
    await j.flush();
    const [first] = await readJournal(dir);
    const offsets = { [first!.segment]: first!.nextOffset };
    expect(await readJournal(dir, offsets)).toEqual([]);
    j.append(record(1), image(1));
    await j.flush();
    expect(await ids(offsets)).toEqual(['id-1']);
  });

  it('keeps one image of many equal ones', async () => {
    const j = await journal();
    for (let i = 0; i < 4; i++) j.append({ ...record(0), id: `id-${i}` }, image(0));
    await j.flush();
    expect(await ids()).toHaveLength(4);
    expect(j.bytes).toBe(500 + (await stat(path.join(segmentsDir(dir), (await segments())[0]!))).size);
  });

  it('drops and counts what its queue cannot hold', async () => {
    const j = await journal({ maxQueue: 3 });
    const taken = Array.from({ length: 10 }, (_, i) => j.append(record(i), image(i)));
    await j.flush();
    expect(taken.filter(Boolean)).toHaveLength(3);
    expect(j.dropped).toBe(7);
    expect(await ids()).toEqual(['id-0', 'id-1', 'id-2']);
  });

  it('stays within its bound by deleting the oldest segments with their images', async () => {
    const j = await journal({ maxBytes: 20_000, segmentBytes: 3000 });
    for (let i = 0; i < 60; i++) {
      j.append(record(i), image(i));
      await j.flush();
    }
    expect(j.bytes).toBeLessThanOrEqual(20_000);
    expect(j.deletedSegments).toBeGreaterThan(0);
    const left = await readJournal(dir);
    const kept = left.flatMap((part) => part.records);
    expect(kept.at(-1)?.id).toBe('id-59');
    expect(kept.map((r) => r.id)).toEqual(Array.from({ length: kept.length }, (_, i) => `id-${60 - kept.length + i}`));
    for (const r of kept) expect((await stat(journalImagePath(dir, r.image))).size).toBe(500);
    await expect(stat(journalImagePath(dir, record(0).image))).rejects.toMatchObject({ code: 'ENOENT' });
  });

  it('keeps an old image that a young segment names', async () => {
    const j = await journal({ maxBytes: 12_000, segmentBytes: 2000 });
    for (let i = 0; i < 40; i++) {
      j.append(record(i), image(i));
      j.append({ ...record(0), id: `again-${i}` }, image(0));
      await j.flush();
    }
    expect(j.deletedSegments).toBeGreaterThan(0);
    expect(await readFile(journalImagePath(dir, record(0).image))).toEqual(image(0));
  });

  it('cuts a torn last line off and begins a new segment when it is opened again', async () => {
    const j = await journal();
    j.append(record(0), image(0));
    await j.close();
    const [segment] = await segments();
    await appendFile(path.join(segmentsDir(dir), segment!), JSON.stringify(record(1)).slice(0, 100));
    expect(await ids()).toEqual(['id-0']);
    const again = await journal();
    again.append(record(2), image(2));
    await again.flush();
    expect(await ids()).toEqual(['id-0', 'id-2']);
    expect((await segments()).length).toBe(2);
    expect((await readJournal(dir)).flatMap((part) => part.problems)).toEqual([]);
  });

  it('reports a damaged line by file and offset, and reads on', async () => {
    const j = await journal();
    j.append(record(0), image(0));
    await j.close();
    const file = path.join(segmentsDir(dir), (await segments())[0]!);
    const { size } = await stat(file);
    await appendFile(file, `{"v":1,"nonsense\n${JSON.stringify({ ...record(1), prediction: 7 })}\n${JSON.stringify(record(2))}\n`);
    const [part] = await readJournal(dir);
    expect(part!.records.map((r) => r.id)).toEqual(['id-0', 'id-2']);
    expect(part!.problems.map(({ file: f, offset }) => ({ f, offset }))).toEqual([
      { f: file, offset: size },
      { f: file, offset: size + 17 },
    ]);
    expect(part!.nextOffset).toBe((await stat(file)).size);
  });

  it('forgets images whose line was never written', async () => {
    const j = await journal();
    j.append(record(0), image(0));
    await j.close();
    const orphan = journalImagePath(dir, `${record(0).image.slice(0, 2)}${'0'.repeat(62)}`);
    await writeFile(orphan, 'left by a killed writer');
    await journal();
    await expect(stat(orphan)).rejects.toMatchObject({ code: 'ENOENT' });
    expect(await readFile(journalImagePath(dir, record(0).image))).toEqual(image(0));
  });

  it('deletes what is older than its age, and closes the open segment in time for that', async () => {
    let now = Date.now();
    const j = await journal({ maxAgeMs: 80_000, clock: () => now });
    j.append(record(0), image(0));
    await j.flush();
    now += 10_001;
    j.append(record(1), image(1));
    await j.flush();
    expect(await segments()).toHaveLength(2);
    now += 75_000;
    j.append(record(2), image(2));
    await j.flush();
    expect(await ids()).toEqual(['id-1', 'id-2']);
    await expect(stat(journalImagePath(dir, record(0).image))).rejects.toMatchObject({ code: 'ENOENT' });
  });

  it('deletes what is too old even when nothing more is written', async () => {
    let now = Date.now();
    const j = await journal({ maxAgeMs: 400, clock: () => now });
    j.append(record(0), image(0));
    await j.flush();
    now += 1000;
    await expect.poll(() => j.deletedSegments, { timeout: 10_000 }).toBe(1);
    expect(await segments()).toEqual([]);
  });

  it.each(['always', 'interval', 'never'] as const)('can be read whatever is forced to the disk (%s)', async (sync) => {
    const j = await journal({ sync });
    for (let i = 0; i < 3; i++) j.append(record(i), image(i));
    await j.close();
    expect(await ids()).toEqual(['id-0', 'id-1', 'id-2']);
  });

  it('takes an image that a power cut left short for missing', async () => {
    const j = await journal();
    j.append(record(0), image(0));
    j.append(record(1), image(1));
    await j.close();
    await writeFile(journalImagePath(dir, record(0).image), '');
    const again = await journal();
    await expect(stat(journalImagePath(dir, record(0).image))).rejects.toMatchObject({ code: 'ENOENT' });
    again.append({ ...record(0), id: 'again' }, image(0));
    await again.flush();
    expect(await readFile(journalImagePath(dir, record(0).image))).toEqual(image(0));
  });

  it('never uses the name of a segment again, although the journal was deleted', async () => {
    const j = await journal();
    j.append(record(0), image(0));
    await j.close();
    const before = await segments();
    await rm(dir, { recursive: true });
    const again = await journal();
    again.append(record(1), image(1));
    await again.flush();
    expect(await segments()).not.toEqual(before);
  });

  it('has one writer', async () => {
    await journal();
    await expect(Journal.open({ dir, maxBytes: 1e6, logger, clock: Date.now })).rejects.toMatchObject({ name: 'HomeLockedError' });
  });

  it('is empty for a reader when there is none yet', async () => {
    expect(await readJournal(path.join(dir, 'none'))).toEqual([]);
  });
});

describe('a full disk', () => {
  /** The real disk, until it is full: then it takes half of what is written, and says ENOSPC. */
  function fillable(): { disk: JournalDisk; full: boolean } {
    const state = { full: false, disk: undefined as unknown as JournalDisk };
    const refuse = (): never => {
      throw Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' });
    };
    state.disk = {
      async writeImage(file, bytes) {
        if (state.full) refuse();
        await mkdir(path.dirname(file), { recursive: true });
        await writeFile(file, bytes);
      },
      syncImage: async () => undefined,
      async create(file) {
        const handle = await openFile(file, 'wx');
        return {
          write: (async (buffer: Uint8Array, offset: number, length: number, position: number) => {
            if (!state.full) return handle.write(buffer, offset, length, position);
            await handle.write(buffer, offset, length >> 1, position);
            return refuse();
          }) as never,
          truncate: (length) => handle.truncate(length),
          datasync: () => handle.datasync(),
          close: () => handle.close(),
        };
      },
    };
    return state;
  }

  it('pauses the journal, which says so, and goes on by itself without a torn or lost line', async () => {
    const said: string[] = [];
    const disk = fillable();
    const j = await journal({
      disk: disk.disk,
      logger: { info: (_f, m) => said.push(m), warn: (_f, m) => said.push(m), error: (_f, m) => said.push(m) },
    });
    j.append(record(0), image(0));
    await j.flush();
    disk.full = true;
    // An image that is there already, so that the lines themselves meet the full disk.
    for (let i = 1; i < 4; i++) expect(j.append({ ...record(0), id: `id-${i}` }, image(0))).toBe(true);
    await expect.poll(() => j.paused, { timeout: 10_000 }).toMatch(/ENOSPC/);
    expect(await ids()).toEqual(['id-0']);
    j.append(record(4), image(4));
    disk.full = false;
    await j.flush();
    expect(j).toMatchObject({ paused: null, dropped: 0, written: 5 });
    expect(await ids()).toEqual(['id-0', 'id-1', 'id-2', 'id-3', 'id-4']);
    expect((await readJournal(dir)).flatMap((part) => part.problems)).toEqual([]);
    expect(said).toEqual([expect.stringMatching(/pauses/), 'the journal writes again']);
  });

  it('costs what its queue cannot hold, which is counted, and no memory beyond it', async () => {
    const disk = fillable();
    disk.full = true;
    const j = await journal({ disk: disk.disk, maxQueue: 10 });
    const taken = Array.from({ length: 50 }, (_, i) => j.append(record(i), image(i)));
    await expect.poll(() => j.paused, { timeout: 10_000 }).not.toBeNull();
    expect([taken.filter(Boolean).length, j.dropped, j.depth]).toEqual([10, 40, 10]);
    disk.full = false;
    await j.flush();
    expect(await ids()).toHaveLength(10);
  });

  it('does not keep the miner from stopping, and leaves no file for its attempts', async () => {
    const disk = fillable();
    disk.full = true;
    const j = await journal({ disk: disk.disk });
    j.append(record(0), image(0));
    await expect.poll(() => j.paused, { timeout: 10_000 }).not.toBeNull();
    await j.close();
    expect(j.dropped).toBe(1);
    expect(await segments()).toEqual([]);
  });
});
