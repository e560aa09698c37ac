/**
 * Makes small but real bundles for tests: the ONNX models of `test/fixtures/inference` answer by mean colour, so what a
 * bundle says of an image is known beforehand. No stand-in: the same files go through the same loading and inference.
 */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { createHash } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import { Bundle } from '../../src/domain/contracts/bundle.js';
import type { ObjectStore } from '../../src/platform/ports.js';

export const INFERENCE_FIXTURES = path.join(path.dirname(fileURLToPath(import.meta.url)), '..', 'fixtures', 'inference');

/**
 * `bright`: says roadwork of bright images; `dark`: of dark ones; `red`: of red ones; `left`: of those bright on the left;
 * `slow`: as `bright`, after a quarter of a second; `no-number-when-bright`: fails on bright images; `wrong-shape`: breaks
 * the contract.
 */
export type TinyModel = 'bright' | 'dark' | 'red' | 'left' | 'slow' | 'no-number-when-bright' | 'wrong-shape';

export interface BundleOptions {
  /** default: one member `bright`. With size 16 */
  members?: { model: TinyModel; weight: number; name?: string; size?: number; interpolation?: 'bilinear' | 'bicubic' }[];
  calibration?: Bundle['calibration'];
  tta?: Bundle['tta'];
  /** two bundles of another name have other digests */
  name?: string;
  /** default mean and std 0.5, so that an input is in [-1, 1] */
  mean?: [number, number, number];
  std?: [number, number, number];
}

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

/** The files of a bundle by path, `bundle.json` among them, and its digest. */
export async function bundleFiles(options: BundleOptions = {}): Promise<{ digest: string; bundle: Bundle; files: Map<string, Buffer> }> {
  const members = options.members ?? [{ model: 'bright' as const, weight: 1 }];
  const files = new Map<string, Buffer>();
  const made: Bundle['members'] = [];
  for (const [i, { model, weight, name, size, interpolation }] of members.entries()) {
    const member = name ?? `${model}-${i}`;
    const onnx = await readFile(path.join(INFERENCE_FIXTURES, `${model}.onnx`));
    // No tensors: an eight-byte header length and an empty JSON object are a valid safetensors file.
    const safetensors = Buffer.concat([Buffer.from([2, 0, 0, 0, 0, 0, 0, 0]), Buffer.from('{}')]);
    const ref = (file: string, bytes: Buffer) => {
      files.set(file, bytes);
      return { path: file, sha256: sha256(bytes), bytes: bytes.length };
    };
    made.push({
      name: member,
      backbone: 'tiny-mean-colour',
      features: 'final',
      weight,
      onnx: ref(`${member}/model.onnx`, onnx),
      safetensors: ref(`${member}/model.safetensors`, safetensors),
      preprocess: {
        size: size ?? 16,
        crop: 'center-square',
        interpolation: interpolation ?? 'bilinear',
        mean: options.mean ?? [0.5, 0.5, 0.5],
        std: options.std ?? [0.5, 0.5, 0.5],
      },
      parameters: 4,
    });
  }
  const metrics = { accuracy: 0.5, mcc: 0, brier: 0.25, n: 2 };
  const bundle: Bundle = Bundle.parse({
    format: 'streetvision-bundle/1',
    name: options.name ?? 'tiny',
    members: made,
    calibration: options.calibration ?? { kind: 'none', a: 1, b: 0, n: 0 },
    ...(options.tta === undefined ? {} : { tta: options.tta }),
    training: { snapshot: '1'.repeat(64), trained: '2'.repeat(64), parent: null, seed: 1 },
    metrics: { validate: metrics, errorCorrelation: 0 },
    parity: { n: 1, maxAbsDp: 0 },
    environment: {},
  });
  const json = Buffer.from(`${JSON.stringify(bundle, null, 2)}\n`);
  files.set('bundle.json', json);
  return { digest: sha256(json), bundle, files };
}

/** Writes a bundle to `<bundlesDir>/<digest>`. */
export async function writeBundle(
  bundlesDir: string,
  options: BundleOptions = {},
): Promise<{ digest: string; dir: string; bundle: Bundle }> {
  const { digest, bundle, files } = await bundleFiles(options);
  const dir = path.join(bundlesDir, digest);
  for (const [file, bytes] of files) {
    await mkdir(path.dirname(path.join(dir, file)), { recursive: true });
    await writeFile(path.join(dir, file), bytes);
  }
  return { digest, dir, bundle };
}

/** Puts a bundle's files into a store, as the export job does. @returns the digest of bundle.json */
export async function putBundle(
  objects: Pick<ObjectStore, 'put'>,
  options: BundleOptions = {},
): Promise<{ digest: string; bundle: Bundle }> {
  const { digest, bundle, files } = await bundleFiles(options);
  for (const bytes of files.values()) await objects.put(bytes);
  return { digest, bundle };
}
