/**
 * Writes the journal, off the hot path: a bounded queue, images first, then lines, in one background loop.
 *
 * Space: when segments and images together exceed the bound, whole closed segments are deleted, oldest first, each with
 * the images that no younger segment names. Nothing else is ever deleted but what a crash left half done.
 * Crash: a torn last line is cut off at the next start, and every start begins a new segment.
 */
import { createReadStream, promises as fs } from 'node:fs';
import { createInterface } from 'node:readline';
import path from 'node:path';
import type { JournalRecord } from '../domain/contracts/miner.js';
import type { Digest } from '../domain/contracts/common.js';
import { takeLock, type Lock } from '../platform/lock.js';
import { journalImagePath, listSegments, segmentName, segmentNumber, segmentsDir } from '../platform/journal.js';
import type { PoolLogger } from '../platform/inference/pool.js';

export interface JournalOptions {
  dir: string;
  /** bytes of segments and images together */
  maxBytes: number;
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
}
interface Entry {
  record: JournalRecord;
  image: Uint8Array;
}

/** Written in one go at most. */
const BATCH = 128;
/** How often lines are forced to the disk: a killed process loses nothing by it, a lost machine at most this. */
const SYNC_MS = 1000;
/** Requests as old as this may still be sent again; their ids are remembered over a restart. */
const REMEMBER_MS = 30_000;
const COMPLAIN_MS = 10_000;

export class Journal {
  /** records on disk since the start */
  written = 0;
  /** records that were not written: the queue was full or the disk refused them */
  dropped = 0;
  /** segments deleted to keep the bound */
  deletedSegments = 0;
  /** ids answered shortly before this start */
  readonly recent: { id: string; at: number }[] = [];

  private readonly queue: Entry[] = [];
  private queueBytes = 0;
  private readonly segments: Segment[] = [];
  /** image -> the youngest segment that names it, and its size */
  private readonly images = new Map<Digest, { segment: number; bytes: number }>();
  private imageBytes = 0;
  private active: { segment: Segment; handle: fs.FileHandle; broughtBytes: number } | null = null;
  private loop: Promise<void> | null = null;
  private closing = false;
  private lastSync = 0;
  private lastComplaint = 0;

  private constructor(
    private readonly options: JournalOptions,
    private readonly lock: Lock,
  ) {}

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
      await journal.keepBound();
    } catch (error) {
      journal.lock.release();
      throw error;
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
      this.complain({ dropped: this.dropped }, 'journal records dropped: the queue is full; the miner goes on answering');
      return false;
    }
    this.queue.push({ record, image });
    this.queueBytes += image.length;
    this.loop ??= this.run();
    return true;
  }

  /** Resolves when everything taken so far is written or dropped. */
  async flush(): Promise<void> {
    while (this.loop !== null) await this.loop;
  }

  async close(): Promise<void> {
    this.closing = true;
    await this.flush();
    await this.closeSegment();
    this.lock.release();
  }

  private async run(): Promise<void> {
    // Let the answer that brought this record go out first.
    await new Promise((resolve) => setImmediate(resolve));
    while (this.queue.length > 0) {
      const batch = this.queue.splice(0, BATCH);
      for (const entry of batch) this.queueBytes -= entry.image.length;
      try {
        await this.write(batch);
        this.written += batch.length;
        await this.keepBound();
      } catch (error) {
        this.dropped += batch.length;
        this.complain(
          { error: (error as Error).message, dropped: this.dropped },
          'the journal cannot be written; the miner goes on answering',
        );
        await this.abandonSegment();
      }
    }
    this.loop = null;
  }

  private async write(batch: Entry[]): Promise<void> {
    const active = (this.active ??= await this.openSegment());
    for (const { record, image } of batch) {
      const known = this.images.get(record.image);
      if (known === undefined) {
        const file = journalImagePath(this.options.dir, record.image);
        const aside = `${file}.tmp`;
        await fs.mkdir(path.dirname(file), { recursive: true, mode: 0o700 });
        await fs.writeFile(aside, image, { mode: 0o600 });
        await fs.rename(aside, file);
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
    const now = this.options.clock();
    if (now - this.lastSync >= SYNC_MS) {
      this.lastSync = now;
      await active.handle.datasync();
    }
    const limit = this.options.segmentBytes ?? Math.min(64 * 1024 * 1024, Math.max(64 * 1024, this.options.maxBytes / 8));
    if (active.segment.bytes + active.broughtBytes >= limit) await this.closeSegment();
  }

  private async openSegment(): Promise<{ segment: Segment; handle: fs.FileHandle; broughtBytes: number }> {
    // A time in the number: a journal that was deleted and begun anew never uses a name again that readers have offsets for.
    const number = Math.max((this.segments.at(-1)?.number ?? 0) + 1, this.options.clock());
    const handle = await fs.open(path.join(segmentsDir(this.options.dir), segmentName(number)), 'wx', 0o600);
    const segment = { number, bytes: 0 };
    this.segments.push(segment);
    return { segment, handle, broughtBytes: 0 };
  }

  private async closeSegment(): Promise<void> {
    const { active } = this;
    this.active = null;
    if (active === null) return;
    await active.handle.datasync();
    await active.handle.close();
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
  }

  private async keepBound(): Promise<void> {
    while (this.bytes > this.options.maxBytes && this.segments.length > 0) {
      const oldest = this.segments[0] as Segment;
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
        { segment: segmentName(oldest.number), images, bytes: this.bytes },
        'oldest journal segment deleted to keep the bound',
      );
    }
  }

  private async recover(): Promise<void> {
    const { dir, clock, logger } = this.options;
    const names = await listSegments(dir);
    for (const [i, name] of names.entries()) {
      const file = path.join(segmentsDir(dir), name);
      const number = segmentNumber(name) as number;
      if (i === names.length - 1) {
        const cut = await cutTornTail(file);
        if (cut > 0) logger.warn({ segment: name, bytes: cut }, 'a torn last line of the journal was cut off');
      }
      this.segments.push({ number, bytes: (await fs.stat(file)).size });
      const remember = i >= names.length - 2;
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
        if (!remember) continue;
        const id = /"id":"([^"]+)"/.exec(line)?.[1];
        const at = Number(/"at":(\d+)/.exec(line)?.[1] ?? 0);
        if (id !== undefined && clock() - at < REMEMBER_MS) this.recent.push({ id, at });
      }
    }
    await this.sweepImages();
  }

  /** Deletes images that no line names: their line was never written. And forgets images that are gone. */
  private async sweepImages(): Promise<void> {
    const found = new Set<Digest>();
    const root = path.join(this.options.dir, 'images');
    for (const folder of await fs.readdir(root)) {
      for (const name of await fs.readdir(path.join(root, folder))) {
        if (this.images.has(name)) found.add(name);
        else await fs.rm(path.join(root, folder, name), { force: true });
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

async function writeWhole(handle: fs.FileHandle, bytes: Uint8Array, position: number): Promise<void> {
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
