import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { loadBundle, materialise } from '../../src/platform/inference/bundle.js';
import { calibrate, runningOrder, sigmoid, viewFits, vote } from '../../src/platform/inference/ensemble.js';
import { FileObjectStore } from '../../src/platform/objects/file.js';
import { bundleFiles, putBundle, writeBundle } from '../support/bundle.js';

let home: string;
beforeEach(async () => {
  home = await mkdtemp(path.join(os.tmpdir(), 'flywheel-bundle-'));
});
afterEach(async () => {
  await rm(home, { recursive: true, force: true });
});

describe('bundle', () => {
  it('is laid out from objects, whole, and loads', async () => {
    const objects = new FileObjectStore(path.join(home, 'objects'));
    const { digest, bundle } = await putBundle(objects);
    const dir = path.join(home, 'bundles', digest);
    await materialise(objects, digest, dir);
    expect(await loadBundle(dir, digest)).toEqual(bundle);
  });

  it('shares its files with the store instead of copying them', async () => {
    const objects = new FileObjectStore(path.join(home, 'objects'));
    const { digest, bundle } = await putBundle(objects);
    const dir = path.join(home, 'bundles', digest);
    await materialise(objects, digest, dir);
    const onnx = bundle.members[0]!.onnx;
    expect((await stat(path.join(dir, onnx.path))).ino).toBe((await stat(objects.path(onnx.sha256))).ino);
  });

  it('is laid out anew where the folder is damaged', async () => {
    const objects = new FileObjectStore(path.join(home, 'objects'));
    const { digest, bundle } = await putBundle(objects);
    const dir = path.join(home, 'bundles', digest);
    await materialise(objects, digest, dir);
    const file = path.join(dir, bundle.members[0]!.onnx.path);
    await rm(file);
    await writeFile(file, 'not a model');
    await materialise(objects, digest, dir);
    expect(await loadBundle(dir, digest)).toEqual(bundle);
  });

  it('may be laid out by several at once', async () => {
    const objects = new FileObjectStore(path.join(home, 'objects'));
    const { digest, bundle } = await putBundle(objects);
    const dir = path.join(home, 'bundles', digest);
    await Promise.all(Array.from({ length: 5 }, () => materialise(objects, digest, dir)));
    expect(await loadBundle(dir)).toEqual(bundle);
  });

  it('says which object is missing, and leaves no folder', async () => {
    const objects = new FileObjectStore(path.join(home, 'objects'));
    const { digest, bundle } = await putBundle(objects);
    const dir = path.join(home, 'bundles', digest);
    await rm(objects.path(bundle.members[0]!.onnx.sha256));
    await expect(materialise(objects, digest, dir)).rejects.toMatchObject({ name: 'ObjectMissingError' });
    await expect(stat(dir)).rejects.toMatchObject({ code: 'ENOENT' });
  });

  it('is refused when one byte of a file was changed', async () => {
    const { dir, bundle } = await writeBundle(home);
    const file = path.join(dir, bundle.members[0]!.onnx.path);
    const bytes = await readFile(file);
    bytes[40] = (bytes[40] as number) ^ 1;
    await writeFile(file, bytes);
    await expect(loadBundle(dir)).rejects.toMatchObject({ name: 'ObjectCorruptError' });
  });

  it('is refused when bundle.json does not hash to the name of its folder', async () => {
    const { dir } = await writeBundle(home);
    const file = path.join(dir, 'bundle.json');
    await writeFile(file, (await readFile(file, 'utf8')).replace('"tiny"', '"tiny2"'));
    await expect(loadBundle(dir)).rejects.toMatchObject({ name: 'ObjectCorruptError' });
  });

  it('is refused when the weights do not sum to 1', async () => {
    const { dir } = await writeBundle(home, { members: [{ model: 'bright', weight: 0.5 }] });
    await expect(loadBundle(dir)).rejects.toThrow(/sum to 0.5/);
  });

  it('is refused when it is not there, in words', async () => {
    await expect(loadBundle(path.join(home, 'nowhere'))).rejects.toMatchObject({ name: 'BadInputError' });
  });
});

describe('ensemble', () => {
  it('votes by weight of probabilities, not of logits', async () => {
    const { bundle } = await bundleFiles({
      members: [
        { model: 'bright', weight: 0.6, name: 'one' },
        { model: 'dark', weight: 0.4, name: 'two' },
      ],
    });
    const made = vote(bundle, [[2], [-1]]);
    expect(made.votes).toEqual({ one: sigmoid(2), two: sigmoid(-1) });
    expect(made.prediction).toBeCloseTo(0.6 / (1 + Math.exp(-2)) + 0.4 / (1 + Math.exp(1)), 12);
  });

  it('moves the boundary by Platt scaling of the vote', () => {
    // a vote of 0.7 lies on the boundary when b = -a * logit(0.7)
    const b = -2 * Math.log(0.7 / 0.3);
    expect(calibrate(0.7, { kind: 'platt', a: 2, b, n: 10 })).toBeCloseTo(0.5, 12);
    expect(calibrate(0.9, { kind: 'platt', a: 2, b, n: 10 })).toBeGreaterThan(0.5);
  });

  it('clamps the vote before it takes its logit', () => {
    expect(calibrate(1, { kind: 'platt', a: 1, b: 0, n: 1 })).toBeCloseTo(1 - 1e-6, 12);
    expect(calibrate(0, { kind: 'none', a: 1, b: 0, n: 0 })).toBe(1e-6);
  });

  it('stays within [0, 1] for any logit', () => {
    for (const x of [-1e9, -800, 0, 800, 1e9, Number.NEGATIVE_INFINITY, Number.POSITIVE_INFINITY]) {
      expect(sigmoid(x)).toBeGreaterThanOrEqual(0);
      expect(sigmoid(x)).toBeLessThanOrEqual(1);
    }
  });

  it('never takes NaN for a guess', async () => {
    const { bundle } = await bundleFiles();
    expect(() => vote(bundle, [[Number.NaN]])).toThrow(/no number/);
  });

  const three = {
    members: [
      { model: 'bright' as const, weight: 0.5, name: 'one' },
      { model: 'dark' as const, weight: 0.3, name: 'two' },
      { model: 'red' as const, weight: 0.2, name: 'three' },
    ],
    calibration: { kind: 'platt' as const, a: 1.5, b: 0.2, n: 50 },
  };

  it('leaves out a member without a number: the others by their weights, calibrated as ever', async () => {
    const { bundle } = await bundleFiles(three);
    const made = vote(bundle, [[1], [], [-2]]);
    expect(made.leftOut).toEqual(['two']);
    expect(Object.keys(made.votes)).toEqual(['one', 'three']);
    expect(made.prediction).toBeCloseTo(calibrate((0.5 * sigmoid(1) + 0.2 * sigmoid(-2)) / 0.7, bundle.calibration), 12);
  });

  it('gives no answer when less than half of the weight has answered', async () => {
    const { bundle } = await bundleFiles(three);
    expect(vote(bundle, [[1], [Number.NaN], []]).leftOut).toEqual(['two', 'three']);
    expect(() => vote(bundle, [[], [1], []])).toThrow(/one, three gave no number .* weight 0\.30, and 0\.5 is needed/);
    expect(() => vote(bundle, [[1], [1], []], 1)).toThrow(/and 1 is needed/);
  });

  it('counts the views of a member by the mean of their probabilities', async () => {
    const { bundle } = await bundleFiles();
    expect(vote(bundle, [[3, -1]]).prediction).toBeCloseTo((sigmoid(3) + sigmoid(-1)) / 2, 12);
  });

  it('runs the heaviest member first', async () => {
    expect(runningOrder((await bundleFiles(three)).bundle)).toEqual([0, 1, 2]);
    expect(runningOrder((await bundleFiles({ members: [...three.members].reverse() })).bundle)).toEqual([2, 1, 0]);
  });

  it('augments only while everything behind still fits', () => {
    expect(viewFits(100, 0, 100, 150)).toBe(true);
    expect(viewFits(100, 1, 100, 150)).toBe(false);
    expect(viewFits(100, 5, 100, Number.POSITIVE_INFINITY)).toBe(true);
    expect(viewFits(100, 0, 100, -5)).toBe(false);
  });
});
