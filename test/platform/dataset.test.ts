import { mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import fc from 'fast-check';
import sharp, { type Sharp } from 'sharp';
import { describe, expect, it } from 'vitest';
import { BadInputError } from '../../src/domain/errors.js';
import { hammingHex, hammingPairs, nearDuplicates, readImages, scanDataset, type ReadImage } from '../../src/platform/dataset/index.js';
import { FileObjectStore } from '../../src/platform/objects/index.js';
import { temporaryFolder } from './support.js';

/** A picture that looks like no other seed's: blocks of seeded colours. */
function picture(seed: number, width = 96, height = 72): Sharp {
  const cells = Buffer.alloc(12 * 9 * 3);
  let state = (seed * 2654435761 + 12345) >>> 0;
  for (let i = 0; i < cells.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    cells[i] = state >>> 24;
  }
  return sharp(cells, { raw: { width: 12, height: 9, channels: 3 } }).resize(width, height, { kernel: 'cubic' });
}
const jpeg = (seed: number, quality = 90): Promise<Buffer> => picture(seed).jpeg({ quality }).toBuffer();

async function dataset(files: Record<string, string | Buffer>): Promise<string> {
  const dir = await temporaryFolder();
  for (const [name, content] of Object.entries(files)) {
    await mkdir(path.dirname(path.join(dir, name)), { recursive: true });
    await writeFile(path.join(dir, name), content);
  }
  return dir;
}

async function both(extra: Record<string, string | Buffer> = {}): Promise<Record<string, string | Buffer>> {
  return { 'images/a.jpg': await jpeg(1), 'images/b.jpg': await jpeg(2), ...extra };
}
const store = async (): Promise<FileObjectStore> => new FileObjectStore(await temporaryFolder());

describe('a data set with labels.csv', () => {
  it('reads file, label, split, group and licence, and takes the clip before # for the group where none is given', async () => {
    const dir = await dataset(
      await both({
        'c.jpg': await jpeg(3),
        'labels.csv':
          'file,label,split,group,source_repo,source_path,licence\na.jpg,1,train,,clips,drive/one.mp4#t=3.5,CC0-1.0\nimages/b.jpg,0,val,mine,clips,drive/one.mp4#t=4,\nc.jpg,0,,,,\n',
      }),
    );
    const { rows, problems } = await scanDataset(dir);
    expect(problems).toEqual([]);
    expect(rows).toEqual([
      {
        file: 'a.jpg',
        absolutePath: path.join(dir, 'images/a.jpg'),
        label: 1,
        split: 'train',
        group: 'drive/one.mp4',
        source: 'clips',
        licence: 'CC0-1.0',
      },
      {
        file: 'c.jpg',
        absolutePath: path.join(dir, 'c.jpg'),
        label: 0,
        split: null,
        group: 'c',
        source: path.basename(dir),
        licence: null,
      },
      {
        file: 'images/b.jpg',
        absolutePath: path.join(dir, 'images/b.jpg'),
        label: 0,
        split: 'val',
        group: 'mine',
        source: 'clips',
        licence: null,
      },
    ]);
  });

  it('understands a byte order mark, CRLF, quotes, spaces and words for labels', async () => {
    const dir = await dataset({
      'images/a, with comma.jpg': await jpeg(1),
      'images/b.jpg': await jpeg(2),
      'labels.csv': '\ufeffFile , LABEL\r\n"a, with comma.jpg", Roadwork \r\nb.jpg,none\r\n\r\n',
    });
    const { rows, problems } = await scanDataset(dir);
    expect(problems).toEqual([]);
    expect(rows.map((row) => [row.file, row.label])).toEqual([
      ['a, with comma.jpg', 1],
      ['b.jpg', 0],
    ]);
  });

  it.each([['../outside.jpg'], ['/etc/hostname'], ['images/../../outside.jpg'], ['..\\outside.jpg'], ['C:\\outside.jpg']])(
    'refuses %s by name and skips it',
    async (file) => {
      const dir = await dataset(await both({ 'labels.csv': `file,label\na.jpg,1\nb.jpg,0\n${file},1\n` }));
      await writeFile(path.join(path.dirname(dir), 'outside.jpg'), await jpeg(9));
      const { rows, problems } = await scanDataset(dir);
      expect(rows).toHaveLength(2);
      expect(problems).toEqual([{ file, reason: expect.stringContaining('leads out of the data set folder') as string }]);
    },
  );

  it('names rows with a missing file, an unknown label or no file, and skips them', async () => {
    const dir = await dataset(await both({ 'labels.csv': 'file,label\na.jpg,1\nb.jpg,0\ngone.jpg,1\na.jpg,maybe\n,1\nimages,0\n' }));
    const { rows, problems } = await scanDataset(dir);
    expect(rows).toHaveLength(2);
    expect(problems.map((problem) => problem.file)).toEqual(['gone.jpg', 'a.jpg', 'row 6', 'images']);
    expect(problems[1]!.reason).toContain("label 'maybe'");
  });

  it.each([
    ['no label column', 'file,class\na.jpg,1\n', /no column 'label'; its columns are: file, class/],
    ['another separator', 'file;label\na.jpg;1\n', /no column 'file'; its columns are: file;label/],
    ['nothing in it', '', /no column 'file'; its columns are: \(none\)/],
    ['no row', 'file,label\n', /No image was found/],
    ['one class', 'file,label\na.jpg,1\nb.jpg,1\n', /Class 0 \(no roadwork\) is empty.*found 2 images of roadwork and 0 without/s],
    ['files that are all missing', 'file,label\nx.jpg,1\ny.jpg,0\n', /No image was found.*x\.jpg: no such file/s],
    ['an open quote', 'file,label\n"a.jpg,1\n', /can't be read as comma-separated/],
  ])('refuses a labels.csv with %s and says what was expected', async (_what, csv, message) => {
    const dir = await dataset(await both({ 'labels.csv': csv }));
    const refused = scanDataset(dir);
    await expect(refused).rejects.toThrow(BadInputError);
    await expect(refused).rejects.toThrow(message);
    await expect(refused).rejects.toThrow(/Nothing was imported/);
  });

  it('refuses a labels.csv that is not UTF-8', async () => {
    const dir = await dataset(await both({ 'labels.csv': Buffer.from('\ufefffile,label\na.jpg,1\n', 'utf16le') }));
    await expect(scanDataset(dir)).rejects.toThrow(/UTF-8/);
  });
});

describe('a data set with a folder a class', () => {
  it('takes the label from the folder and names what is no image', async () => {
    const dir = await dataset({
      'Roadwork/clip/a.jpg': await jpeg(1),
      'none/b.png': await picture(2).png().toBuffer(),
      'none/notes.txt': 'x',
      'README.md': 'x',
    });
    const { rows, problems } = await scanDataset(dir);
    expect(rows.map((row) => [row.file, row.label, row.split, row.group])).toEqual([
      ['Roadwork/clip/a.jpg', 1, null, 'Roadwork/clip/a'],
      ['none/b.png', 0, null, 'none/b'],
    ]);
    expect(problems.map((problem) => problem.file)).toEqual(['none/notes.txt']);
  });

  it.each([
    ['folders of other names', { 'cats/a.jpg': '', 'roadwork/b.jpg': '' }, /its folders are cats, roadwork/],
    ['images without folders', { 'a.jpg': '' }, /1 files and no folders/],
    ['nothing', {}, /it is empty/],
    ['an empty class', { 'roadwork/a.jpg': 'x', 'none/.keep': '' }, /Class 0 .*is empty/],
  ])('refuses %s and says what was expected', async (_what, files, message) => {
    const dir = await dataset(files);
    await expect(scanDataset(dir)).rejects.toThrow(message);
    await expect(scanDataset(dir)).rejects.toThrow(/Expected/);
  });

  it('refuses a folder that is not there', async () => {
    await expect(scanDataset(path.join(await temporaryFolder(), 'nowhere'))).rejects.toThrow(/is not a folder/);
  });

  it('is not led in a circle by a link', async () => {
    const dir = await dataset({ 'roadwork/a.jpg': 'x', 'none/b.jpg': 'x' });
    await symlink(dir, path.join(dir, 'none', 'loop'));
    expect((await scanDataset(dir)).rows).toHaveLength(2);
  });
});

describe('reading images', () => {
  it('stores the original bytes under their digest and gives size, label, group and hashes', async () => {
    const dir = await dataset(await both({ 'labels.csv': 'file,label,group,split\na.jpg,1,g,val\nb.jpg,0,,\n' }));
    const objects = await store();
    const progress: [number, number][] = [];
    const { images, problems, exactDuplicates } = await readImages((await scanDataset(dir)).rows, objects, {
      onProgress: (done, total) => progress.push([done, total]),
    });
    expect(problems).toEqual([]);
    expect(exactDuplicates).toBe(0);
    expect(images[0]).toMatchObject({ file: 'a.jpg', label: 1, group: 'g', split: 'val', width: 96, height: 72, alsoIn: [] });
    expect(images[0]!.phash).toMatch(/^[0-9a-f]{16}$/);
    expect(images[0]!.dhash).toMatch(/^[0-9a-f]{64}$/);
    expect(await objects.get(images[0]!.digest)).toEqual(await readFile(path.join(dir, 'images/a.jpg')));
    expect(progress).toEqual([
      [1, 2],
      [2, 2],
    ]);
  });

  it('names truncated, corrupt, empty and foreign files, skips them and stores none of their bytes', async () => {
    const whole = await picture(5, 400, 300).jpeg({ quality: 95 }).toBuffer();
    const noise = Buffer.from(whole);
    noise.fill(0x5a, 700, noise.length - 300);
    const png = await picture(6, 400, 300).png().toBuffer();
    const bad = {
      'truncated.jpg': whole.subarray(0, whole.length >> 1),
      'truncated.png': png.subarray(0, png.length >> 1),
      'corrupt.png': Buffer.concat([png.subarray(0, 200), Buffer.alloc(100, 0x11), png.subarray(300)]),
      'text.jpg': Buffer.from('I am no image'),
      'empty.jpg': Buffer.alloc(0),
      'drawing.jpg': Buffer.from('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
    };
    const files = await both(Object.fromEntries(Object.entries(bad).map(([name, bytes]) => [`images/${name}`, bytes])));
    const dir = await dataset({
      ...files,
      'labels.csv': `file,label\na.jpg,1\nb.jpg,0\n${Object.keys(bad)
        .map((name) => `${name},1\n`)
        .join('')}`,
    });
    const objects = await store();
    const { images, problems } = await readImages((await scanDataset(dir)).rows, objects);
    expect(images.map((image) => image.file)).toEqual(['a.jpg', 'b.jpg']);
    expect(problems.map((problem) => problem.file)).toEqual(Object.keys(bad).sort());
    expect(problems.find((problem) => problem.file === 'drawing.jpg')!.reason).toContain('format svg is not supported');
    const stored: string[] = [];
    for await (const name of objects.list()) stored.push(name);
    expect(stored).toEqual(images.map((image) => image.digest).sort());
  });

  it('skips an image of more pixels than the limit, before it is unpacked', async () => {
    const dir = await dataset(
      await both({
        'images/big.png': await picture(3, 500, 500).png().toBuffer(),
        'labels.csv': 'file,label\na.jpg,1\nb.jpg,0\nbig.png,1\n',
      }),
    );
    const { problems } = await readImages((await scanDataset(dir)).rows, await store(), { maxPixels: 100_000 });
    expect(problems).toEqual([{ file: 'big.png', reason: 'the image has 500 x 500 pixels, more than 100000' }]);
  });

  it('reads grey, transparent, 16-bit and CMYK images', async () => {
    const dir = await dataset({
      'roadwork/grey.png': await picture(1).greyscale().png().toBuffer(),
      'roadwork/alpha.png': await picture(2).ensureAlpha(0.5).png().toBuffer(),
      'none/deep.png': await picture(3).toColourspace('rgb16').png().toBuffer(),
      'none/print.jpg': await picture(4).toColourspace('cmyk').jpeg().toBuffer(),
    });
    const { images, problems } = await readImages((await scanDataset(dir)).rows, await store());
    expect(problems).toEqual([]);
    expect(images).toHaveLength(4);
  });

  it('keeps the same bytes once, by the first file name, and remembers the other group', async () => {
    const dir = await dataset(
      await both({ 'images/c.jpg': await jpeg(1), 'labels.csv': 'file,label,group\nc.jpg,1,second\na.jpg,1,first\nb.jpg,0,x\n' }),
    );
    const { images, exactDuplicates, duplicates } = await readImages((await scanDataset(dir)).rows, await store());
    expect(images.map((image) => [image.file, image.group, image.alsoIn])).toEqual([
      ['a.jpg', 'first', ['second']],
      ['b.jpg', 'x', []],
    ]);
    expect(exactDuplicates).toBe(1);
    expect(duplicates).toEqual([{ file: 'c.jpg', of: 'a.jpg', digest: images[0]!.digest }]);
  });

  it('takes the held-out split for a picture that is in two, whichever comes first', async () => {
    const dir = await dataset(
      await both({
        'images/c.jpg': await jpeg(1),
        'images/d.jpg': await jpeg(1, 60),
        'labels.csv': 'file,label,split,group\na.jpg,1,train,g\nc.jpg,1,train,g\nd.jpg,1,val,g\nb.jpg,0,test,x\n',
      }),
    );
    const { images } = await readImages((await scanDataset(dir)).rows, await store());
    expect(nearDuplicates(images).kept.map((image) => [image.file, image.split])).toEqual([
      ['a.jpg', 'val'],
      ['b.jpg', 'test'],
    ]);
  });

  it('leaves out the same bytes under both labels, and names every file of them', async () => {
    const files = await both({
      'images/c.jpg': await jpeg(3),
      'images/d.jpg': await jpeg(3),
      'labels.csv': 'file,label\na.jpg,1\nb.jpg,0\nc.jpg,1\nd.jpg,0\n',
    });
    const { images, labelConflicts, problems } = await readImages((await scanDataset(await dataset(files))).rows, await store());
    expect(images.map((image) => image.file)).toEqual(['a.jpg', 'b.jpg']);
    expect(labelConflicts.map((conflict) => conflict.files)).toEqual([['c.jpg', 'd.jpg']]);
    expect(problems.map((problem) => problem.file)).toEqual(['c.jpg', 'd.jpg']);
  });

  it('refuses a data set of which no image of a class can be read', async () => {
    const dir = await dataset(await both({ 'images/b.jpg': 'no image', 'labels.csv': 'file,label\na.jpg,1\nb.jpg,0\n' }));
    await expect(readImages((await scanDataset(dir)).rows, await store())).rejects.toThrow(/No readable image of class 0.*b\.jpg/s);
  });

  it('gives the same result whatever is read first', async () => {
    const dir = await dataset(
      await both({ 'images/c.jpg': await jpeg(1), 'images/d.jpg': 'x', 'labels.csv': 'file,label\na.jpg,1\nb.jpg,0\nc.jpg,1\nd.jpg,1\n' }),
    );
    const { rows } = await scanDataset(dir);
    const forwards = await readImages(rows, await store(), { concurrency: 1 });
    const backwards = await readImages([...rows].reverse(), await store(), { concurrency: 4 });
    expect(backwards).toEqual(forwards);
  });

  it('ends with the error of the store when the store fails, instead of blaming the image', async () => {
    const dir = await dataset(await both({ 'labels.csv': 'file,label\na.jpg,1\nb.jpg,0\n' }));
    const full = { put: () => Promise.reject(new Error('disk full')) };
    await expect(readImages((await scanDataset(dir)).rows, full)).rejects.toThrow('disk full');
  });
});

describe('near duplicates', () => {
  async function read(
    files: Record<string, Buffer>,
    groups: Record<string, string>,
    labels: Record<string, number> = {},
  ): Promise<ReadImage[]> {
    const csv = Object.keys(files).map((name) => `${name},${labels[name] ?? 1},${groups[name] ?? ''}\n`);
    const dir = await dataset({ ...files, 'zz.jpg': await jpeg(999), 'labels.csv': `file,label,group\nzz.jpg,0,zz\n${csv.join('')}` });
    return (await readImages((await scanDataset(dir)).rows, await store())).images;
  }
  const file = (images: ReadImage[], name: string): string => images.find((image) => image.file === name)!.digest;

  it('removes a recompressed or resized copy within its group, keeping the first by name', async () => {
    const files = {
      'a.jpg': await jpeg(1),
      'b.jpg': await jpeg(1, 60),
      'c.png': await picture(1, 192, 144).png().toBuffer(),
      'd.jpg': await jpeg(2),
    };
    const images = await read(files, { 'a.jpg': 'g', 'b.jpg': 'g', 'c.png': 'g', 'd.jpg': 'g' });
    const near = nearDuplicates(images);
    expect(near.kept.map((image) => image.file)).toEqual(['a.jpg', 'd.jpg', 'zz.jpg']);
    expect(near.removed).toBe(2);
    expect(near.repetitions.map((one) => [one.file, one.of])).toEqual([
      ['b.jpg', 'a.jpg'],
      ['c.png', 'a.jpg'],
    ]);
    expect(near.pairs).toEqual([]);
  });

  it('ties a copy in another group instead of removing it', async () => {
    const images = await read({ 'a.jpg': await jpeg(1), 'b.jpg': await jpeg(1, 60) }, { 'a.jpg': 'g', 'b.jpg': 'h' });
    const near = nearDuplicates(images);
    expect(near.removed).toBe(0);
    expect(near.pairs).toEqual([[file(images, 'a.jpg'), file(images, 'b.jpg')].sort()]);
  });

  it('ties only images that stay', async () => {
    const images = await read(
      { 'a.jpg': await jpeg(1), 'b.jpg': await jpeg(1, 80), 'c.jpg': await jpeg(1, 70) },
      { 'a.jpg': 'g', 'b.jpg': 'g', 'c.jpg': 'h' },
    );
    const near = nearDuplicates(images);
    const kept = new Set(near.kept.map((image) => image.digest));
    expect(near.removed).toBe(1);
    expect(near.pairs.length).toBeGreaterThan(0);
    for (const digestOf of near.pairs.flat()) expect(kept.has(digestOf)).toBe(true);
  });

  it('ties two groups that held the very same bytes', async () => {
    const images = await read(
      { 'a.jpg': await jpeg(1), 'b.jpg': await jpeg(1), 'c.jpg': await jpeg(2) },
      { 'a.jpg': 'g', 'b.jpg': 'h', 'c.jpg': 'h' },
    );
    expect(nearDuplicates(images).pairs).toEqual([[file(images, 'a.jpg'), file(images, 'c.jpg')].sort()]);
  });

  it('never takes a picture for one of another label', async () => {
    const images = await read({ 'a.jpg': await jpeg(1), 'b.jpg': await jpeg(1, 60) }, { 'a.jpg': 'g', 'b.jpg': 'g' }, { 'b.jpg': 0 });
    expect(nearDuplicates(images).removed).toBe(0);
  });

  it('finds exactly the pairs that comparing all with all finds', () => {
    const hash = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
    const family = fc
      .tuple(hash, fc.array(fc.array(fc.integer({ min: 0, max: 63 }), { maxLength: 6 }), { maxLength: 6 }))
      .map(([seed, flips]) => [seed, ...flips.map((bits) => bits.reduce((all, bit) => all ^ (1n << BigInt(bit)), seed))]);
    fc.assert(
      fc.property(fc.array(family, { maxLength: 6 }), fc.integer({ min: 0, max: 12 }), (families, max) => {
        const hashes = families.flat().map((value) => value.toString(16).padStart(16, '0'));
        const expected: [number, number, number][] = [];
        hashes.forEach((a, i) => hashes.forEach((b, j) => i < j && hammingHex(a, b) <= max && expected.push([i, j, hammingHex(a, b)])));
        expect(hammingPairs(hashes, max)).toEqual(expected);
      }),
      { seed: 7, numRuns: 200 },
    );
  });

  it('counts differing bits', () => {
    expect(hammingHex('0000000000000000', 'ffffffffffffffff')).toBe(64);
    expect(hammingHex('8000000000000001', '0000000000000000')).toBe(2);
  });
});
