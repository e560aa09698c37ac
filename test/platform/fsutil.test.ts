import { readdir, readFile, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import { BadInputError } from '../../src/domain/errors.js';
import { readJson, readJsonIfExists, readTail, writeFileAtomic, writeJsonAtomic } from '../../src/platform/fsutil.js';
import { temporaryFolder } from './support.js';

const Shape = z.object({ a: z.number() });

describe('files', () => {
  it('replaces a file as a whole and leaves nothing beside it', async () => {
    const dir = await temporaryFolder();
    await writeFileAtomic(path.join(dir, 'deep', 'a'), 'old');
    await writeFileAtomic(path.join(dir, 'deep', 'a'), 'new');
    expect(await readFile(path.join(dir, 'deep', 'a'), 'utf8')).toBe('new');
    expect(await readdir(path.join(dir, 'deep'))).toEqual(['a']);
  });

  it('writes a secret readable by its owner only', async () => {
    const file = path.join(await temporaryFolder(), 'key');
    await writeFileAtomic(file, 'secret', { mode: 0o600 });
    expect((await stat(file)).mode & 0o777).toBe(0o600);
  });

  it('reads JSON of the expected shape, byte order mark or not', async () => {
    const file = path.join(await temporaryFolder(), 'a.json');
    await writeJsonAtomic(file, { a: 1 });
    expect(await readJson(file, Shape)).toEqual({ a: 1 });
    await writeFile(file, '\ufeff{"a": 2}');
    expect(await readJson(file, Shape)).toEqual({ a: 2 });
  });

  it('names the file and the field of JSON of another shape', async () => {
    const file = path.join(await temporaryFolder(), 'a.json');
    await writeFile(file, '{"a": "x"}');
    await expect(readJson(file, Shape)).rejects.toThrow(/a\.json.*a: /s);
  });

  it('names the file that is no JSON, or missing', async () => {
    const file = path.join(await temporaryFolder(), 'a.json');
    await expect(readJson(file, Shape)).rejects.toThrow(BadInputError);
    expect(await readJsonIfExists(file, Shape)).toBeNull();
    await writeFile(file, '{"a": ');
    await expect(readJson(file, Shape)).rejects.toThrow(/not valid JSON/);
  });

  it('reads the end of a long file from a line on', async () => {
    const file = path.join(await temporaryFolder(), 'log');
    await writeFile(file, 'first line\nsecond\nthird\n');
    expect(await readTail(file, 15)).toBe('second\nthird\n');
    expect(await readTail(file, 10)).toBe('third\n');
    expect(await readTail(file, 1000)).toBe('first line\nsecond\nthird\n');
  });
});
