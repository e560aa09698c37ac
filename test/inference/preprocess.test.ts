import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import sharp from 'sharp';
import { describe, expect, it } from 'vitest';
import { InferencePool } from '../../src/platform/inference/pool.js';
import {
  decodeSquare,
  ImageError,
  inspectImage,
  resizeSquare,
  tensorLength,
  writeTensor,
} from '../../src/platform/inference/preprocess.js';
import { INFERENCE_FIXTURES, writeBundle } from '../support/bundle.js';

interface Golden {
  file: string;
  size: number;
  interpolation: 'bilinear' | 'bicubic';
  expected: string;
}
const golden = JSON.parse(readFileSync(path.join(INFERENCE_FIXTURES, 'golden.json'), 'utf8')) as Golden[];
const file = (name: string): Buffer => readFileSync(path.join(INFERENCE_FIXTURES, 'golden', name));

/** Stated tolerance: what another build of the JPEG decoder may differ by. On the machine of record it is 0 throughout. */
const MAX_LEVELS = 1;
const MEAN_LEVELS = 0.01;
/** What that may do to a prediction. On the machine of record it does nothing. */
const MAX_DP = 1e-3;

describe('preprocessing', () => {
  it.each(golden)('equals Pillow for $file at $size, $interpolation', async ({ file: name, size, interpolation, expected }) => {
    const made = resizeSquare(await decodeSquare(file(name)), size, interpolation);
    const want = await sharp(file(expected)).removeAlpha().toColourspace('srgb').raw().toBuffer();
    expect(made.side).toBe(size);
    expect(made.rgb.length).toBe(want.length);
    let most = 0;
    let sum = 0;
    for (let i = 0; i < want.length; i++) {
      const difference = Math.abs((made.rgb[i] as number) - (want[i] as number));
      most = Math.max(most, difference);
      sum += difference;
    }
    expect(most).toBeLessThanOrEqual(MAX_LEVELS);
    expect(sum / want.length).toBeLessThanOrEqual(MEAN_LEVELS);
  });

  it.each([
    { size: 48, interpolation: 'bilinear' },
    { size: 128, interpolation: 'bicubic' },
  ] as const)("gives the prediction that training's own pixels give, at $size, $interpolation", async ({ size, interpolation }) => {
    const home = await mkdtemp(path.join(os.tmpdir(), 'flywheel-parity-'));
    const quiet = { info: () => undefined, warn: () => undefined, error: () => undefined };
    const { dir, bundle } = await writeBundle(home, {
      members: [
        { model: 'bright', weight: 0.5, size, interpolation },
        { model: 'red', weight: 0.5, size, interpolation },
      ],
    });
    const pool = await InferencePool.start({ bundleDir: dir, digest: null, processes: 1, threads: 1, logger: quiet });
    try {
      const cases = golden.filter((one) => one.size === size && one.interpolation === interpolation);
      expect(cases.length).toBeGreaterThan(0);
      for (const one of cases) {
        const { preprocess } = bundle.members[0]!;
        const rgb = await sharp(file(one.expected)).removeAlpha().toColourspace('srgb').raw().toBuffer();
        const tensor = new Float32Array(tensorLength(preprocess));
        writeTensor({ side: size, rgb }, preprocess, tensor, 0);
        const [served, trained] = [await pool.predict(file(one.file)), await pool.predict({ tensor })];
        expect(Math.abs(served.prediction - trained.prediction), one.file).toBeLessThanOrEqual(MAX_DP);
      }
    } finally {
      await pool.stop(0);
      await rm(home, { recursive: true, force: true });
    }
  });

  it('leaves an image that already has the size as it is', async () => {
    const square = await decodeSquare(file('challenge.jpg'));
    expect(resizeSquare(square, 224, 'bilinear')).toBe(square);
  });

  it('writes channels one after another, scaled and normalised in float32', () => {
    const preprocess = {
      size: 1,
      crop: 'center-square',
      interpolation: 'bilinear',
      mean: [0.485, 0.456, 0.406],
      std: [0.229, 0.224, 0.225],
    } as const;
    const target = new Float32Array(2 * tensorLength({ ...preprocess, mean: [...preprocess.mean], std: [...preprocess.std] }));
    writeTensor(
      { side: 1, rgb: new Uint8Array([255, 128, 0]) },
      { ...preprocess, mean: [...preprocess.mean], std: [...preprocess.std] },
      target,
      3,
    );
    // numpy float32: (v / 255 - mean) / std
    expect([...target]).toEqual([0, 0, 0, 2.2489082813262939453125, 0.20518219470977783203125, -1.80444443225860595703125]);
  });

  it('refuses an image beyond the pixel limit by its header alone', async () => {
    await expect(inspectImage(file('wide.jpg'), { maxBytes: 1e6, maxPixels: 161 * 90 - 1 })).rejects.toMatchObject({
      name: 'ImageError',
      kind: 'too-large',
    });
  });

  it('refuses an image beyond the byte limit', async () => {
    await expect(inspectImage(file('wide.jpg'), { maxBytes: 1000, maxPixels: 1e6 })).rejects.toMatchObject({ kind: 'too-large' });
  });

  it('refuses SVG, although the library would draw it', async () => {
    const svg = Buffer.from('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>');
    await expect(inspectImage(svg)).rejects.toMatchObject({ kind: 'unsupported' });
  });

  it('refuses bytes that are no image', async () => {
    await expect(decodeSquare(Buffer.from('this is not an image'))).rejects.toBeInstanceOf(ImageError);
  });

  it('refuses a JPEG that is cut off, as Pillow does', async () => {
    const whole = file('wide.jpg');
    await expect(decodeSquare(whole.subarray(0, whole.length >> 1))).rejects.toMatchObject({ kind: 'undecodable' });
  });
});
