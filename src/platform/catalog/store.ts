/**
 * The catalog on SQLite, synchronous: it runs in the writer's thread (read and write) and in readers (read only).
 * kysely builds the statements, better-sqlite3 runs them, each change in one immediate transaction.
 */
import type { Catalog } from '../ports.js';
import { championsPart } from './champions.js';
import { CatalogDatabase, type Synchronous } from './database.js';
import { imagesPart } from './images.js';
import { ledgerPart } from './ledger.js';
import { modelsPart } from './models.js';
import { trafficPart } from './traffic.js';

/**
 * All methods of `Catalog`, synchronous. What each promises is said at the port; orders of lists are said here.
 * Every method may be repeated with the same arguments.
 */
export type CatalogStore = Synchronous<Catalog>;

const storeOn = (db: CatalogDatabase): CatalogStore => ({
  ...imagesPart(db),
  ...trafficPart(db),
  ...modelsPart(db),
  ...championsPart(db),
  ...ledgerPart(db),
  backupTo: (target) => db.backupTo(target),
  close: () => db.close(),
});

export const CatalogStore = {
  /** As `CatalogDatabase.open`. */
  open: (file: string, lock: { file: string; token: string }): CatalogStore => storeOn(CatalogDatabase.open(file, lock)),
  /** As `CatalogDatabase.openReadOnly`. */
  openReadOnly: (file: string): CatalogStore => storeOn(CatalogDatabase.openReadOnly(file)),
  /** As `CatalogDatabase.copy`. */
  copy: (file: string, target: string): number => CatalogDatabase.copy(file, target),
};
