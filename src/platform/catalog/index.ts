/**
 * The catalog: everything said about objects, in SQLite. One process writes, in a thread of its own (`writer.ts`), so that no
 * statement ever holds the event loop; others read. What the words mean is the domain's business, not this folder's.
 */
import { existsSync } from 'node:fs';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { compiledEntry } from '../entry.js';
import type { Catalog } from '../ports.js';
import { CatalogError, unpackError } from './errors.js';
import { newToken, releaseLock } from './lock.js';
import { CatalogStore } from './store.js';
import type { Answer, Call, WriterData } from './writer.js';

export { CatalogError, CatalogLockedError, CatalogTooNewError } from './errors.js';
export { livingHolder } from './lock.js';
export { SCHEMA_VERSION } from './schema.js';

const METHODS = [
  'addImages',
  'images',
  'addLabels',
  'labels',
  'askReview',
  'answerReview',
  'reviews',
  'addChallengeSet',
  'addTraffic',
  'traffic',
  'journalOffsets',
  'setJournalOffset',
  'startTurn',
  'patchTurn',
  'turn',
  'turns',
  'addModel',
  'setModelStatus',
  'model',
  'models',
  'champion',
  'setChampion',
  'setSubmitted',
  'recordReminder',
  'reminders',
  'openTrial',
  'closeTrial',
  'trials',
  'reserve',
  'settle',
  'ledger',
  'backupTo',
  'close',
] as const satisfies readonly (keyof Catalog)[];

// Fails to compile when the port gets a method that is not forwarded.
type Missing = Exclude<keyof Catalog, (typeof METHODS)[number]>;
const complete: Missing extends never ? true : Missing = true;
void complete;

const READ_METHODS = [
  'images',
  'labels',
  'reviews',
  'traffic',
  'journalOffsets',
  'turn',
  'turns',
  'model',
  'models',
  'champion',
  'reminders',
  'trials',
  'ledger',
  'backupTo',
  'close',
] as const;

/** What status and console may ask: they never write. */
export type CatalogReader = Pick<Catalog, (typeof READ_METHODS)[number]>;

/** The lock file beside a catalog: `catalog.lock` in the same folder. */
export function catalogLockFile(catalogFile: string): string {
  return path.join(path.dirname(catalogFile), 'catalog.lock');
}

/**
 * Opens the catalog for writing: takes the lock, makes or upgrades the tables. Calls are done in the order they are made.
 * @param file absolute path, e.g. `<home>/catalog.db`; the lock `catalog.lock` is beside it
 * @throws CatalogLockedError while another living process has it; CatalogTooNewError for a newer schema; CatalogError
 */
export async function openCatalog(file: string): Promise<Catalog> {
  const entry = compiledEntry('platform/catalog/writer');
  if (!existsSync(entry))
    throw new CatalogError(`The compiled catalog writer ${entry} is missing. Build the program (npm run build), then start again.`);
  const lock = { file: catalogLockFile(file), token: newToken() };
  const worker = new Worker(entry, { workerData: { file, lock } satisfies WriterData, name: 'catalog-writer', execArgv: [] });

  const waiting = new Map<number, { resolve(value: unknown): void; reject(error: Error): void }>();
  let gone: Error | null = null;
  let closing: Promise<void> | null = null;
  let crash: Error | null = null;

  const opened = new Promise<unknown>((resolve, reject) => waiting.set(0, { resolve, reject }));
  worker.on('message', (message: Answer) => {
    const call = waiting.get(message.id);
    waiting.delete(message.id);
    if (message.ok) call?.resolve(message.value);
    else call?.reject(unpackError(message.error));
  });
  worker.on('error', (error) => {
    crash = error as Error;
  });
  const exited = new Promise<void>((resolve) => {
    worker.on('exit', () => {
      gone = closing
        ? new CatalogError(`The catalog ${file} is closed; the call did nothing.`)
        : new CatalogError(
            `The catalog's writer thread ended unexpectedly${crash ? `: ${crash.message}` : ''}. What was committed is kept. Start the flywheel again.`,
          );
      for (const call of waiting.values()) call.reject(gone);
      waiting.clear();
      // A thread that crashed left its lock while this process lives on: nobody could take it over.
      releaseLock(lock.file, lock.token);
      resolve();
    });
  });

  let last = 0;
  const call = (method: (typeof METHODS)[number], args: unknown[]): Promise<unknown> => {
    if (gone) return Promise.reject(gone);
    const id = ++last;
    return new Promise((resolve, reject) => {
      waiting.set(id, { resolve, reject });
      worker.postMessage({ id, method, args } satisfies Call);
    });
  };

  await opened.catch(async (error: unknown) => {
    await exited;
    throw error;
  });

  const proxy: Record<string, (...args: unknown[]) => Promise<unknown>> = {};
  for (const method of METHODS) proxy[method] = (...args) => call(method, args);
  proxy['close'] = () => {
    closing ??= (async () => {
      if (!gone) await call('close', []);
      await exited;
    })();
    return closing;
  };
  return proxy as unknown as Catalog;
}

/**
 * Opens the catalog for reading, beside a writer or without one. Short queries in the caller's thread.
 * @throws BadInputError when there is none yet; CatalogTooNewError; CatalogError (also when the schema is older: `up` upgrades it)
 */
export async function openCatalogReadOnly(file: string): Promise<CatalogReader> {
  const store = CatalogStore.openReadOnly(file);
  const reader: Record<string, (...args: unknown[]) => Promise<unknown>> = {};
  for (const name of READ_METHODS) {
    // The port is asynchronous: a throw becomes a rejection.
    reader[name] = async (...args) => (store[name] as (this: CatalogStore, ...args: unknown[]) => unknown).apply(store, args);
  }
  return reader as unknown as CatalogReader;
}

/** Copies a catalog of any schema into one file, consistently, beside its writer. @returns the schema version */
export function copyCatalog(file: string, target: string): number {
  return CatalogStore.copy(file, target);
}
