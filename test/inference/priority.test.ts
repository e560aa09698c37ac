import { mkdtemp, rm } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { InferencePool } from '../../src/platform/inference/pool.js';
import { writeBundle } from '../support/bundle.js';

const logger = { info: () => undefined, warn: () => undefined, error: () => undefined };
let home: string;
let pool: InferencePool;
/** Needs no decoding: images are decoded several at once, and it would then be chance which is answered first. */
const image = { tensor: new Float32Array(3 * 16 * 16).fill(0.1) };
beforeEach(async () => {
  home = await mkdtemp(path.join(os.tmpdir(), 'flywheel-priority-'));
  const { dir } = await writeBundle(home);
  pool = await InferencePool.start({ bundleDir: dir, digest: null, processes: 1, threads: 1, maxBatch: 1, maxQueue: 4, logger });
  // One that answers nothing: what comes now waits, and the order in which it is taken can be seen.
  process.kill(pool.pids[0] as number, 'SIGSTOP');
});
afterEach(async () => {
  process.kill(pool.pids[0] as number, 'SIGCONT');
  await pool.stop(0);
  await rm(home, { recursive: true, force: true });
});

/** Fills the process's hands, so that whatever follows is in the queue; resolves when all those are answered. */
function fillProcess(): Promise<unknown> {
  const held: Promise<unknown>[] = [];
  while (pool.depth < 2) held.push(pool.predict(image));
  return Promise.all(held);
}
const resume = (): boolean => process.kill(pool.pids[0] as number, 'SIGCONT');

describe('when images wait', () => {
  it('those of a greater stake are taken first, and equals in the order they came', async () => {
    const held = fillProcess();
    const order: string[] = [];
    const ask = (name: string, priority: number) => pool.predict(image, Number.POSITIVE_INFINITY, priority).then(() => order.push(name));
    const asked = [ask('poor', 1), ask('rich', 100), ask('poor too', 1), ask('rich too', 100)];
    resume();
    await Promise.all([held, ...asked]);
    expect(order).toEqual(['rich', 'rich too', 'poor', 'poor too']);
  });

  it('a full queue lets the least important, youngest one go for a more important one, and nobody for an equal', async () => {
    const held = fillProcess();
    const asked = [5, 1, 1, 5].map((priority) =>
      pool.predict(image, Number.POSITIVE_INFINITY, priority).then(
        () => 'answered',
        (error: Error) => error.name,
      ),
    );
    await expect(pool.predict(image, Number.POSITIVE_INFINITY, 1)).rejects.toThrow(/queue is full/);
    const important = pool.predict(image, Number.POSITIVE_INFINITY, 2).then(() => 'answered');
    expect(await asked[2]).toBe('OverloadedError');
    resume();
    await held;
    expect(await Promise.all([...asked, important])).toEqual(['answered', 'answered', 'OverloadedError', 'answered', 'answered']);
  });

  it('one that others go before is refused at once when it could not be answered in time any more', async () => {
    const held = fillProcess();
    const wait = pool.estimateMs(0);
    const poor = pool.predict(image, wait * 1.3, 0).catch((error: Error) => error.message);
    const rich = [pool.predict(image, Number.POSITIVE_INFINITY, 1), pool.predict(image, Number.POSITIVE_INFINITY, 1)];
    expect(await poor).toMatch(/higher priority came before it/);
    resume();
    await Promise.all([held, ...rich]);
  });
});
