/** Objects as files, `<root>/<first two hex>/<digest>`: the layout that Python jobs and the miner read too. */
import { createHash } from 'node:crypto';
import { constants, createReadStream, promises as fs } from 'node:fs';
import path from 'node:path';
import { pipeline } from 'node:stream/promises';
import { Digest } from '../../domain/contracts/common.js';
import { BadInputError, ObjectCorruptError, ObjectMissingError } from '../../domain/errors.js';
import { ensureDir, explainWriteError, isMissing, sweepTemporary, syncDir, temporaryBeside, TEMPORARY_PREFIX } from '../fsutil.js';
import type { ObjectStore } from '../ports.js';

/** Temporary files older than this belong to a writer that was killed. */
const LEFTOVER_MS = 3_600_000;

/** SHA-256 in lower-case hex. */
export function sha256(bytes: Uint8Array): Digest {
  return createHash('sha256').update(bytes).digest('hex');
}

/** SHA-256 of a file, read in pieces. */
export async function sha256File(file: string): Promise<Digest> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(file), hash);
  return hash.digest('hex');
}

export class FileObjectStore implements ObjectStore {
  constructor(
    /** absolute folder; made when the first object is put */
    readonly root: string,
  ) {
    if (!path.isAbsolute(root)) throw new BadInputError(`The object store needs an absolute folder, not ${root}.`);
  }

  path(digest: Digest): string {
    if (!Digest.safeParse(digest).success) {
      throw new BadInputError(`${JSON.stringify(digest)} is not a SHA-256 digest in lower-case hex. Nothing was read or written.`);
    }
    return path.join(this.root, digest.slice(0, 2), digest);
  }

  async has(digest: Digest): Promise<boolean> {
    return (await this.size(digest)) !== null;
  }

  async put(bytes: Uint8Array): Promise<Digest> {
    const digest = sha256(bytes);
    // A file of another length is a torn copy that something else left: it is written anew.
    if ((await this.size(digest)) === bytes.byteLength) return digest;
    await this.place(digest, async (temporary) => {
      const handle = await fs.open(temporary, 'wx', 0o644);
      try {
        await handle.writeFile(bytes);
        await handle.sync();
      } finally {
        await handle.close();
      }
    });
    return digest;
  }

  /** Copies the file in; the original stays where it is. */
  async putFile(file: string): Promise<Digest> {
    // The copy is hashed, not the original: that one may change between hashing and copying.
    await ensureDir(this.root);
    const copy = temporaryBeside(path.join(this.root, 'incoming'));
    try {
      try {
        await fs.copyFile(file, copy, constants.COPYFILE_FICLONE | constants.COPYFILE_EXCL);
      } catch (error) {
        if (isMissing(error)) throw new BadInputError(`${file} does not exist; nothing was stored.`);
        throw explainWriteError(error, this.root);
      }
      const digest = await sha256File(copy);
      if ((await this.size(digest)) === (await fs.stat(copy)).size) return digest;
      await this.place(digest, async (temporary) => {
        await fs.rename(copy, temporary);
        const handle = await fs.open(temporary, 'r+');
        try {
          await handle.chmod(0o644);
          await handle.sync();
        } finally {
          await handle.close();
        }
      });
      return digest;
    } finally {
      await fs.rm(copy, { force: true });
    }
  }

  async get(digest: Digest): Promise<Buffer> {
    const file = this.path(digest);
    let bytes: Buffer;
    try {
      bytes = await fs.readFile(file);
    } catch (error) {
      if (isMissing(error)) {
        throw new ObjectMissingError(
          `Object ${digest} is not in ${this.root}. Nothing was changed. Restore it from a backup, or import its source again.`,
        );
      }
      throw error;
    }
    const actual = sha256(bytes);
    if (actual !== digest) {
      throw new ObjectCorruptError(
        `Object ${digest} is damaged: its ${bytes.length} bytes hash to ${actual}. It was left at ${file} and not used. ` +
          'Delete that file, then restore it from a backup or import its source again; and check the disk.',
      );
    }
    return bytes;
  }

  async putJsonl(rows: Iterable<unknown>): Promise<Digest> {
    const parts: string[] = [];
    for (const row of rows) {
      const line = JSON.stringify(row) as string | undefined;
      if (line === undefined)
        throw new BadInputError(`Row ${parts.length + 1} cannot be written as JSON (${typeof row}). Nothing was stored.`);
      parts.push(line, '\n');
    }
    return this.put(Buffer.from(parts.join(''), 'utf8'));
  }

  /** @throws BadInputError naming the line that is no JSON or that `parse` refuses */
  async getJsonl<T>(digest: Digest, parse: (row: unknown) => T): Promise<T[]> {
    const rows: T[] = [];
    let number = 0;
    for (const line of (await this.get(digest)).toString('utf8').split('\n')) {
      number++;
      if (line === '') continue;
      try {
        rows.push(parse(JSON.parse(line)));
      } catch (error) {
        throw new BadInputError(`Line ${number} of object ${digest} is not what was expected: ${(error as Error).message}`, {
          cause: error,
        });
      }
    }
    return rows;
  }

  /**
   * Removes what killed writers left behind: temporary files older than an hour.
   * @returns how many
   */
  async sweep(olderThanMs = LEFTOVER_MS): Promise<number> {
    let folders: string[];
    try {
      folders = (await fs.readdir(this.root, { withFileTypes: true }))
        .filter((e) => e.isDirectory() && /^[0-9a-f]{2}$/.test(e.name))
        .map((e) => e.name);
    } catch (error) {
      if (isMissing(error)) return 0;
      throw error;
    }
    let removed = await sweepTemporary(this.root, olderThanMs);
    for (const folder of folders) removed += await sweepTemporary(path.join(this.root, folder), olderThanMs);
    return removed;
  }

  /** Every digest in the store, in order; temporary files are none. */
  async *list(): AsyncGenerator<Digest> {
    let folders: string[];
    try {
      folders = (await fs.readdir(this.root)).filter((name) => /^[0-9a-f]{2}$/.test(name)).sort();
    } catch (error) {
      if (isMissing(error)) return;
      throw error;
    }
    for (const folder of folders) {
      for (const name of (await fs.readdir(path.join(this.root, folder))).sort()) {
        if (!name.startsWith(TEMPORARY_PREFIX) && Digest.safeParse(name).success) yield name;
      }
    }
  }

  private async size(digest: Digest): Promise<number | null> {
    try {
      const stat = await fs.stat(this.path(digest));
      return stat.isFile() ? stat.size : null;
    } catch (error) {
      if (isMissing(error)) return null;
      throw error;
    }
  }

  /** Written aside, synced, renamed, and the folder synced: durable when it resolves, and never half there. */
  private async place(digest: Digest, write: (temporary: string) => Promise<void>): Promise<void> {
    const file = this.path(digest);
    await ensureDir(path.dirname(file));
    const temporary = temporaryBeside(file);
    try {
      await write(temporary);
      await fs.rename(temporary, file);
    } catch (error) {
      await fs.rm(temporary, { force: true });
      throw explainWriteError(error, file);
    }
    await syncDir(path.dirname(file));
  }
}
