/**
 * Writes the journal, off the hot path: a bounded queue, images first, then lines, in one background loop.
 *
 * Disk: a line is with the operating system before the next is taken, so a killed process loses what waits in its queue
 * and no more. When it is forced to the disk is `sync`'s to say; images are forced before the lines that name them.
 * A disk that refuses (full, read-only, failing): the journal pauses and says so, keeps what its queue holds, drops and
 * counts the rest, and tries again by itself. The miner answers on.
 *
 * Space: when segments and images together exceed the bound, whole closed segments are deleted, oldest first, each with
 * the images that no younger segment names; so are segments beyond the age. Nothing else is ever deleted but what a crash left half done.
 * Crash: a torn last line is cut off at the next start, and every start begins a new segment.
 */
import { createReadStream, promises as fs } from 'node:fs';
import { createInterface } from 'node:readline';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { JournalRecord } from '../domain/contracts/miner.js';
import type { Digest } from '../domain/contracts/common.js';
import { takeLock, type Lock } from '../platform/lock.js';
import { journalImagePath, listSegments, segmentName, segmentNumber, segmentsDir } from '../platform/journal.js';
import type { PoolLogger } from '../platform/inference/pool.js';

/**
 * When lines and images are forced to the disk. `always`: before the next batch, a lost machine loses what was queued.
 * `interval`: within a second, a lost machine loses that second. `never`: when the system likes (some 30 s).
 */
export type JournalSync = 'always' | 'interval' | 'never';

/** The disk, as the journal needs it; a test hands in one that is full. */
export interface JournalDisk {
  /** Whole or not at all; forced to the disk with `sync`. */
  writeImage(file: string, bytes: Uint8Array, sync: boolean): Promise<void>;
  /** Forces an image to the disk; one that is gone meanwhile is nothing to be forced. */
  syncImage(file: string): Promise<void>;
  /** A new file. @throws EEXIST when it is there */
  create(file: string): Promise<JournalFile>;
}
export type JournalFile = Pick<fs.FileHandle, 'write' | 'truncate' | 'datasync' | 'close'>;

export interface JournalOptions {
  dir: string;
  /** bytes of segments and images together */
  maxBytes: number;
  /** closed segments whose youngest record is older are deleted, ms; default: never for their age */
  maxAgeMs?: number;
  /** default `interval` */
  sync?: JournalSync;
  /** default: the real one */
  disk?: JournalDisk;
  logger: PoolLogger;
  /** ms since the epoch */
  clock: () => number;
  /** records that wait at most; default 2000 */
  maxQueue?: number;
  /** image bytes that wait at most; default 64 MiB */
  maxQueueBytes?: number;
  /** a segment is closed when its lines and the images it brought exceed this; default an eighth of maxBytes, at most 64 MiB */
  segmentBytes?: number;
}

interface Segment {
  number: number;
  /** bytes of its lines */
  bytes: number;
  /** when it was last written to, ms since the epoch */
  at: number;
}
interface Entry {
  record: JournalRecord;
  image: Uint8Array;
}

/** Written in one go at most. */
const BATCH = 128;
/** How often lines are forced to the disk: a killed process loses nothing by it, a lost machine at most this. */
const SYNC_MS = 1000;
/** How long a journal that the disk refused waits until it tries again, ms. */
const RETRY_MS = [1000, 2000, 5000, 10_000, 30_000];
/** How often segments that grew too old are looked for; an open one is closed after an eighth of the age, a day at most. */
const AGE_EVERY_MS = 60_000;
const DAY_MS = 86_400_000;
const COMPLAIN_MS = 10_000;

export class Journal {
  /** records on disk since the start */
  written = 0;
  /** records that were not written: the queue was full or the disk refused them */
  dropped = 0;
  /** segments deleted to keep the bound */
  deletedSegments = 0;
  /** why nothing is written at the moment; null when all is well */
  paused: string | null = null;

  private readonly queue: Entry[] = [];
  private queueBytes = 0;
  private readonly segments: Segment[] = [];
  /** image -> the youngest segment that names it, and its size */
  private readonly images = new Map<Digest, { segment: number; bytes: number }>();
  private imageBytes = 0;
  private active: { segment: Segment; handle: JournalFile; broughtBytes: number; openedAt: number } | null = null;
  private loop: Promise<void> | null = null;
  private closing = false;
  private syncTimer: NodeJS.Timeout | null = null;
  private syncing: Promise<void> = Promise.resolve();
  private ageTimer: NodeJS.Timeout | null = null;
  private lastComplaint = 0;
  private failures = 0;
  /** images that are not forced to the disk yet */
  private unsynced: string[] = [];
  private readonly wake = new AbortController();
  private readonly disk: JournalDisk;

  private constructor(
    private readonly options: JournalOptions,
    private readonly lock: Lock,
  ) {
    this.disk = options.disk ?? realDisk;
  }

  /**
   * Opens the journal, repairs what a crash left, and counts what is there.
   * @throws HomeLockedError when another process writes it
   */
  static async open(options: JournalOptions): Promise<Journal> {
    await fs.mkdir(segmentsDir(options.dir), { recursive: true, mode: 0o700 });
    await fs.mkdir(path.join(options.dir, 'images'), { recursive: true, mode: 0o700 });
    const journal = new Journal(options, await takeLock(path.join(options.dir, 'writer.lock'), `The journal ${options.dir}`));
    try {
      await journal.recover();
      await journal.keepBounds();
    } catch (error) {
      journal.lock.release();
      throw error;
    }
    if (options.maxAgeMs !== undefined) {
      journal.ageTimer = setInterval(() => (journal.loop ??= journal.run()), Math.min(AGE_EVERY_MS, Math.max(50, options.maxAgeMs / 8)));
      journal.ageTimer.unref();
    }
    return journal;
  }

  /** Bytes on disk. */
  get bytes(): number {
    return this.imageBytes + this.segments.reduce((sum, segment) => sum + segment.bytes, 0);
  }

  /** Records that wait to be written. */
  get depth(): number {
    return this.queue.length;
  }

  /** Takes a record without waiting. @returns false when it was dropped: the queue is full, or the journal is closed */
  append(record: JournalRecord, image: Uint8Array): boolean {
    if (
      this.closing ||
      this.queue.length >= (this.options.maxQueue ?? 2000) ||
      this.queueBytes + image.length > (this.options.maxQueueBytes ?? 64 * 1024 * 1024)
    ) {
      this.dropped += 1;
      this.complain(
        { dropped: this.dropped, paused: this.paused },
        'journal records dropped: the queue is full; the miner goes on answering',
      );
      return false;
    }
    this.queue.push({ record, image });
    this.queueBytes += image.length;
    this.loop ??= this.run();
    return true;
  }

  /** Resolves when everything taken so far is written or dropped; while the disk refuses that may be long. */
  async flush(): Promise<void> {
    while (this.loop !== null) await this.loop;
  }

  /** Writes what waits, once more when the disk refused it, forces it to the disk, and ends. */
  async close(): Promise<void> {
    this.closing = true;
    if (this.ageTimer !== null) clearInterval(this.ageTimer);
    this.wake.abort();
    await this.flush();
    await this.closeSegment().catch((error: Error) => this.complain({ error: error.message }, 'the journal could not be closed well'));
    this.lock.release();
  }

  private async run(): Promise<void> {
    // Let the answer that brought this record go out first.
    await new Promise((resolve) => setImmediate(resolve));
    try {
      await this.keepBounds();
    } catch (error) {
      this.complain({ error: (error as Error).message }, 'old journal segments could not be deleted; it is tried again');
    }
    while (this.queue.length > 0) {
      const batch = this.queue.slice(0, BATCH);
      const before = this.written;
      try {
        await this.write(batch);
        this.written = before + batch.length;
        this.taken(batch.length);
        this.resumed();
        await this.keepBounds();
      } catch (error) {
        await this.abandonSegment();
        if (!(await this.pause(error as Error))) {
          this.dropped += this.queue.length;
          this.taken(this.queue.length);
        }
      }
    }
    this.loop = null;
  }

  private taken(count: number): void {
    for (const entry of this.queue.splice(0, count)) this.queueBytes -= entry.image.length;
  }

  /** @returns false when there is no more waiting, since the journal is being closed */
  private async pause(error: Error): Promise<boolean> {
    const waitMs = RETRY_MS[Math.min(this.failures, RETRY_MS.length - 1)] as number;
    this.failures += 1;
    if (this.paused === null)
      this.options.logger.error(
        { error: error.message, waiting: this.queue.length },
        'the journal cannot be written and pauses; the miner goes on answering. Free space on its disk, or mend it: it goes on by itself',
      );
    this.paused = error.message;
    if (this.closing) return this.failures === 1;
    await sleep(waitMs, undefined, { ref: false, signal: this.wake.signal }).catch(() => undefined);
    return true;
  }

  private resumed(): void {
    if (this.paused === null) return;
    this.options.logger.info({ reason: this.paused, dropped: this.dropped }, 'the journal writes again');
    this.paused = null;
    this.failures = 0;
  }

  private async write(batch: Entry[]): Promise<void> {
    const active = (this.active ??= await this.openSegment());
    const always = this.options.sync === 'always';
    for (const { record, image } of batch) {
      const known = this.images.get(record.image);
      if (known === undefined) {
        const file = journalImagePath(this.options.dir, record.image);
        await this.disk.writeImage(file, image, always);
        if (!always && this.options.sync !== 'never') this.unsynced.push(file);
        this.images.set(record.image, { segment: active.segment.number, bytes: image.length });
        this.imageBytes += image.length;
        active.broughtBytes += image.length;
      } else {
        known.segment = active.segment.number;
      }
    }
    const text = Buffer.from(batch.map(({ record }) => `${JSON.stringify(record)}\n`).join(''), 'utf8');
    await writeWhole(active.handle, text, active.segment.bytes);
    active.segment.bytes += text.length;
    active.segment.at = this.options.clock();
    if (always) await active.handle.datasync();
    else if (this.options.sync !== 'never') this.syncSoon();
    const limit = this.options.segmentBytes ?? Math.min(64 * 1024 * 1024, Math.max(64 * 1024, this.options.maxBytes / 8));
    if (active.segment.bytes + active.broughtBytes >= limit) await this.closeSegment();
  }

  /** Forces the lines to the disk within a second, whether or not more come. */
  private syncSoon(): void {
    this.syncTimer ??= setTimeout(() => {
      this.syncTimer = null;
      const { active } = this;
      if (active === null) return;
      this.syncing = this.sync(active.handle).catch((error: Error) => {
        // A segment that was closed meanwhile was synced then.
        if (this.active === active) this.complain({ error: error.message }, 'the journal could not be forced to the disk');
      });
    }, SYNC_MS);
    this.syncTimer.unref();
  }

  /** Images first, so that a line on the disk never names one that is not whole. */
  private async sync(handle: JournalFile): Promise<void> {
    const images = this.unsynced;
    this.unsynced = [];
    for (const file of images) await this.disk.syncImage(file);
    await handle.datasync();
  }

  private async openSegment(): Promise<NonNullable<Journal['active']>> {
    // A time in the number: a journal that was deleted and begun anew never uses a name again that readers have offsets for.
    const number = Math.max((this.segments.at(-1)?.number ?? 0) + 1, this.options.clock());
    const handle = await this.disk.create(path.join(segmentsDir(this.options.dir), segmentName(number)));
    const openedAt = this.options.clock();
    const segment = { number, bytes: 0, at: openedAt };
    this.segments.push(segment);
    return { segment, handle, broughtBytes: 0, openedAt };
  }

  private async closeSegment(): Promise<void> {
    const { active } = this;
    this.active = null;
    if (active === null) return;
    if (this.syncTimer !== null) clearTimeout(this.syncTimer);
    this.syncTimer = null;
    await this.syncing;
    try {
      if (this.options.sync !== 'never') await this.sync(active.handle);
    } finally {
      await active.handle.close();
    }
  }

  /** After a failed write: cut off what may be half a line and never touch that segment again. */
  private async abandonSegment(): Promise<void> {
    const { active } = this;
    this.active = null;
    if (active === null) return;
    try {
      await active.handle.truncate(active.segment.bytes);
    } catch (error) {
      this.complain({ error: (error as Error).message }, 'a torn journal line could not be cut off; readers ignore it');
    }
    await active.handle.close().catch(() => undefined);
    if (active.segment.bytes > 0) return;
    // Nothing came of it: a disk that refuses for days must not leave a file for every attempt.
    this.segments.splice(this.segments.indexOf(active.segment), 1);
    await fs
      .rm(path.join(segmentsDir(this.options.dir), segmentName(active.segment.number)), { force: true })
      .catch((error: Error) => this.complain({ error: error.message }, 'an empty journal segment could not be deleted'));
  }

  private async keepBounds(): Promise<void> {
    const { maxBytes, maxAgeMs, clock } = this.options;
    if (maxAgeMs !== undefined && this.active !== null && clock() - this.active.openedAt >= Math.min(DAY_MS, maxAgeMs / 8))
      await this.closeSegment();
    const tooOld = (segment: Segment): boolean => maxAgeMs !== undefined && clock() - segment.at > maxAgeMs;
    for (;;) {
      const oldest = this.segments[0];
      if (oldest === undefined || !(this.bytes > maxBytes || tooOld(oldest))) return;
      await this.deleteSegment(oldest, this.bytes > maxBytes ? 'size' : 'age');
    }
  }

  private async deleteSegment(oldest: Segment, bound: 'size' | 'age'): Promise<void> {
    if (this.active?.segment === oldest) await this.closeSegment();
    // Lines first: a line never names an image that is gone.
    await fs.rm(path.join(segmentsDir(this.options.dir), segmentName(oldest.number)), { force: true });
    this.segments.shift();
    let images = 0;
    for (const [digest, image] of this.images) {
      if (image.segment > oldest.number) continue;
      await fs.rm(journalImagePath(this.options.dir, digest), { force: true });
      this.images.delete(digest);
      this.imageBytes -= image.bytes;
      images += 1;
    }
    this.deletedSegments += 1;
    this.options.logger.info(
      { segment: segmentName(oldest.number), images, bytes: this.bytes, bound },
      'oldest journal segment deleted to keep the bound',
    );
  }

  private async recover(): Promise<void> {
    const { dir, logger } = this.options;
    const names = await listSegments(dir);
    for (const [i, name] of names.entries()) {
      const file = path.join(segmentsDir(dir), name);
      const number = segmentNumber(name) as number;
      if (i === names.length - 1) {
        const cut = await cutTornTail(file);
        if (cut > 0) logger.warn({ segment: name, bytes: cut }, 'a torn last line of the journal was cut off');
      }
      const { size, mtimeMs } = await fs.stat(file);
      this.segments.push({ number, bytes: size, at: mtimeMs });
      for await (const line of createInterface({ input: createReadStream(file), crlfDelay: Number.POSITIVE_INFINITY })) {
        const image = /"image":"([0-9a-f]{64})"/.exec(line)?.[1];
        const bytes = /"bytes":(\d+)/.exec(line)?.[1];
        if (image === undefined || bytes === undefined) continue;
        const known = this.images.get(image);
        if (known === undefined) {
          this.images.set(image, { segment: number, bytes: Number(bytes) });
          this.imageBytes += Number(bytes);
        } else {
          known.segment = number;
        }
      }
    }
    await this.sweepImages();
  }

  /** Deletes images that no line names: their line was never written. And forgets images that are gone. */
  private async sweepImages(): Promise<void> {
    const found = new Set<Digest>();
    const young = this.segments.at(-2)?.number ?? 0;
    const root = path.join(this.options.dir, 'images');
    for (const folder of await fs.readdir(root)) {
      for (const name of await fs.readdir(path.join(root, folder))) {
        const file = path.join(root, folder, name);
        const known = this.images.get(name);
        // A machine that lost power may have left one of the last images short: none is better than a wrong one.
        if (known !== undefined && (known.segment < young || (await fs.stat(file)).size === known.bytes)) found.add(name);
        else await fs.rm(file, { force: true });
      }
    }
    for (const [digest, image] of this.images) {
      if (found.has(digest)) continue;
      this.images.delete(digest);
      this.imageBytes -= image.bytes;
    }
  }

  private complain(fields: object, message: string): void {
    const now = this.options.clock();
    if (now - this.lastComplaint < COMPLAIN_MS) return;
    this.lastComplaint = now;
    this.options.logger.warn(fields, message);
  }
}

const realDisk: JournalDisk = {
  async writeImage(file, bytes, sync) {
    const aside = `${file}.tmp`;
    await fs.mkdir(path.dirname(file), { recursive: true, mode: 0o700 });
    try {
      // Data before name: a name without its bytes would be left after a power cut.
      await fs.writeFile(aside, bytes, { mode: 0o600, flush: sync });
      await fs.rename(aside, file);
    } catch (error) {
      await fs.rm(aside, { force: true });
      throw error;
    }
  },
  async syncImage(file) {
    let handle: fs.FileHandle;
    try {
      handle = await fs.open(file, 'r');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
      throw error;
    }
    try {
      await handle.datasync();
    } finally {
      await handle.close();
    }
  },
  create: (file) => fs.open(file, 'wx', 0o600),
};

async function writeWhole(handle: JournalFile, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const { bytesWritten } = await handle.write(bytes, done, bytes.length - done, position + done);
    done += bytesWritten;
  }
}

/** Cuts a file off behind its last newline. @returns bytes cut */
async function cutTornTail(file: string): Promise<number> {
  const handle = await fs.open(file, 'r+');
  try {
    const { size } = await handle.stat();
    const piece = Buffer.alloc(64 * 1024);
    for (let end = size; end > 0;) {
      const from = Math.max(0, end - piece.length);
      const { bytesRead } = await handle.read(piece, 0, end - from, from);
      const newline = piece.subarray(0, bytesRead).lastIndexOf(0x0a);
      if (newline >= 0) {
        const keep = from + newline + 1;
        if (keep < size) await handle.truncate(keep);
        return size - keep;
      }
      end = from;
    }
    if (size > 0) await handle.truncate(0);
    return size;
  } finally {
    await handle.close();
  }
}
