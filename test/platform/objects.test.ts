import { chmod, mkdir, readdir, readFile, stat, utimes, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { BadInputError, ObjectCorruptError, ObjectMissingError } from '../../src/domain/errors.js';
import { explainWriteError, StorageFullError } from '../../src/platform/fsutil.js';
import { FileObjectStore, sha256 } from '../../src/platform/objects/file.js';
import { digest, temporaryFolder } from './support.js';

const store = async (): Promise<FileObjectStore> => new FileObjectStore(path.join(await temporaryFolder(), 'objects'));

describe('the file object store', () => {
  it('gives back the bytes it was given, at <root>/<first two hex>/<digest>', async () => {
    const objects = await store();
    const name = await objects.put(Buffer.from('cone'));
    expect(name).toBe(digest('cone'));
    expect((await objects.get(name)).toString()).toBe('cone');
    expect(await readFile(path.join(objects.root, name.slice(0, 2), name), 'utf8')).toBe('cone');
  });

  it('keeps the same bytes once and leaves no temporary file', async () => {
    const objects = await store();
    const name = await objects.put(Buffer.from('cone'));
    const before = await stat(objects.path(name));
    await Promise.all([objects.put(Buffer.from('cone')), objects.put(Buffer.from('cone'))]);
    expect((await stat(objects.path(name))).ino).toBe(before.ino);
    expect(await readdir(path.dirname(objects.path(name)))).toEqual([name]);
  });

  it('stores the same new object from many callers at once', async () => {
    const objects = await store();
    const bytes = Buffer.alloc(100_000, 7);
    const names = await Promise.all(Array.from({ length: 8 }, () => objects.put(bytes)));
    expect(new Set(names).size).toBe(1);
    expect(await readdir(path.dirname(objects.path(names[0]!)))).toEqual([names[0]]);
  });

  it('refuses bytes that no longer hash to their name, and leaves the file for a look', async () => {
    const objects = await store();
    const name = await objects.put(Buffer.from('cone'));
    await writeFile(objects.path(name), 'c0ne');
    await expect(objects.get(name)).rejects.toThrow(ObjectCorruptError);
    expect(await readFile(objects.path(name), 'utf8')).toBe('c0ne');
  });

  it('writes a torn object of another length anew', async () => {
    const objects = await store();
    const name = await objects.put(Buffer.from('cone'));
    await writeFile(objects.path(name), 'co');
    await objects.put(Buffer.from('cone'));
    expect((await objects.get(name)).toString()).toBe('cone');
  });

  it('names a missing object', async () => {
    const objects = await store();
    await expect(objects.get(digest('nothing'))).rejects.toThrow(ObjectMissingError);
    expect(await objects.has(digest('nothing'))).toBe(false);
  });

  it('refuses a name that is no digest, so that no path leads out of the store', async () => {
    const objects = await store();
    expect(() => objects.path('../../etc/passwd')).toThrow(BadInputError);
  });

  it('copies a file in and leaves the original', async () => {
    const objects = await store();
    const file = path.join(await temporaryFolder(), 'a.bin');
    await writeFile(file, 'barrier');
    const name = await objects.putFile(file);
    expect(name).toBe(digest('barrier'));
    expect((await objects.get(name)).toString()).toBe('barrier');
    expect(await readFile(file, 'utf8')).toBe('barrier');
    expect((await readdir(objects.root)).filter((entry) => entry.startsWith('.'))).toEqual([]);
  });

  it('writes JSON Lines compact, in order, with a newline after each', async () => {
    const objects = await store();
    const name = await objects.putJsonl([{ b: 1, a: 'ü' }, [2]]);
    expect((await objects.get(name)).toString('utf8')).toBe('{"b":1,"a":"ü"}\n[2]\n');
    expect(await objects.getJsonl(name, (row) => row)).toEqual([{ b: 1, a: 'ü' }, [2]]);
  });

  it('names the line of a JSON Lines object that does not parse', async () => {
    const objects = await store();
    const name = await objects.put(Buffer.from('{"a":1}\n{"a":\n'));
    await expect(objects.getJsonl(name, (row) => row)).rejects.toThrow(/Line 2/);
  });

  it('sweeps what killed writers left, and neither young files nor objects', async () => {
    const objects = await store();
    const name = await objects.put(Buffer.from('cone'));
    const folder = path.dirname(objects.path(name));
    const old = new Date(Date.now() - 7_200_000);
    for (const file of ['.tmp-1-old', '.part-old', '.tmp-2-young']) await writeFile(path.join(folder, file), 'x');
    for (const file of ['.tmp-1-old', '.part-old', name]) await utimes(path.join(folder, file), old, old);
    expect(await objects.sweep()).toBe(2);
    expect((await readdir(folder)).sort()).toEqual(['.tmp-2-young', name].sort());
  });

  it('lists every object and nothing else', async () => {
    const objects = await store();
    const names = await Promise.all(['a', 'b', 'c'].map((text) => objects.put(Buffer.from(text))));
    await writeFile(path.join(path.dirname(objects.path(names[0]!)), '.tmp-1'), 'x');
    await mkdir(path.join(objects.root, 'zz'));
    const listed: string[] = [];
    for await (const name of objects.list()) listed.push(name);
    expect(listed).toEqual([...names].sort());
  });

  it('keeps the old object and no leftover when a write is refused', async () => {
    const objects = await store();
    const name = sha256(Buffer.from('cone'));
    await mkdir(path.join(objects.root, name.slice(0, 2)), { recursive: true });
    // A folder where the object should be: the rename is refused, whoever runs the test.
    await mkdir(path.join(objects.root, name.slice(0, 2), name, 'in the way'), { recursive: true });
    await expect(objects.put(Buffer.from('cone'))).rejects.toThrow();
    expect(await readdir(path.join(objects.root, name.slice(0, 2)))).toEqual([name]);
    await chmod(objects.root, 0o755);
  });

  it('says in words that the disk is full', () => {
    const explained = explainWriteError(Object.assign(new Error('write'), { code: 'ENOSPC' }), '/data/x');
    expect(explained).toBeInstanceOf(StorageFullError);
    expect((explained as Error).message).toMatch(/disk is full.*kept unchanged.*Free some space/s);
  });
});
