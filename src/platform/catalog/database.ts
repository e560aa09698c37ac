/**
 * The catalog's file: opened under the writer's lock or read only, brought to this version's tables, asked by prepared
 * statements, changed in immediate transactions. What is in the tables is the other files' business.
 */
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync } from 'node:fs';
import path from 'node:path';
import Database from 'better-sqlite3';
import type { Compilable, InferResult } from 'kysely';
import { BadInputError } from '../../domain/errors.js';
import { explainWriteError } from '../fsutil.js';
import { CatalogError, CatalogTooNewError, explainSqlite } from './errors.js';
import { releaseLock, takeLock } from './lock.js';
import { builder } from './query.js';
import { MIGRATIONS, SCHEMA_VERSION } from './schema.js';

/** How long a statement waits for another connection's lock, ms. */
const BUSY_MS = 10_000;

/** The same methods, synchronous. */
export type Synchronous<T> = { [K in keyof T]: T[K] extends (...args: infer A) => Promise<infer R> ? (...args: A) => R : T[K] };

export class CatalogDatabase {
  private readonly statements = new Map<string, Database.Statement>();

  private constructor(
    private readonly sqlite: Database.Database,
    readonly file: string,
    private readonly lock: { file: string; token: string } | null,
  ) {}

  /**
   * Opens for writing: takes the lock and brings the tables to this version, both in one transaction.
   * @throws CatalogLockedError, CatalogTooNewError, CatalogError
   */
  static open(file: string, lock: { file: string; token: string }): CatalogDatabase {
    let sqlite: Database.Database | undefined;
    try {
      mkdirSync(path.dirname(file), { recursive: true });
      sqlite = new Database(file, { timeout: BUSY_MS });
      sqlite.pragma('journal_mode = WAL');
      // FULL, not NORMAL: a champion, a submission or a bought machine that was reported as committed must survive a power
      // loss too. A turn commits some hundred times, so that the extra sync costs next to nothing.
      sqlite.pragma('synchronous = FULL');
      sqlite.pragma('foreign_keys = ON');
      const store = new CatalogDatabase(sqlite, file, lock);
      try {
        sqlite
          .transaction(() => {
            takeLock(lock.file, lock.token);
            store.migrate();
          })
          .immediate();
      } catch (error) {
        releaseLock(lock.file, lock.token);
        throw error;
      }
      return store;
    } catch (error) {
      sqlite?.close();
      throw explainWriteError(explainSqlite(error, file), file);
    }
  }

  /** Opens for reading beside a writer. @throws BadInputError when there is no catalog yet; CatalogTooNewError; CatalogError */
  static openReadOnly(file: string): CatalogDatabase {
    if (!existsSync(file))
      throw new BadInputError(`There is no catalog at ${file} yet. Start the flywheel once (flywheel up), or name the right --home.`);
    let sqlite: Database.Database | undefined;
    try {
      sqlite = new Database(file, { readonly: true, fileMustExist: true, timeout: BUSY_MS });
      const store = new CatalogDatabase(sqlite, file, null);
      const version = store.version();
      if (version < SCHEMA_VERSION) {
        throw new CatalogError(
          `The catalog ${file} has schema ${version}, this program reads ${SCHEMA_VERSION}. Nothing was changed. Start the flywheel (flywheel up), which brings it up to date.`,
        );
      }
      return store;
    } catch (error) {
      sqlite?.close();
      throw explainSqlite(error, file);
    }
  }

  /** As `backupTo`, of a catalog of any schema, beside its writer. @returns the schema version it has */
  static copy(file: string, target: string): number {
    let sqlite: Database.Database | undefined;
    try {
      sqlite = new Database(file, { readonly: true, fileMustExist: true, timeout: BUSY_MS });
      const version = sqlite.prepare('select max(version) from schema_version').pluck().get() as number;
      new CatalogDatabase(sqlite, file, null).backupTo(target);
      return version;
    } catch (error) {
      throw explainSqlite(error, file);
    } finally {
      sqlite?.close();
    }
  }

  /** One consistent state in one file (no WAL beside it), written aside, synced and renamed. */
  backupTo(target: string): void {
    const temporary = `${target}.tmp-${process.pid}`;
    try {
      rmSync(temporary, { force: true });
      this.sqlite.prepare('VACUUM INTO ?').run(temporary);
      const handle = openSync(temporary, 'r');
      try {
        fsyncSync(handle);
      } finally {
        closeSync(handle);
      }
      renameSync(temporary, target);
    } catch (error) {
      rmSync(temporary, { force: true });
      throw explainWriteError(explainSqlite(error, target), target);
    }
  }

  close(): void {
    if (!this.sqlite.open) return;
    this.sqlite.close();
    if (this.lock) releaseLock(this.lock.file, this.lock.token);
  }

  private version(): number {
    const tables = this.sqlite
      .prepare(`select name from sqlite_master where type = 'table' and name not like 'sqlite_%'`)
      .pluck()
      .all() as string[];
    if (tables.length === 0) return 0;
    if (!tables.includes('schema_version')) {
      throw new CatalogError(
        `${this.file} is an SQLite file of some other program (tables ${tables.slice(0, 5).join(', ')}). It was left as it is. Choose another --home.`,
      );
    }
    const version = (this.sqlite.prepare('select max(version) from schema_version').pluck().get() as number | null) ?? 0;
    if (version > SCHEMA_VERSION) {
      throw new CatalogTooNewError(
        `The catalog ${this.file} has schema ${version}; this program knows up to ${SCHEMA_VERSION}. It was left as it is. Use the newer version of the flywheel that wrote it, or restore a backup of the older one.`,
      );
    }
    return version;
  }

  /** Forward only. Runs inside the opening transaction. */
  private migrate(): void {
    const version = this.version();
    if (version === 0) {
      this.sqlite.exec('create table schema_version (version integer primary key, applied_at integer not null)');
    }
    for (const migration of MIGRATIONS) {
      if (migration.version <= version) continue;
      for (const step of migration.up(builder)) {
        const compiled = step.compile();
        this.sqlite.prepare(compiled.sql).run(...compiled.parameters);
      }
      this.sqlite
        .prepare(`insert into schema_version (version, applied_at) values (?, cast(unixepoch('subsec') * 1000 as integer))`)
        .run(migration.version);
    }
  }

  /** One immediate transaction (a nested call joins the outer one): all of it or nothing. */
  change<T>(work: () => T): T {
    try {
      return this.sqlite.transaction(work).immediate();
    } catch (error) {
      throw explainSqlite(error, this.file);
    }
  }

  private statement(query: Compilable): { statement: Database.Statement; parameters: unknown[] } {
    const compiled = query.compile();
    let statement = this.statements.get(compiled.sql);
    if (!statement) {
      statement = this.sqlite.prepare(compiled.sql);
      if (this.statements.size > 500) this.statements.clear();
      this.statements.set(compiled.sql, statement);
    }
    return { statement, parameters: [...compiled.parameters] };
  }

  /** @returns rows changed */
  run(query: Compilable): number {
    const { statement, parameters } = this.statement(query);
    return statement.run(...parameters).changes;
  }

  all<Q extends Compilable<unknown>>(query: Q): InferResult<Q> {
    try {
      const { statement, parameters } = this.statement(query);
      return statement.all(...parameters) as InferResult<Q>;
    } catch (error) {
      throw explainSqlite(error, this.file);
    }
  }

  one<O>(query: Compilable<O>): O | undefined {
    return (this.all(query) as O[])[0];
  }
}
