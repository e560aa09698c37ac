/**
 * Every request once: which nonces were used, in memory and on disk. A request is noted before it is answered, and the
 * note is with the operating system by then, so that a killed and restarted miner still refuses it. (A machine that loses
 * power may forget the last seconds; it is longer out than the window is wide.)
 */
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, statSync, writeSync } from 'node:fs';
import path from 'node:path';

/** How old a nonce may be, ns: the reference's 4 s plus the validators' time-out of 9 s, whatever the unsigned header claims. */
export const NONCE_PAST_NS = 13_000_000_000n;
/** How far ahead of our clock a nonce may be, ns; the reference sets no bound. */
export const NONCE_FUTURE_NS = 5_000_000_000n;
/** Requests remembered at most; within the window that is over 10,000 a second. */
const MAX_REMEMBERED = 200_000;
const SECOND_NS = 1_000_000_000n;

/** The table of seen requests is full: 503. Forgetting one early would let it be replayed. */
export class NonceTableFullError extends Error {
  override name = 'NonceTableFullError';
}

/** Where used nonces are written down; see `NonceLog`. */
export interface NonceStore {
  append(id: string, nonce: bigint): void;
}

/**
 * Nonces of one dendrite may arrive out of order, so each value is remembered, not the last. They are kept by the second
 * they name: what is out of the window is forgotten a second at a time, at no cost that grows with the table.
 */
export class NonceTable {
  private readonly bySecond = new Map<bigint, Set<string>>();
  private oldest = 0n;
  size = 0;

  /**
   * @param capacity requests remembered at most
   * @param store null: in memory only
   */
  constructor(
    private readonly capacity: number = MAX_REMEMBERED,
    private readonly store: NonceStore | null = null,
  ) {}

  has(id: string, nonce: bigint): boolean {
    return this.bySecond.get(nonce / SECOND_NS)?.has(id) ?? false;
  }

  /** @throws NonceTableFullError */
  add(id: string, nonce: bigint, now: bigint): void {
    this.forget(now);
    if (this.size >= this.capacity) throw new NonceTableFullError(`${this.capacity} requests within the nonce window`);
    this.remember(id, nonce);
    this.store?.append(id, nonce);
  }

  /** Takes back what was used before a restart; what is out of the window by now is left out. */
  restore(entries: Iterable<{ id: string; nonce: bigint }>, now: bigint): void {
    for (const { id, nonce } of entries) if (nonce > now - NONCE_PAST_NS && this.size < this.capacity) this.remember(id, nonce);
  }

  private remember(id: string, nonce: bigint): void {
    const second = nonce / SECOND_NS;
    let ids = this.bySecond.get(second);
    if (ids === undefined) this.bySecond.set(second, (ids = new Set()));
    const before = ids.size;
    ids.add(id);
    this.size += ids.size - before;
  }

  private forget(now: bigint): void {
    const oldest = (now - NONCE_PAST_NS) / SECOND_NS;
    if (oldest <= this.oldest) return;
    this.oldest = oldest;
    // A second that the window's edge still cuts is kept whole.
    for (const [second, ids] of this.bySecond) {
      if (second >= oldest) continue;
      this.bySecond.delete(second);
      this.size -= ids.size;
    }
  }
}

const FILE = /^\d+\.log$/;
/** A file is written to for so long, and kept for as long again: longer than a nonce can be of use. */
const FILE_MS = 30_000;
const COMPLAIN_MS = 10_000;
/** `<nonce> <id>`: an id is a SHA-256, a nonce has 20 digits at most. */
const LINE = /^(\d{1,20}) ([0-9a-f]{64})$/;

/**
 * Used nonces on disk: one short line each, written at once (a few microseconds; a file of the page cache), in files that
 * are deleted when all they hold has aged out. A disk that refuses does not stop the miner: it then remembers in memory alone.
 */
export class NonceLog implements NonceStore {
  /** nonces that could not be written down */
  failed = 0;
  private file: { fd: number; name: string; openedAt: number } | null = null;
  private complainedAt = Number.NEGATIVE_INFINITY;
  private closed = false;

  private constructor(
    private readonly dir: string,
    private readonly logger: { warn(fields: object, message: string): void },
  ) {}

  /**
   * @param dir made when absent; its only writer is this process
   * @returns the log, and what was written down of late by whoever wrote it before
   * @throws the system's error when the folder cannot be made or read
   */
  static open(
    dir: string,
    logger: { warn(fields: object, message: string): void },
  ): { log: NonceLog; recent: { id: string; nonce: bigint }[] } {
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    const log = new NonceLog(dir, logger);
    log.sweep();
    const recent = log.files().flatMap((name) =>
      readFileSync(path.join(dir, name), 'latin1')
        .split('\n')
        // The last line of a killed writer may be torn: it has not the form of one.
        .flatMap((line) => {
          const match = LINE.exec(line);
          return match === null ? [] : [{ id: match[2] as string, nonce: BigInt(match[1] as string) }];
        }),
    );
    return { log, recent };
  }

  append(id: string, nonce: bigint): void {
    if (this.closed) return;
    try {
      const now = Date.now();
      if (this.file === null || now - this.file.openedAt > FILE_MS) this.rotate(now);
      // A newline first: it ends what a full disk may have torn.
      writeSync((this.file as unknown as { fd: number }).fd, this.failed > 0 ? `\n${nonce} ${id}\n` : `${nonce} ${id}\n`);
    } catch (error) {
      this.failed += 1;
      if (performance.now() - this.complainedAt < COMPLAIN_MS) return;
      this.complainedAt = performance.now();
      this.logger.warn(
        { error: (error as Error).message, failed: this.failed },
        'used nonces cannot be written down; the miner goes on and remembers them in memory, but not over a restart',
      );
    }
  }

  close(): void {
    this.closed = true;
    if (this.file !== null) closeSync(this.file.fd);
    this.file = null;
  }

  private rotate(now: number): void {
    const name = `${now}.log`;
    const fd = openSync(path.join(this.dir, name), 'a', 0o600);
    if (this.file !== null) closeSync(this.file.fd);
    this.file = { fd, name, openedAt: now };
    this.sweep();
  }

  /** Deletes files that nobody wrote to for longer than a nonce can be of use. */
  private sweep(): void {
    for (const name of this.files()) {
      const file = path.join(this.dir, name);
      if (name !== this.file?.name && Date.now() - statSync(file).mtimeMs > FILE_MS) rmSync(file, { force: true });
    }
  }

  private files(): string[] {
    return readdirSync(this.dir)
      .filter((name) => FILE.test(name))
      .sort();
  }
}
