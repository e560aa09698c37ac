/**
 * The real client, bittensor 9.12.2 in the versions that subnet 72 pins, against the miner. Installs it from PyPI into the
 * user's cache when it is not there (`npm run test:setup` does it beforehand); without it these tests fail.
 */
import { spawn } from 'node:child_process';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { TEST_KEYS } from '../miner/vectors.js';
import { colourJpeg, greyJpeg } from '../support/images.js';
import { startMiner, type TestMiner } from '../support/miner.js';

interface Answer {
  status: number;
  message: string;
  axon: number | null;
  success: boolean;
  prediction: number | null;
  process_time: number | null;
}
interface Seen {
  bittensor: string;
  images: Record<string, Answer>;
  extended: Answer;
  ping: Answer;
  'not an image': Answer;
  together: number[];
  'after an idle time': Answer;
  nonvalidator: Answer;
  stranger: Answer;
  'nonvalidator ping': Answer;
  'stranger ping': Answer;
  forged: Record<string, number>;
  'out of order': number[];
}

let t: TestMiner;
let seen: Seen;
beforeAll(async () => {
  const { ensureInteropPython } = (await import(path.join(import.meta.dirname, 'venv.mjs'))) as {
    ensureInteropPython: () => Promise<string>;
  };
  const python = await ensureInteropPython();
  t = await startMiner();
  await t.promote(1);
  await t.until('it is ready', () => t.miner.status().ready);
  const images = {
    light: await greyJpeg(200),
    dark: await greyJpeg(50),
    large: await colourJpeg({ r: 220, g: 220, b: 220 }, 1280, 720),
  };
  const given = JSON.stringify({
    url: new URL(t.miner.url).host,
    miner: t.hotkey.address,
    mnemonics: Object.fromEntries(Object.entries(TEST_KEYS).map(([role, key]) => [role, key.mnemonic])),
    images: Object.fromEntries(Object.entries(images).map(([name, bytes]) => [name, bytes.toString('base64')])),
  });
  seen = await new Promise<Seen>((resolve, reject) => {
    const child = spawn(python, [path.join(import.meta.dirname, 'client.py')], { stdio: ['pipe', 'pipe', 'pipe'] });
    let out = '';
    let err = '';
    child.stdout.on('data', (piece: Buffer) => (out += piece.toString()));
    child.stderr.on('data', (piece: Buffer) => (err += piece.toString()));
    child.once('error', reject);
    child.once('close', (code) => {
      const last = out.trim().split('\n').at(-1) ?? '';
      if (code === 0 && last.startsWith('{')) resolve(JSON.parse(last) as Seen);
      else reject(new Error(`The real client ended with ${code}:\n${err.slice(-3000)}`));
    });
    child.stdin.end(given);
  });
}, 900_000);
afterAll(async () => {
  await t?.end();
});

describe('the real client of bittensor 9.12.2', () => {
  it('is the pinned version', () => expect(seen.bittensor).toBe('9.12.2'));

  it('gets the prediction of the model, at any size', () => {
    for (const answer of Object.values(seen.images))
      expect(answer).toMatchObject({ status: 200, axon: 200, success: true, message: 'Success' });
    expect(seen.images.light?.prediction).toBeGreaterThan(0.9);
    expect(seen.images.dark?.prediction).toBeLessThan(0.1);
    expect(seen.images.large?.prediction).toBeGreaterThan(0.9);
    expect(seen.images.light?.process_time).toBeGreaterThan(0);
  });

  it('gets it by the class name of before, too', () => expect(seen.extended).toMatchObject({ status: 200, success: true }));

  it('gets its ping back, with a permit or without, as from the reference', () => {
    for (const answer of [seen.ping, seen['nonvalidator ping'], seen['stranger ping']])
      expect(answer).toMatchObject({ status: 200, axon: 200, success: true });
  });

  it('gets an error and no guess for what is no image', () =>
    expect(seen['not an image']).toMatchObject({ status: 400, success: false, prediction: -1 }));

  it('gets every one of forty answers that it asks for at once', () =>
    expect(seen.together).toEqual(Array.from({ length: 40 }, () => 200)));

  it('finds its idle connection open after the time at which the reference closes it', () =>
    expect(seen['after an idle time']).toMatchObject({ status: 200, success: true }));

  it('is forbidden without a permit', () => {
    expect(seen.nonvalidator).toMatchObject({ status: 403, success: false, prediction: -1 });
    expect(seen.stranger).toMatchObject({ status: 403, success: false, prediction: -1 });
  });

  it('may send younger requests before older ones', () => expect(seen['out of order']).toEqual([200, 200]));

  it.each([
    ['untouched', 200],
    ['old version', 200],
    ['missing signature', 401],
    ['empty signature', 401],
    ['old nonce', 401],
    ['old nonce, long time-out', 401],
    ['old nonce, old version', 401],
    ['future nonce', 401],
    ['for another miner', 401],
    ['signed by another', 401],
    ['another body hash', 401],
    ['replayed', 401],
  ])('has a request of its own that is made "%s" answered with %i', (name, status) => expect(seen.forged[name]).toBe(status));
});
