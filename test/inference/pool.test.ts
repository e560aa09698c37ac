import { createHash } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { InferenceChild } from '../../src/platform/inference/child.js';
import { evaluate } from '../../src/platform/inference/evaluate.js';
import { monotonicMs, type OneResult } from '../../src/platform/inference/messages.js';
import { InferencePool, type PoolOptions } from '../../src/platform/inference/pool.js';
import { writeBundle } from '../support/bundle.js';
import { greyJpeg } from '../support/images.js';
import { alive } from '../support/processes.js';

const logger = { info: () => undefined, warn: () => undefined, error: () => undefined };

let home: string;
const pools: InferencePool[] = [];
beforeEach(async () => {
  home = await mkdtemp(path.join(os.tmpdir(), 'flywheel-pool-'));
});
afterEach(async () => {
  await Promise.all(pools.splice(0).map((pool) => pool.stop(0)));
  await rm(home, { recursive: true, force: true });
});

async function start(options: Partial<PoolOptions> = {}): Promise<InferencePool> {
  const bundleDir = options.bundleDir ?? (await writeBundle(home)).dir;
  const pool = await InferencePool.start({ digest: null, processes: 1, threads: 1, logger, ...options, bundleDir });
  pools.push(pool);
  return pool;
}

describe('inference pool', () => {
  it('answers with the prediction that the model must give', async () => {
    const pool = await start();
    // bright: logit = 4 * (r + g + b) with inputs scaled to [-1, 1]
    const level = 140;
    const { prediction, votes } = await pool.predict(await greyJpeg(level));
    const logit = 12 * (level / 255 / 0.5 - 1);
    expect(prediction).toBeCloseTo(1 / (1 + Math.exp(-logit)), 4);
    expect(votes).toEqual({ 'bright-0': prediction });
  });

  it('gives each of many images its own answer, whatever batch it was in', async () => {
    const pool = await start();
    const levels = Array.from({ length: 40 }, (_, i) => 5 + 6 * i);
    const images = await Promise.all(levels.map((level) => greyJpeg(level)));
    const answers = await Promise.all(images.map((image) => pool.predict(image)));
    const alone: number[] = [];
    for (const image of images) alone.push((await pool.predict(image)).prediction);
    answers.forEach((answer, i) => expect(answer.prediction).toBeCloseTo(alone[i] as number, 5));
    expect([...alone].sort((a, b) => a - b)).toEqual(alone);
  });

  it('takes a tensor that is already preprocessed', async () => {
    const pool = await start();
    const { prediction } = await pool.predict({ tensor: new Float32Array(3 * 16 * 16).fill(0.1) });
    expect(prediction).toBeCloseTo(1 / (1 + Math.exp(-1.2)), 5);
  });

  it('refuses a damaged image and answers its neighbours', async () => {
    const pool = await start();
    const good = await greyJpeg(200);
    const outcomes = await Promise.allSettled([pool.predict(good), pool.predict(Buffer.from('not an image')), pool.predict(good)]);
    expect(outcomes.map((outcome) => outcome.status)).toEqual(['fulfilled', 'rejected', 'fulfilled']);
    expect((outcomes[1] as PromiseRejectedResult).reason).toMatchObject({ name: 'ImageError', kind: 'unsupported' });
  });

  it('tries the images of a killed process again in another one', async () => {
    const pool = await start();
    const image = await greyJpeg(180);
    const [pid] = pool.pids;
    // More than a process has in hand at once, so that some wait and some are lost with it.
    const asked = Array.from({ length: 60 }, () => pool.predict(image));
    process.kill(pid as number, 'SIGKILL');
    const answers = await Promise.all(asked);
    expect(new Set(answers.map((answer) => answer.prediction.toFixed(4))).size).toBe(1);
    expect(pool.restarts).toBe(1);
    expect(pool.pids).not.toEqual([pid]);
  });

  it('refuses at once what it could not answer in time', async () => {
    const pool = await start();
    await expect(pool.predict(await greyJpeg(180), 0)).rejects.toMatchObject({ name: 'OverloadedError' });
  });

  it('refuses at once when the queue is full', async () => {
    const pool = await start({ maxQueue: 4 });
    const image = await greyJpeg(180);
    const outcomes = await Promise.allSettled(Array.from({ length: 60 }, () => pool.predict(image)));
    const refused = outcomes.filter((outcome) => outcome.status === 'rejected');
    expect(refused.length).toBeGreaterThan(0);
    expect(refused.length).toBeLessThan(60);
    for (const { reason } of refused) expect(reason).toMatchObject({ name: 'OverloadedError' });
  });

  it('answers what it has before it stops, and leaves no process', async () => {
    const pool = await start();
    const { pids } = pool;
    const image = await greyJpeg(180);
    const asked = Array.from({ length: 30 }, () => pool.predict(image));
    await pool.stop();
    expect(await Promise.all(asked)).toHaveLength(30);
    expect(pids.map(alive)).toEqual(pids.map(() => false));
    await expect(pool.predict(image)).rejects.toMatchObject({ name: 'OverloadedError' });
  });

  it('does not start on a corrupt bundle, and leaves no process', async () => {
    const { dir, bundle } = await writeBundle(home);
    await writeFile(path.join(dir, bundle.members[0]!.onnx.path), 'garbage');
    await expect(start({ bundleDir: dir })).rejects.toMatchObject({ name: 'ObjectCorruptError' });
  });

  it('does not start on a model whose output is not a logit an image', async () => {
    const { dir } = await writeBundle(home, { members: [{ model: 'wrong-shape', weight: 1 }] });
    await expect(start({ bundleDir: dir })).rejects.toThrow(/wrong-shape-0 gave float32 \[\]/);
  });

  it('says how much memory its processes hold', async () => {
    const pool = await start();
    expect(pool.rssBytes).toBeGreaterThan(30e6);
    expect(pool.rssBytes).toBeLessThan(1e9);
  });

  it('tells when it has nothing to do', async () => {
    const pool = await start();
    await pool.whenIdle();
    let answered = 0;
    const image = await greyJpeg(180);
    for (let i = 0; i < 20; i++) void pool.predict(image).then(() => (answered += 1));
    await pool.whenIdle();
    await Promise.resolve();
    expect(answered).toBe(20);
  });
});

describe('an ensemble under its rules', () => {
  const pair = (model: 'slow' | 'no-number-when-bright', weight: number) => ({
    members: [
      { model: 'bright' as const, weight: 1 - weight, name: 'sure' },
      { model, weight, name: 'other' },
    ],
  });

  it('does without a member that gives no number, and counts it', async () => {
    const counted: unknown[] = [];
    const pool = await start({
      bundleDir: (await writeBundle(home, pair('no-number-when-bright', 0.4))).dir,
      onLeftOut: (leftOut) => counted.push(leftOut),
    });
    const dark = await pool.predict(await greyJpeg(40));
    expect(Object.keys(dark.votes)).toEqual(['sure', 'other']);
    expect(counted).toEqual([]);
    const bright = await pool.predict(await greyJpeg(200));
    expect(Object.keys(bright.votes)).toEqual(['sure']);
    expect(bright.prediction).toBeCloseTo(bright.votes.sure as number, 6);
    expect(bright.leftOut).toEqual([{ member: 'other', reason: 'failed' }]);
    expect(counted).toEqual(bright.leftOut);
  });

  it('gives no answer when the member that failed has most of the weight, or when every member must answer', async () => {
    const image = await greyJpeg(200);
    const heavy = await start({ bundleDir: (await writeBundle(home, pair('no-number-when-bright', 0.6))).dir });
    await expect(heavy.predict(image)).rejects.toMatchObject({ name: 'InferenceError' });
    const strict = await start({ bundleDir: (await writeBundle(home, pair('no-number-when-bright', 0.4))).dir, strict: true });
    await expect(strict.predict(image)).rejects.toMatchObject({ name: 'InferenceError' });
  });

  it('does without a member that would be late, and with it when there is time', async () => {
    const { dir } = await writeBundle(home, pair('slow', 0.4));
    const results = new Map<number, OneResult>();
    let told: () => void = () => undefined;
    const child = await InferenceChild.start(
      {
        bundleDir: dir,
        digest: null,
        threads: 1,
        maxBatch: 1,
        nice: 0,
        limits: { maxBytes: 1e6, maxPixels: 1e6 },
        providers: ['cpu'],
        deviceId: 0,
        budgetMs: 300,
        strict: false,
      },
      {
        onResult: (id, [result]) => {
          results.set(id, result!);
          told();
        },
        onExit: () => undefined,
      },
    );
    try {
      const ask = async (id: number, leftMs: number): Promise<Extract<OneResult, { ok: true }>> => {
        const answered = new Promise<void>((resolve) => (told = resolve));
        child.predict(id, [{ tensor: new Float32Array(3 * 16 * 16).fill(0.1) }], {
          deadline: monotonicMs() + leftMs,
          behind: 0,
          interarrivalMs: null,
        });
        await answered;
        return results.get(id) as Extract<OneResult, { ok: true }>;
      };
      expect((await ask(1, 60_000)).leftOut).toEqual([]);
      // Long enough for the message to arrive, too short for the slow member.
      const late = await ask(2, child.perImageMs * 0.8);
      expect(late.leftOut).toEqual([{ member: 'other', reason: 'late' }]);
      expect(late.prediction).toBeCloseTo(1 / (1 + Math.exp(-1.2)), 5);
    } finally {
      await child.kill();
    }
  });

  it('looks at the mirrored image too when the bundle asks for it and the budget allows, and not otherwise', async () => {
    const left = { members: [{ model: 'left' as const, weight: 1, name: 'left' }] };
    const tensor = new Float32Array(3 * 16 * 16).map((_, i) => (i % 16 < 8 ? 0.5 : -0.5));
    const plain = await start({ bundleDir: (await writeBundle(home, left)).dir });
    const once = await plain.predict({ tensor });
    expect(once.prediction).toBeGreaterThan(0.99);
    expect(once.augmented).toBe(false);
    const { dir } = await writeBundle(home, { ...left, tta: { flip: true } });
    const both = await (await start({ bundleDir: dir, latencyBudgetMs: 60_000 })).predict({ tensor });
    expect(both.augmented).toBe(true);
    expect(both.prediction).toBeCloseTo(0.5, 5);
    const hurried = await (await start({ bundleDir: dir, latencyBudgetMs: 0.001 })).predict({ tensor });
    expect(hurried.augmented).toBe(false);
    expect(hurried.prediction).toBeCloseTo(once.prediction, 6);
  });
});

describe('evaluation', () => {
  async function images(levels: number[]): Promise<{ digest: string; path: string }[]> {
    return Promise.all(
      levels.map(async (level, i) => {
        const bytes = await greyJpeg(level, i);
        const digest = createHash('sha256').update(bytes).digest('hex');
        const file = path.join(home, digest);
        await writeFile(file, bytes);
        return { digest, path: file };
      }),
    );
  }

  it('says what the pool says, in the given order, and the same each time', async () => {
    const { dir } = await writeBundle(home, {
      members: [
        { model: 'bright', weight: 0.7 },
        { model: 'red', weight: 0.3 },
      ],
    });
    const list = await images(Array.from({ length: 21 }, (_, i) => 10 + 11 * i));
    const progress: number[] = [];
    const rows = await evaluate({ bundleDir: dir, images: list, threads: 1, batch: 8, onProgress: (done) => progress.push(done) });
    expect(rows.map((row) => row.digest)).toEqual(list.map((image) => image.digest));
    expect(progress).toEqual([8, 16, 21]);
    expect((await evaluate({ bundleDir: dir, images: list, threads: 1, batch: 8 })).map((row) => row.prediction)).toEqual(
      rows.map((row) => row.prediction),
    );
    const pool = await start({ bundleDir: dir });
    for (const [i, image] of list.entries()) {
      const { readFile } = await import('node:fs/promises');
      const answer = await pool.predict(await readFile(image.path));
      expect(answer.prediction).toBeCloseTo(rows[i]!.prediction, 5);
      expect(Object.keys(answer.votes)).toEqual(Object.keys(rows[i]!.votes));
    }
  });

  it('leaves out an image that cannot be decoded and names it', async () => {
    const { dir } = await writeBundle(home);
    const list = await images([50, 200]);
    const bytes = Buffer.from('not an image');
    const digest = createHash('sha256').update(bytes).digest('hex');
    await writeFile(path.join(home, digest), bytes);
    const failed: string[] = [];
    const rows = await evaluate({
      bundleDir: dir,
      images: [list[0]!, { digest, path: path.join(home, digest) }, list[1]!],
      threads: 1,
      onFailure: (which) => failed.push(which),
    });
    expect(rows.map((row) => row.digest)).toEqual(list.map((image) => image.digest));
    expect(failed).toEqual([digest]);
  });

  it('refuses an image whose bytes are not what its name says', async () => {
    const { dir } = await writeBundle(home);
    const [image] = await images([50]);
    await writeFile(image!.path, await greyJpeg(99));
    await expect(evaluate({ bundleDir: dir, images: [image!], threads: 1 })).rejects.toMatchObject({ name: 'ObjectCorruptError' });
  });

  it('ends with the reason of the signal', async () => {
    const { dir } = await writeBundle(home);
    const abort = new AbortController();
    const list = await images(Array.from({ length: 64 }, (_, i) => 3 * i));
    const made = evaluate({
      bundleDir: dir,
      images: list,
      threads: 1,
      signal: abort.signal,
      onProgress: () => abort.abort(new Error('enough')),
    });
    await expect(made).rejects.toThrow('enough');
  });
});
