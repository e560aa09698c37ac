/**
 * The single writer's lock file: who writes this catalog, by process id and start time. A lock whose process is gone
 * (kill -9, power loss) is taken over; a living one is refused. Synchronous: it runs in the writer's thread.
 */
import { randomBytes } from 'node:crypto';
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { z } from 'zod';
import { isMissing } from '../fsutil.js';
import { processStartSync } from '../process.js';
import { CatalogLockedError } from './errors.js';

const LockFile = z.object({ pid: z.number().int(), start: z.string(), token: z.string() });
export type LockFile = z.infer<typeof LockFile>;

export function newToken(): string {
  return randomBytes(8).toString('hex');
}

/** @returns the lock as written, null when there is none or when it can't be read as one (a torn file of a power loss) */
export function readLock(file: string): LockFile | null {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    if (isMissing(error)) return null;
    throw error;
  }
  try {
    return LockFile.parse(JSON.parse(text));
  } catch {
    return null;
  }
}

/** @returns the lock when a living process holds it, else null */
export function livingHolder(file: string): LockFile | null {
  const lock = readLock(file);
  return lock && processStartSync(lock.pid) === lock.start ? lock : null;
}

/**
 * Takes the lock. The caller holds SQLite's own write lock on the catalog (an immediate transaction) meanwhile, so that
 * two takers of one stale lock can't both win: looking and writing is one step for them.
 * @throws CatalogLockedError while its holder lives
 */
export function takeLock(file: string, token: string): void {
  const holder = livingHolder(file);
  if (holder) {
    throw new CatalogLockedError(
      `The catalog is written by process ${holder.pid}${holder.pid === process.pid ? ' (this one, which has it open already)' : ''}, which is running (lock ${file}). ` +
        'Nothing was changed. Stop that flywheel first, or use another --home.',
    );
  }
  const start = processStartSync(process.pid);
  if (start === null)
    throw new CatalogLockedError(
      `The start time of this process cannot be read, so the lock ${file} cannot be held. Is /proc mounted, or ps installed?`,
    );
  const temporary = `${file}.${token}`;
  writeFileSync(temporary, `${JSON.stringify({ pid: process.pid, start, token } satisfies LockFile)}\n`, { mode: 0o600 });
  renameSync(temporary, file);
}

/** Gives the lock back when it is ours; any other is left alone. */
export function releaseLock(file: string, token: string): void {
  if (readLock(file)?.token === token) rmSync(file, { force: true });
}
