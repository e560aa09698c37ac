import { createHash } from 'node:crypto';
import { appendFile, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { JournalRecord } from '../../src/domain/contracts/miner.js';
import { Journal, type JournalOptions } from '../../src/miner/journal.js';
import { journalImagePath, readJournal, segmentsDir } from '../../src/platform/journal.js';

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
function record(i: number, of: Buffer = image(i)): JournalRecord {
  return {
    v: 1,
    id: `id-${i}`,
    at: Date.now(),
    image: createHash('sha256').update(of).digest('hex'),
    bytes: of.length,
    prediction: 0.25,
    votes: { a: 0.25 },
    latencyMs: 12.5,
    validator: '5F7JYViuYtexS7WUCx9W1vgHArbTKR7h3rPJmz8VkLHoFxHy',
    model: 'a'.repeat(64),
    generation: 1,
    shadow: null,
  };
}
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

  it('remembers the requests of the last seconds over a restart, and no older ones', async () => {
    const j = await journal();
    j.append(record(0), image(0));
    j.append({ ...record(1), at: Date.now() - 60_000 }, image(1));
    await j.close();
    expect((await journal()).recent.map((r) => r.id)).toEqual(['id-0']);
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
