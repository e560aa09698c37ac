/** Locks between processes that end with their holder, however it ends: the operating system's own, through SQLite. */
import { readFileSync, rmSync } from 'node:fs';
import { ProcessNote } from './home.js';
import { writeJsonAtomic } from './fsutil.js';
import { ownIdentity } from './process.js';

/** Another live process holds what was asked for. */
export class HomeLockedError extends Error {
  override name = 'HomeLockedError';
  constructor(
    message: string,
    /** the process that holds it; null in the moment before it has said who it is */
    readonly holder: ProcessNote | null,
  ) {
    super(message);
  }
}

export interface Lock {
  release(): void;
}

/**
 * Takes the lock of that file name until `release` or the end of this process. Files with ids in them would have to be
 * broken when their holder is gone, and two breakers can then both win.
 * @param what is locked, for the message
 * @throws HomeLockedError while another holds it
 */
export async function takeLock(file: string, what: string): Promise<Lock> {
  const { default: Database } = await import('better-sqlite3');
  const database = new Database(file, { timeout: 0 });
  // Who holds it stands in a file beside: opening and closing the locked one here again would drop the lock.
  const holderFile = `${file}.json`;
  try {
    database.exec('BEGIN EXCLUSIVE');
  } catch (error) {
    database.close();
    if (!String((error as { code?: unknown }).code).startsWith('SQLITE_BUSY')) throw error;
    const holder = holderOf(holderFile);
    const who = holder === null ? 'another process' : `process ${holder.pid}`;
    throw new HomeLockedError(
      `${what} is held by ${who}, which runs. Nothing was changed. Stop it${holder === null ? '' : ` (kill ${holder.pid})`}, or use another --home.`,
      holder,
    );
  }
  await writeJsonAtomic(holderFile, await ownIdentity(), { mode: 0o600 });
  return {
    release: () => {
      if (!database.open) return;
      rmSync(holderFile, { force: true });
      database.exec('ROLLBACK');
      database.close();
    },
  };
}

function holderOf(file: string): ProcessNote | null {
  try {
    return ProcessNote.parse(JSON.parse(readFileSync(file, 'utf8')));
  } catch {
    // Not written yet, or being removed.
    return null;
  }
}
