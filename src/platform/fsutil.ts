/**
 * Files written so that a crash leaves the old content or the new, never a part; and read with errors that say what to do.
 * The rest of the platform stands on this. No rules of the product here.
 */
import { randomBytes } from 'node:crypto';
import { constants, promises as fs } from 'node:fs';
import path from 'node:path';
import type { z } from 'zod';
import { BadInputError } from '../domain/errors.js';

/** The disk (or the quota) is full. Retrying helps once space was freed. */
export class StorageFullError extends Error {
  override name = 'StorageFullError';
}

/** Temporary files of this module begin so; `sweepTemporary` knows them by it. */
export const TEMPORARY_PREFIX = '.tmp-';
/** The Python jobs write aside under this one. */
const JOBS_TEMPORARY_PREFIX = '.part-';

function codeOf(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined;
}

/** @returns true for 'no such file or directory' */
export function isMissing(error: unknown): boolean {
  return codeOf(error) === 'ENOENT' || codeOf(error) === 'ENOTDIR';
}

/** Turns a full disk into a StorageFullError that says so; any other error is handed back as it is. */
export function explainWriteError(error: unknown, target: string): unknown {
  const code = codeOf(error);
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    return new StorageFullError(
      `The disk is full: ${target} could not be written (${code}). What was there before is kept unchanged. Free some space and start again.`,
      { cause: error },
    );
  }
  return error;
}

/** Makes the folder and its parents. @param mode permission bits of a new folder */
export async function ensureDir(dir: string, mode?: number): Promise<string> {
  try {
    await fs.mkdir(dir, mode === undefined ? { recursive: true } : { recursive: true, mode });
  } catch (error) {
    throw explainWriteError(error, dir);
  }
  return dir;
}

/** Syncs a folder, so that a rename in it survives a power loss. File systems that can't sync a folder are let be. */
export async function syncDir(dir: string): Promise<void> {
  let handle;
  try {
    handle = await fs.open(dir, constants.O_RDONLY);
    await handle.sync();
  } catch (error) {
    if (!['EINVAL', 'EISDIR', 'EPERM', 'ENOTSUP'].includes(codeOf(error) ?? '')) throw error;
  } finally {
    await handle?.close();
  }
}

/** A name beside `target` for a file that is not yet complete: it holds our process id, so that leftovers can be told. */
export function temporaryBeside(target: string): string {
  return path.join(path.dirname(target), `${TEMPORARY_PREFIX}${process.pid}-${randomBytes(6).toString('hex')}`);
}

/**
 * Writes the whole file aside, syncs it, and renames it over `file`: readers see the old content or the new.
 * The parent folder is made when missing.
 * @param options.mode permission bits (0o600 for secrets); set before any byte is written
 * @throws StorageFullError when the disk is full; the old file is kept then
 */
export async function writeFileAtomic(file: string, data: string | Uint8Array, options: { mode?: number } = {}): Promise<void> {
  await ensureDir(path.dirname(file));
  const temporary = temporaryBeside(file);
  try {
    const handle = await fs.open(temporary, 'wx', options.mode ?? 0o644);
    try {
      // The process's umask may have taken bits away; an explicit mode is meant as it stands.
      if (options.mode !== undefined) await handle.chmod(options.mode);
      await handle.writeFile(data);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await fs.rename(temporary, file);
  } catch (error) {
    await fs.rm(temporary, { force: true });
    throw explainWriteError(error, file);
  }
  await syncDir(path.dirname(file));
}

/** `writeFileAtomic` of indented JSON with a newline at the end. */
export async function writeJsonAtomic(file: string, value: unknown, options: { mode?: number } = {}): Promise<void> {
  await writeFileAtomic(file, `${JSON.stringify(value, null, 2)}\n`, options);
}

/**
 * Reads a JSON file and checks its shape.
 * @throws BadInputError when it is missing, not JSON, or of another shape; the message names the file and each wrong field
 */
export async function readJson<T>(file: string, schema: z.ZodType<T>): Promise<T> {
  const value = await readJsonIfExists(file, schema);
  if (value === null) throw new BadInputError(`${file} does not exist. Nothing was changed.`);
  return value;
}

/** As `readJson`, but null when there is no such file. @throws BadInputError when it is there and wrong */
export async function readJsonIfExists<T>(file: string, schema: z.ZodType<T>): Promise<T | null> {
  let text: string;
  try {
    text = await fs.readFile(file, 'utf8');
  } catch (error) {
    if (isMissing(error)) return null;
    throw error;
  }
  return parseJson(text, schema, file);
}

/** @param name what the text is, for the message. @throws BadInputError */
export function parseJson<T>(text: string, schema: z.ZodType<T>, name: string): T {
  let value: unknown;
  try {
    value = JSON.parse(text.charCodeAt(0) === 0xfeff ? text.slice(1) : text);
  } catch (error) {
    throw new BadInputError(`${name} is not valid JSON: ${(error as Error).message}. The file was left as it is; correct or remove it.`);
  }
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issues = parsed.error.issues.slice(0, 8).map((issue) => `${issue.path.join('.') || '(whole)'}: ${issue.message}`);
  const more = parsed.error.issues.length > 8 ? ` and ${parsed.error.issues.length - 8} more` : '';
  throw new BadInputError(
    `${name} has another shape than expected: ${issues.join('; ')}${more}. The file was left as it is; correct or remove it.`,
  );
}

/**
 * Removes temporary files that a killed writer left in `dir` (not below it). Files younger than `olderThanMs` are let be:
 * their writer may still be at work.
 * @returns how many were removed
 */
export async function sweepTemporary(dir: string, olderThanMs = 3_600_000, now: () => number = Date.now): Promise<number> {
  let names: string[];
  try {
    names = await fs.readdir(dir);
  } catch (error) {
    if (isMissing(error)) return 0;
    throw error;
  }
  let removed = 0;
  for (const name of names) {
    if (!name.startsWith(TEMPORARY_PREFIX) && !name.startsWith(JOBS_TEMPORARY_PREFIX)) continue;
    const file = path.join(dir, name);
    const stat = await fs.stat(file).catch(() => null);
    if (!stat || now() - stat.mtimeMs < olderThanMs) continue;
    await fs.rm(file, { force: true, recursive: true });
    removed++;
  }
  return removed;
}

/** Last `bytes` bytes of a file as text, from a line's beginning; '' when it does not exist. */
export async function readTail(file: string, bytes: number): Promise<string> {
  let handle;
  try {
    handle = await fs.open(file, 'r');
    const { size } = await handle.stat();
    const length = Math.min(size, bytes);
    const buffer = Buffer.alloc(length);
    await handle.read(buffer, 0, length, size - length);
    const text = buffer.toString('utf8');
    const newline = length < size ? text.indexOf('\n') : -1;
    return newline >= 0 && newline + 1 < text.length ? text.slice(newline + 1) : text;
  } catch (error) {
    if (isMissing(error)) return '';
    throw error;
  } finally {
    await handle?.close();
  }
}
