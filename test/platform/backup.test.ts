import { link, mkdir, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import Database from 'better-sqlite3';
import * as tar from 'tar';
import { describe, expect, it } from 'vitest';
import { BadInputError } from '../../src/domain/errors.js';
import { backup, restore } from '../../src/platform/backup.js';
import { CatalogTooNewError, openCatalog } from '../../src/platform/catalog/index.js';
import { FileObjectStore } from '../../src/platform/objects/index.js';
import type { Catalog } from '../../src/platform/ports.js';
import { atEnd, digest, image, temporaryFolder } from './support.js';

interface World {
  /** folder around everything */
  dir: string;
  home: string;
  file: string;
  catalog: Catalog;
  objects: FileObjectStore;
}

/** A home in use: its writer has the catalog open. */
async function world(): Promise<World> {
  const dir = await temporaryFolder();
  const home = path.join(dir, 'home');
  const files: Record<string, string> = {
    'champion.json': '{"generation":1}',
    'keys/miner.json': 'secret',
    'journal/segments/1.jsonl': '{"v":1}\n',
    [`journal/images/${digest('seen').slice(0, 2)}/${digest('seen')}`]: 'seen',
    'bundles/b/bundle.json': '{}',
    'published/m/model_card.json': '{}',
    'temporal/temporal.db': 'left out',
    'cache/features': 'left out',
    'logs/worker.log': 'left out',
    'jobs/j/spec.json': 'left out',
    'run/services.json': 'left out',
  };
  for (const [name, text] of Object.entries(files)) {
    await mkdir(path.dirname(path.join(home, name)), { recursive: true });
    await writeFile(path.join(home, name), text, { mode: name.startsWith('keys/') ? 0o600 : 0o644 });
  }
  const objects = new FileObjectStore(path.join(home, 'objects'));
  await objects.put(Buffer.from('cone'));
  // what jobs can compute again is no state: it is in no backup
  await mkdir(path.join(home, 'objects/derived/features'), { recursive: true });
  await writeFile(path.join(home, 'objects/derived/features/a.npz'), 'features');
  const catalog = await openCatalog(path.join(home, 'catalog.db'));
  atEnd(() => catalog.close());
  await catalog.addImages([image('a')], 1);
  return { dir, home, file: path.join(dir, 'backup.tar.gz'), catalog, objects };
}

async function tree(dir: string, prefix = ''): Promise<string[]> {
  const names: string[] = [];
  for (const entry of await readdir(path.join(dir, prefix), { withFileTypes: true })) {
    const name = path.posix.join(prefix, entry.name);
    if (entry.isDirectory()) names.push(...(await tree(dir, name)));
    else names.push(name);
  }
  return names.sort();
}

/** Unpacks a backup, lets the test change it, packs it again. */
async function tampered({ dir, file }: World, change: (staging: string) => Promise<void>): Promise<string> {
  const staging = path.join(dir, 'tampered');
  await mkdir(staging);
  await tar.extract({ file, cwd: staging });
  await change(staging);
  const result = path.join(dir, 'tampered.tar.gz');
  await tar.create({ file: result, cwd: staging, gzip: true }, ['manifest.json', 'home']);
  return result;
}

describe('backup and restore', () => {
  it('brings back catalog, objects, bundles, published models, journal, pointers and keys, while the flywheel runs', async () => {
    const w = await world();
    const report = await backup(w.home, w.file);
    expect(report.damaged).toEqual([]);
    const other = path.join(w.dir, 'deep', 'other');
    const restored = await restore(w.file, other);
    expect(restored).toMatchObject({ home: other, files: report.files, previous: null });
    expect(await tree(other)).toEqual(
      [
        'bundles/b/bundle.json',
        'catalog.db',
        'champion.json',
        `journal/images/${digest('seen').slice(0, 2)}/${digest('seen')}`,
        'journal/segments/1.jsonl',
        'keys/miner.json',
        `objects/${digest('cone').slice(0, 2)}/${digest('cone')}`,
        'published/m/model_card.json',
      ].sort(),
    );
    const catalog = await openCatalog(path.join(other, 'catalog.db'));
    atEnd(() => catalog.close());
    expect(await catalog.images()).toEqual([image('a')]);
    expect((await new FileObjectStore(path.join(other, 'objects')).get(digest('cone'))).toString()).toBe('cone');
  });

  it('keeps keys and the backup itself readable by their owner only', async () => {
    const w = await world();
    await backup(w.home, w.file);
    const other = path.join(w.dir, 'other');
    await restore(w.file, other);
    expect((await stat(w.file)).mode & 0o777).toBe(0o600);
    expect((await stat(path.join(other, 'keys/miner.json'))).mode & 0o777).toBe(0o600);
    expect((await stat(other)).mode & 0o077).toBe(0);
  });

  it('leaves nothing beside the backup and nothing in the home', async () => {
    const w = await world();
    const before = await tree(w.home);
    await backup(w.home, w.file);
    expect(await tree(w.home)).toEqual(before);
    expect((await readdir(w.dir)).sort()).toEqual(['backup.tar.gz', 'home']);
  });

  it('reports progress up to its end', async () => {
    const w = await world();
    const seen = new Map<string, [number, number]>();
    const onProgress = (p: { phase: string; done: number; total: number }): void => void seen.set(p.phase, [p.done, p.total]);
    await backup(w.home, w.file, { onProgress });
    await restore(w.file, path.join(w.dir, 'other'), { onProgress });
    expect([...seen.keys()]).toEqual(['collecting', 'packing', 'unpacking', 'verifying']);
    for (const [done, total] of seen.values()) expect(done).toBe(total);
  });

  it('leaves a damaged object out and names it, and packs hard-linked files whole', async () => {
    const w = await world();
    const bad = await w.objects.put(Buffer.from('barrier'));
    await writeFile(w.objects.path(bad), 'barr1er');
    await link(w.objects.path(digest('cone')), path.join(w.home, 'bundles/b/model.onnx'));
    const report = await backup(w.home, w.file);
    expect(report.damaged).toEqual([`objects/${bad.slice(0, 2)}/${bad}`]);
    const other = path.join(w.dir, 'other');
    await restore(w.file, other);
    expect(await readFile(path.join(other, 'bundles/b/model.onnx'), 'utf8')).toBe('cone');
    expect(await tree(other)).not.toContain(`objects/${bad.slice(0, 2)}/${bad}`);
    expect(await readFile(w.objects.path(bad), 'utf8')).toBe('barr1er');
  });

  it('replaces an older backup only by a whole one', async () => {
    const w = await world();
    await backup(w.home, w.file);
    const before = await readFile(w.file);
    await rm(path.join(w.home, 'catalog.db-wal'), { force: true });
    await expect(backup(path.join(w.dir, 'nowhere'), w.file)).rejects.toThrow(BadInputError);
    await mkdir(path.join(w.dir, 'empty'));
    await expect(backup(path.join(w.dir, 'empty'), w.file)).rejects.toThrow(/holds no flywheel/);
    expect(await readFile(w.file)).toEqual(before);
  });

  it('refuses a home that is not empty, and with force moves it aside whole', async () => {
    const w = await world();
    await backup(w.home, w.file);
    const other = path.join(w.dir, 'other');
    await mkdir(path.join(other, 'keys'), { recursive: true });
    await writeFile(path.join(other, 'keys/miner.json'), 'mine');
    await expect(restore(w.file, other)).rejects.toThrow(/is not empty.*left as it is/s);
    expect(await tree(other)).toEqual(['keys/miner.json']);
    const { previous } = await restore(w.file, other, { force: true });
    expect(await readFile(path.join(previous!, 'keys/miner.json'), 'utf8')).toBe('mine');
    expect(await readFile(path.join(other, 'keys/miner.json'), 'utf8')).toBe('secret');
  });

  it('takes a home of empty folders, logs and notes for an empty one', async () => {
    const w = await world();
    await backup(w.home, w.file);
    const other = path.join(w.dir, 'other');
    await mkdir(path.join(other, 'objects'), { recursive: true });
    await mkdir(path.join(other, 'logs'));
    await writeFile(path.join(other, 'logs/cli.log'), 'x');
    expect((await restore(w.file, other)).previous).toBeNull();
    expect(await readdir(w.dir)).toHaveLength(3);
  });

  it('refuses to restore over a running flywheel, force or not', async () => {
    const w = await world();
    await backup(w.home, w.file);
    await expect(restore(w.file, w.home, { force: true })).rejects.toThrow(/is running/);
    expect(await w.catalog.images()).toHaveLength(1);
  });

  it.each([
    ['is cut off', async (w: World) => writeFile(w.file, (await readFile(w.file)).subarray(0, -200))],
    ['is no archive', (w: World) => writeFile(w.file, 'this is no archive')],
    ['is empty', (w: World) => writeFile(w.file, '')],
    ['is not there', (w: World) => rm(w.file)],
  ])('refuses a backup that %s, and leaves no trace', async (_what, harm) => {
    const w = await world();
    await backup(w.home, w.file);
    await harm(w);
    await expect(restore(w.file, path.join(w.dir, 'other'))).rejects.toThrow(BadInputError);
    expect((await readdir(w.dir)).filter((name) => name !== 'backup.tar.gz')).toEqual(['home']);
  });

  it.each<[string, (staging: string) => Promise<void>, RegExp]>([
    ['with a changed file', (s) => writeFile(path.join(s, 'home/keys/miner.json'), 'stolen'), /keys\/miner\.json is damaged/],
    ['that lacks a file', (s) => rm(path.join(s, 'home/champion.json')), /champion\.json is missing/],
    ['with a file too many', (s) => writeFile(path.join(s, 'home/extra'), 'x'), /extra is not in its manifest/],
    ['without a manifest of ours', (s) => writeFile(path.join(s, 'manifest.json'), '{}'), /manifest\.json is missing or wrong/],
    ['with a link out of it', (s) => symlink('/etc/hostname', path.join(s, 'home/link')), /link \(SymbolicLink\)/],
  ])('refuses a backup %s, and leaves the home as it is', async (_what, change, message) => {
    const w = await world();
    await backup(w.home, w.file);
    const file = await tampered(w, change);
    const other = path.join(w.dir, 'other');
    await mkdir(other);
    await expect(restore(file, other)).rejects.toThrow(message);
    expect(await readdir(other)).toEqual([]);
  });

  it('refuses a backup of a newer catalog, but makes one of it', async () => {
    const w = await world();
    await w.catalog.close();
    const sqlite = new Database(path.join(w.home, 'catalog.db'));
    sqlite.exec('insert into schema_version values (999, 1)');
    sqlite.close();
    await backup(w.home, w.file);
    await expect(restore(w.file, path.join(w.dir, 'other'))).rejects.toThrow(CatalogTooNewError);
  });
});
