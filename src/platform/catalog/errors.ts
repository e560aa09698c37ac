/** Errors of the catalog itself; those of the rules (leak, budget, stale generation) are in the domain. */
import {
  BadInputError,
  BudgetExceededError,
  JobFailedError,
  LeakError,
  ObjectCorruptError,
  ObjectMissingError,
  StaleGenerationError,
} from '../../domain/errors.js';
import { StorageFullError } from '../fsutil.js';

/** Another living process writes this catalog. */
export class CatalogLockedError extends Error {
  override name = 'CatalogLockedError';
}
/** The catalog was written by a newer version of the program. */
export class CatalogTooNewError extends Error {
  override name = 'CatalogTooNewError';
}
/** The catalog's file, disk or writer thread fails; what was committed before is kept. */
export class CatalogError extends Error {
  override name = 'CatalogError';
}

const BY_NAME: Record<string, new (message: string) => Error> = Object.fromEntries(
  [
    BadInputError,
    BudgetExceededError,
    JobFailedError,
    LeakError,
    ObjectCorruptError,
    ObjectMissingError,
    StaleGenerationError,
    StorageFullError,
    CatalogLockedError,
    CatalogTooNewError,
    CatalogError,
  ].map((type) => [new type('').name, type]),
);

/** An error on its way between threads: structured cloning keeps neither name nor class. */
export interface SentError {
  name: string;
  message: string;
  stack: string | undefined;
}

export function packError(error: unknown): SentError {
  if (error instanceof Error) return { name: error.name, message: error.message, stack: error.stack };
  return { name: 'Error', message: String(error), stack: undefined };
}

/** @returns an error of the class that bears the name, so that `instanceof` holds on the other side */
export function unpackError(sent: SentError): Error {
  const type = BY_NAME[sent.name];
  const error = type ? new type(sent.message) : Object.assign(new Error(sent.message), { name: sent.name });
  if (sent.stack !== undefined) error.stack = sent.stack;
  return error;
}

/** Says in words what SQLite's code means for the operator. Errors that are not SQLite's are handed back as they are. */
export function explainSqlite(error: unknown, file: string): unknown {
  const code = error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : '';
  if (!code.startsWith('SQLITE_')) return error;
  const said = `(${code}: ${(error as Error).message})`;
  if (code === 'SQLITE_FULL') {
    return new StorageFullError(
      `The disk is full: the catalog ${file} could not be written ${said}. Nothing of this change was kept, everything before it was. Free some space and start again.`,
    );
  }
  if (code.startsWith('SQLITE_CORRUPT') || code === 'SQLITE_NOTADB') {
    return new CatalogError(
      `The catalog ${file} is damaged or no catalog at all ${said}. It was left as it is. Restore a backup (flywheel restore FILE) into a new home.`,
    );
  }
  if (code.startsWith('SQLITE_BUSY')) {
    return new CatalogError(
      `The catalog ${file} is held by another process for too long ${said}. Nothing of this change was kept. Look for another program that has the file open, then try again.`,
    );
  }
  if (
    code.startsWith('SQLITE_READONLY') ||
    code.startsWith('SQLITE_IOERR') ||
    code.startsWith('SQLITE_CANTOPEN') ||
    code === 'SQLITE_PERM'
  ) {
    return new CatalogError(
      `The catalog ${file} cannot be opened or written ${said}. Nothing of this change was kept. Check the folder's permissions and the disk; it must be a local disk.`,
    );
  }
  return new CatalogError(`The catalog ${file} refused a change ${said}. Nothing of it was kept.`);
}
