/**
 * One file that holds what must survive: catalog (an online copy), objects, bundles, published models, journal, pointer files
 * and keys. Left out: Temporal's database (rebuilt from the catalog), caches, logs, jobs, what runs now.
 * A backup is consistent while the flywheel runs: pointer files are taken before the catalog, objects after it.
 */
import { createReadStream, constants, promises as fs } from 'node:fs';
import path from 'node:path';
import { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import Database from 'better-sqlite3';
import * as tar from 'tar';
import { z } from 'zod';
import { Digest } from '../domain/contracts/common.js';
import { BadInputError } from '../domain/errors.js';
import { catalogLockFile, CatalogTooNewError, copyCatalog, livingHolder, SCHEMA_VERSION } from './catalog/index.js';
import {
  ensureDir,
  explainWriteError,
  isMissing,
  readJson,
  sweepTemporary,
  syncDir,
  temporaryBeside,
  TEMPORARY_PREFIX,
  writeJsonAtomic,
} from './fsutil.js';
import { sha256File } from './objects/file.js';

export interface BackupProgress {
  phase: 'collecting' | 'packing' | 'unpacking' | 'verifying';
  done: number;
  total: number;
  unit: 'files' | 'bytes';
}
export interface BackupReport {
  file: string;
  bytes: number;
  files: number;
  /** objects whose bytes do not hash to their name: not in the backup, left where they are */
  damaged: string[];
}
export interface RestoreReport {
  home: string;
  files: number;
  createdAt: number;
  /** where the former home was moved, null when there was none worth keeping */
  previous: string | null;
}

/** Folders of a home that are backed up. */
const FOLDERS = ['keys', 'journal', 'objects', 'bundles', 'published'];
const CATALOG = 'catalog.db';
/** What jobs can compute again (features): no state. */
const DERIVED = 'objects/derived/';

/** Files of a home that are not: the catalog is copied by itself, its lock is of the moment, older backups are no state. */
const SKIPPED_FILES = /^(catalog\.(db|db-wal|db-shm|db-journal|lock)|.*\.(lock|log|pid|sock|tmp|tgz|tar\.gz))$/;
/** What may lie in a home that is still as good as empty. */
const WORTHLESS = new Set(['logs', 'run', 'cache', 'temporal']);

const Manifest = z.object({
  format: z.literal('flywheel-backup/1'),
  /** ms since the epoch */
  createdAt: z.number(),
  /** catalog schema, null without a catalog */
  schema: z.number().int().nullable(),
  files: z.array(z.object({ path: z.string().min(1), bytes: z.number().int().min(0), sha256: Digest, mode: z.number().int() })),
});
type Manifest = z.infer<typeof Manifest>;
const MANIFEST = 'manifest.json';
const CONTENT = 'home';

/**
 * Writes the backup aside, syncs it and renames it over `file`; an older backup of that name is replaced only by a whole one.
 * The file holds private keys: its mode is 0600.
 * @throws BadInputError when `home` holds nothing to back up; StorageFullError; CatalogError
 */
export async function backup(
  home: string,
  file: string,
  options: { onProgress?: (progress: BackupProgress) => void; clock?: () => number } = {},
): Promise<BackupReport> {
  const root = path.resolve(home);
  const target = path.resolve(file);
  const report = options.onProgress ?? (() => undefined);
  let entries;
  try {
    entries = await fs.readdir(root, { withFileTypes: true });
  } catch (error) {
    if (isMissing(error)) throw new BadInputError(`There is no flywheel home at ${root}; nothing was written. Name it with --home.`);
    throw error;
  }
  if (!entries.some((entry) => entry.name === CATALOG || FOLDERS.includes(entry.name))) {
    throw new BadInputError(
      `${root} holds no flywheel (no ${CATALOG} and none of ${FOLDERS.join(', ')}); nothing was written. Name its home with --home.`,
    );
  }
  await sweepTemporary(root);
  const staging = temporaryBeside(path.join(root, 'backup'));
  const packed = temporaryBeside(target);
  try {
    await fs.mkdir(path.join(staging, CONTENT), { recursive: true, mode: 0o700 });
    const stage = (relative: string): string => path.join(staging, CONTENT, relative);

    // Pointers first: the catalog commits a champion before its pointer is written, so the copy is never behind the pointer.
    for (const entry of entries) {
      if (entry.isFile() && !SKIPPED_FILES.test(entry.name) && !entry.name.startsWith(TEMPORARY_PREFIX))
        await copy(path.join(root, entry.name), stage(entry.name));
    }
    let schema: number | null = null;
    if (entries.some((entry) => entry.name === CATALOG)) {
      schema = copyCatalog(path.join(root, CATALOG), stage(CATALOG));
      await fs.chmod(stage(CATALOG), 0o600);
    }
    // Objects after the catalog: whatever a row names was stored before the row.
    for (const folder of FOLDERS) await collect(root, folder, stage);

    const names = (await filesBelow(path.join(staging, CONTENT))).sort();
    const damaged: string[] = [];
    const files: Manifest['files'] = [];
    for (const [index, name] of names.entries()) {
      const staged = stage(name);
      const sha256 = await sha256File(staged);
      const { size, mode } = await fs.stat(staged);
      if (isContentAddressed(name) && path.basename(name) !== sha256) {
        damaged.push(name);
        await fs.rm(staged);
      } else files.push({ path: name, bytes: size, sha256, mode: mode & 0o777 });
      report({ phase: 'collecting', done: index + 1, total: names.length, unit: 'files' });
    }
    await writeJsonAtomic(path.join(staging, MANIFEST), {
      format: 'flywheel-backup/1',
      createdAt: (options.clock ?? Date.now)(),
      schema,
      files,
    } satisfies Manifest);

    await ensureDir(path.dirname(target));
    let written = 0;
    await tar.create(
      {
        file: packed,
        cwd: staging,
        mode: 0o600,
        portable: true,
        // Photographs don't shrink: little effort for the rest.
        gzip: { level: 1 },
        // Every file whole, also where a bundle's file is a hard link to an object.
        linkCache: new NoLinks(),
        onWriteEntry: (entry: { type?: string }) => {
          if (entry.type === 'File')
            report({ phase: 'packing', done: Math.min(++written, files.length), total: files.length, unit: 'files' });
        },
      },
      [MANIFEST, CONTENT],
    );
    await fs.chmod(packed, 0o600);
    const handle = await fs.open(packed, 'r+');
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
    await fs.rename(packed, target);
    await syncDir(path.dirname(target));
    return { file: target, bytes: (await fs.stat(target)).size, files: files.length, damaged };
  } catch (error) {
    throw explainWriteError(error, target);
  } finally {
    await fs.rm(packed, { force: true });
    await fs.rm(staging, { recursive: true, force: true });
  }
}

/**
 * Unpacks beside `home`, verifies every byte, then puts it there by one rename: all or nothing.
 * @param options.force a home in use before is moved aside (never deleted) and named in the report
 * @throws BadInputError for a file that is no whole backup, or a home that is not empty or still running; CatalogTooNewError; StorageFullError
 */
export async function restore(
  file: string,
  home: string,
  options: { force?: boolean; onProgress?: (progress: BackupProgress) => void } = {},
): Promise<RestoreReport> {
  const root = path.resolve(home);
  const source = path.resolve(file);
  const report = options.onProgress ?? (() => undefined);
  const kept = `${root} was left as it is.`;

  const holder = livingHolder(catalogLockFile(path.join(root, CATALOG)));
  if (holder)
    throw new BadInputError(
      `A flywheel is running on ${root} (process ${holder.pid}). ${kept} Stop it first, or restore into another --home.`,
    );
  const occupied = await holdsSomething(root);
  if (occupied && !options.force) {
    throw new BadInputError(
      `${root} is not empty. ${kept} Restore into a new --home, or say that it may be replaced (--force): it is then moved aside, not deleted.`,
    );
  }
  const total = await fs.stat(source).then(
    (stat) => stat.size,
    (error: unknown) => {
      if (isMissing(error)) throw new BadInputError(`There is no file ${source}. ${kept}`);
      throw error;
    },
  );

  await ensureDir(path.dirname(root));
  await sweepTemporary(path.dirname(root));
  const staging = temporaryBeside(root);
  try {
    await fs.mkdir(staging, { mode: 0o700 });
    await unpack(source, staging, (done) => report({ phase: 'unpacking', done, total, unit: 'bytes' }), kept);
    const manifest = await verify(staging, source, (done, all) => report({ phase: 'verifying', done, total: all, unit: 'files' }), kept);
    const previous = await replace(root, path.join(staging, CONTENT), occupied);
    return { home: root, files: manifest.files.length, createdAt: manifest.createdAt, previous };
  } catch (error) {
    throw explainWriteError(error, staging);
  } finally {
    // An unpacking that failed may have files on their way still: removing is tried until it is through.
    await fs.rm(staging, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
  }
}

class NoLinks extends Map<`${number}:${number}`, string> {
  override get(): undefined {
    return undefined;
  }
}

function isContentAddressed(name: string): boolean {
  return /^(objects|journal\/images)\/[0-9a-f]{2}\/[0-9a-f]{64}$/.test(name);
}

/** Immutable files are linked, so that nothing of them can vanish meanwhile; files that grow or change are copied. */
async function collect(root: string, folder: string, stage: (relative: string) => string): Promise<void> {
  for (const below of await filesBelow(path.join(root, folder))) {
    const relative = path.posix.join(folder, below);
    if (relative.startsWith(DERIVED)) continue;
    const from = path.join(root, relative);
    await ensureDir(path.dirname(stage(relative)), 0o700);
    const immutable = isContentAddressed(relative);
    if (!immutable || !(await link(from, stage(relative)))) await copy(from, stage(relative));
  }
}

/** @returns false where the file system has no hard links */
async function link(from: string, to: string): Promise<boolean> {
  try {
    await fs.link(from, to);
    return true;
  } catch (error) {
    if (isMissing(error)) return true;
    if (['EXDEV', 'EPERM', 'EMLINK', 'ENOTSUP', 'ENOSYS'].includes((error as NodeJS.ErrnoException).code ?? '')) return false;
    throw error;
  }
}

/** With its mode. A file that is gone meanwhile (a bounded journal, a closed trial) is no error. */
async function copy(from: string, to: string): Promise<void> {
  try {
    const { mode } = await fs.stat(from);
    await fs.copyFile(from, to, constants.COPYFILE_EXCL);
    await fs.chmod(to, mode & 0o777);
  } catch (error) {
    if (!isMissing(error)) throw error;
  }
}

/** Relative paths with `/` of all files; temporary files are none, and links are not followed. */
async function filesBelow(dir: string, prefix = ''): Promise<string[]> {
  let entries;
  try {
    entries = await fs.readdir(path.join(dir, prefix), { withFileTypes: true });
  } catch (error) {
    if (isMissing(error)) return [];
    throw error;
  }
  const files: string[] = [];
  for (const entry of entries) {
    if (entry.name.startsWith(TEMPORARY_PREFIX) || entry.name.startsWith('.part-')) continue;
    const name = path.posix.join(prefix, entry.name);
    if (entry.isDirectory()) files.push(...(await filesBelow(dir, name)));
    else if (entry.isFile()) files.push(name);
  }
  return files;
}

async function holdsSomething(root: string): Promise<boolean> {
  let entries;
  try {
    entries = await fs.readdir(root, { withFileTypes: true });
  } catch (error) {
    if (isMissing(error)) return false;
    throw error;
  }
  for (const entry of entries) {
    if (WORTHLESS.has(entry.name)) continue;
    if (!entry.isDirectory() || (await filesBelow(path.join(root, entry.name))).length > 0) return true;
  }
  return false;
}

async function unpack(source: string, staging: string, progress: (bytes: number) => void, kept: string): Promise<void> {
  let refused: string | null = null;
  let read = 0;
  const counting = new Transform({
    transform(chunk: Buffer, _encoding, next) {
      read += chunk.length;
      progress(read);
      next(null, chunk);
    },
  });
  const extract = tar.extract({
    cwd: staging,
    strict: true,
    // Files and folders only: a link or device in an archive is an attack or an accident.
    filter: (name, entry) => {
      const type = 'type' in entry ? entry.type : 'File';
      const inside = name === MANIFEST || name === `${CONTENT}/` || name === CONTENT || name.startsWith(`${CONTENT}/`);
      const fine = (type === 'File' || type === 'OldFile' || type === 'Directory') && inside && !name.split('/').includes('..');
      if (!fine) refused ??= `${name} (${type})`;
      return fine;
    },
  });
  try {
    await pipeline(createReadStream(source), counting, extract);
  } catch (error) {
    const explained = explainWriteError(error, staging);
    if (explained !== error) throw explained;
    throw new BadInputError(
      `${source} is not a whole backup: ${(error as Error).message}. Nothing was restored; ${kept} Take another backup file.`,
      { cause: error },
    );
  }
  if (refused !== null)
    throw new BadInputError(`${source} holds ${String(refused)}, which no backup of ours does. Nothing was restored; ${kept}`);
}

async function verify(staging: string, source: string, progress: (done: number, total: number) => void, kept: string): Promise<Manifest> {
  const wrong = (what: string): BadInputError =>
    new BadInputError(`${source} is not a whole backup: ${what}. Nothing was restored; ${kept} Take another backup file.`);
  let manifest: Manifest;
  try {
    manifest = await readJson(path.join(staging, MANIFEST), Manifest);
  } catch (error) {
    throw wrong(`its ${MANIFEST} is missing or wrong (${(error as Error).message})`);
  }
  if (manifest.schema !== null && manifest.schema > SCHEMA_VERSION) {
    throw new CatalogTooNewError(
      `The backup ${source} has catalog schema ${manifest.schema}; this program knows up to ${SCHEMA_VERSION}. Nothing was restored; ${kept} Use the newer version of the flywheel.`,
    );
  }
  const unpacked = new Set(await filesBelow(path.join(staging, CONTENT)));
  for (const [index, expected] of manifest.files.entries()) {
    const file = path.join(staging, CONTENT, expected.path);
    if (!unpacked.delete(expected.path)) throw wrong(`${expected.path} is missing`);
    if ((await sha256File(file)) !== expected.sha256) throw wrong(`${expected.path} is damaged (its bytes do not hash to its digest)`);
    await fs.chmod(file, expected.mode);
    progress(index + 1, manifest.files.length);
  }
  if (unpacked.size > 0) throw wrong(`${[...unpacked][0]} is not in its manifest`);
  if (manifest.schema !== null) checkDatabase(path.join(staging, CONTENT, CATALOG), wrong);
  return manifest;
}

function checkDatabase(file: string, wrong: (what: string) => BadInputError): void {
  let said: unknown;
  try {
    const sqlite = new Database(file, { readonly: true, fileMustExist: true });
    try {
      said = sqlite.pragma('integrity_check', { simple: true });
    } finally {
      sqlite.close();
    }
  } catch (error) {
    throw wrong(`its catalog cannot be opened (${(error as Error).message})`);
  }
  if (said !== 'ok') throw wrong(`its catalog is damaged (${String(said)})`);
}

/** @returns where the former home is, when it held something */
async function replace(root: string, restored: string, occupied: boolean): Promise<string | null> {
  const aside = `${root}.before-restore-${new Date().toISOString().replace(/[:.]/g, '-')}`;
  let moved = false;
  try {
    await fs.rename(root, aside);
    moved = true;
  } catch (error) {
    if (!isMissing(error)) {
      throw new BadInputError(
        `${root} cannot be moved aside (${(error as Error).message}); it may be a mount point. It was left as it is. Restore into a folder below it, with --home.`,
        { cause: error },
      );
    }
  }
  try {
    await fs.rename(restored, root);
    await syncDir(path.dirname(root));
  } catch (error) {
    if (moved) await fs.rename(aside, root);
    throw error;
  }
  if (moved && !occupied) {
    await fs.rm(aside, { recursive: true, force: true });
    return null;
  }
  return moved ? aside : null;
}
