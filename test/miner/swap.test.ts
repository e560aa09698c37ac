/** Swaps, rollbacks, memory, shadow and canary of the model host, on a real miner under signed requests. */
import { rm } from 'node:fs/promises';
import path from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { ModelHost } from '../../src/miner/champion.js';
import { readJournal } from '../../src/platform/journal.js';
import { ShadowLane } from '../../src/miner/shadow.js';
import { connectDendrite, type Dendrite } from '../../src/platform/bittensor/dendrite.js';
import { bundleNeedsBytes, residentBytes, RESERVE_BYTES } from '../../src/platform/inference/memory.js';
import { bundleFiles, writeBundle, type BundleOptions } from '../support/bundle.js';
import { greyJpeg } from '../support/images.js';
import { quiet, startMiner, type TestMiner } from '../support/miner.js';
import { alive } from '../support/processes.js';

const BRIGHT: BundleOptions = { members: [{ model: 'bright', weight: 1 }] };
const DARK: BundleOptions = { members: [{ model: 'dark', weight: 1 }] };
const RED: BundleOptions = { members: [{ model: 'red', weight: 1 }] };

let t: TestMiner;
let dendrite: Dendrite;
const ask = (image: Buffer) => dendrite.ask({ url: t.miner.url, axonHotkey: t.hotkey.address, image });
const serving = (generation: number) => () => t.miner.status().serving?.generation === generation;
async function begin(): Promise<void> {
  t = await startMiner();
  dendrite = connectDendrite({ hotkey: t.validator });
}
async function end(): Promise<void> {
  await dendrite.close();
  await t.end();
}

describe('swaps under load', () => {
  afterEach(end);

  it('lose no request, miss no deadline and leave no process, eight in a row', async () => {
    await begin();
    await t.promote(1, BRIGHT);
    await t.until('it is ready', () => t.miner.status().ready);
    const image = await greyJpeg(200);
    const answers: { status: number; error: string | null }[] = [];
    const seen = new Set<number>();
    let swapping = true;
    const load = Array.from({ length: 3 }, async () => {
      while (swapping) answers.push(await ask(image));
    });
    // Three bundles in turn: the previous champion is never the next one, so that each swap starts processes anew.
    const turn = [DARK, RED, BRIGHT];
    const memory: number[] = [];
    for (let generation = 2; generation <= 9; generation++) {
      await t.promote(generation, turn[(generation - 2) % 3]);
      await t.until(`generation ${generation} serves`, serving(generation));
      for (const pid of t.miner.pids()) seen.add(pid);
      memory.push(residentBytes(t.miner.pids()));
    }
    swapping = false;
    await Promise.all(load);
    expect(answers.length).toBeGreaterThan(20);
    // A request over its deadline would have been refused with 503.
    expect(answers.filter((answer) => answer.status !== 200)).toEqual([]);
    expect(seen.size).toBe(8);
    // The champion's and the warm previous one's are left of all that were started.
    await t.until('the retired ones are gone', () => [...seen].filter(alive).length === 2);
    expect(Math.max(...memory)).toBeLessThan(2 * Math.min(...memory));
  });

  it('keep the previous champion warm, and a rollback to it starts nothing', async () => {
    await begin();
    const first = await t.promote(1, BRIGHT);
    await t.until('it is ready', () => t.miner.status().ready);
    const pids = t.miner.pids();
    await t.promote(2, DARK);
    await t.until('the second serves', serving(2));
    expect(t.miner.status().warm).toBe(first);
    // Even with the bundle gone from the disk: what is loaded was verified when it was.
    await rm(path.join(t.home, 'bundles', first), { recursive: true });
    await t.point(JSON.stringify({ generation: 3, digest: first, previous: null }));
    await t.until('the first serves again', serving(3));
    expect(t.miner.pids()).toEqual(pids);
    expect((await ask(await greyJpeg(200))).prediction).toBeGreaterThan(0.9);
    expect(t.miner.status().warm).not.toBe(first);
  });
});

describe('memory', () => {
  let host: ModelHost | null = null;
  afterEach(async () => {
    await host?.stop(0);
    host = null;
    await end();
  });
  const need = async (bundle: BundleOptions): Promise<number> => bundleNeedsBytes((await bundleFiles(bundle)).bundle, 1);

  /** A host of its own on the miner's home: the miner itself would read the real memory. */
  async function withMemory(available: () => number): Promise<ModelHost> {
    host = new ModelHost({ home: t.home, processes: 1, threads: 1, logger: quiet, onSwap: () => undefined, available, pollMs: 50 });
    host.start();
    return host;
  }

  it('too short for a second bundle refuses it in words, and the champion stays', async () => {
    await begin();
    const room = { bytes: 1e12 };
    await t.promote(1, BRIGHT);
    const it_ = await withMemory(() => room.bytes);
    await t.until('the champion serves', () => it_.serving !== null);
    room.bytes = RESERVE_BYTES + 1000;
    await t.promote(2, DARK);
    await t.until('it is refused', () => it_.refused !== null);
    expect(it_.refused).toMatch(
      /champion: bundle [0-9a-f]{12} needs about \d+ MiB in 1 process beside the champion, and 0 MiB can be taken/,
    );
    expect(it_.serving?.pointer.generation).toBe(1);
    // Memory comes back: the pointer still stands, and is followed.
    room.bytes = 1e12;
    await t.until('it serves after all', () => it_.serving?.pointer.generation === 2);
  });

  it('is taken from the shadow first, then from the previous champion', async () => {
    await begin();
    const one = await need(BRIGHT);
    // Room for as many bundles as `slots`; what is loaded takes its own.
    const state = { slots: 4 };
    const loaded = () => [it_.serving, it_.shadow, it_.previous].filter((part) => part !== null).length;
    await t.promote(1, BRIGHT);
    const it_: ModelHost = await withMemory(() => RESERVE_BYTES + (state.slots - loaded()) * one + 1);
    await t.until('the champion serves', () => it_.serving !== null);
    await t.promote(2, DARK);
    await t.until('the second serves', () => it_.serving?.pointer.generation === 2);
    expect(it_.previous).not.toBeNull();
    const { digest } = await writeBundle(path.join(t.home, 'bundles'), { ...RED, name: 'candidate' });
    await t.shadow({ trial: 'trial', digest, share: 1 });
    await t.until('the candidate runs', () => it_.shadow !== null);
    // Three are loaded. With room for three, a fourth takes the place of the shadow; with room for two, of both.
    state.slots = 3;
    const kept = it_.previous;
    const shadow = it_.shadow;
    let keptAtSwap: unknown = 'no swap yet';
    const watch = setInterval(() => {
      if (it_.shadow !== shadow && keptAtSwap === 'no swap yet') keptAtSwap = it_.previous;
    }, 1);
    await t.promote(3, RED);
    await t.until('the third serves', () => it_.serving?.pointer.generation === 3);
    clearInterval(watch);
    expect(keptAtSwap).toBe(kept);
    // The order still stands: the candidate is loaded again when there is room for it.
    await t.until('the candidate runs again', () => it_.shadow !== null);
    state.slots = 2;
    await t.promote(4, { ...BRIGHT, name: 'fourth' });
    await t.until('the fourth serves', () => it_.serving?.pointer.generation === 4);
    expect(it_.refused === null || it_.refused.startsWith('shadow: ')).toBe(true);
  });
});

describe('a canary', () => {
  afterEach(end);

  it('is off unless the order says so; then the candidate answers its share, and the champion what the candidate cannot', async () => {
    await begin();
    await t.promote(1, BRIGHT);
    await t.until('it is ready', () => t.miner.status().ready);
    const { digest } = await writeBundle(path.join(t.home, 'bundles'), DARK);
    await t.shadow({ trial: 'quiet', digest, share: 0 });
    await t.until('the candidate runs', () => t.miner.status().shadowReady);
    const image = await greyJpeg(200);
    for (let i = 0; i < 10; i++) expect((await ask(image)).prediction).toBeGreaterThan(0.9);
    const order = { trial: 'loud', digest, share: 0, canary: 0.5 };
    await t.shadow(order);
    await t.until('the new order runs', () => t.miner.status().shadowReady && t.miner.status().shadow?.trial === 'loud');
    const predictions: number[] = [];
    for (let i = 0; i < 40; i++) predictions.push((await ask(image)).prediction ?? -1);
    const byCandidate = predictions.filter((p) => p < 0.1).length;
    expect(byCandidate).toBeGreaterThan(5);
    expect(predictions.filter((p) => p > 0.9)).toHaveLength(40 - byCandidate);
    await expect
      .poll(async () => (await readJournal(path.join(t.home, 'journal'))).flatMap((part) => part.records).length, { timeout: 10_000 })
      .toBe(50);
    const records = (await readJournal(path.join(t.home, 'journal'))).flatMap((part) => part.records);
    expect(records.filter((record) => record.model === digest)).toHaveLength(byCandidate);
    expect(await (await fetch(`${t.miner.controlUrl}/metrics`)).text()).toContain(`miner_canary_total{result="answered"} ${byCandidate}`);
  });
});

describe("the shadow's lane", () => {
  const said = { prediction: 0.5, votes: {}, leftOut: [], augmented: false, ms: 1 };

  it('waits while the champion has work, and runs one at a time', async () => {
    let rest: () => void = () => undefined;
    const resting = new Promise<void>((resolve) => (rest = resolve));
    let running = 0;
    let most = 0;
    let asked = 0;
    const pool = {
      predict: async () => {
        asked += 1;
        most = Math.max(most, ++running);
        await new Promise((resolve) => setImmediate(resolve));
        running -= 1;
        return said;
      },
    };
    const lane = new ShadowLane({ pool, trial: 't', model: 'f'.repeat(64), idle: () => resting });
    const results = Array.from({ length: 5 }, () => lane.run(Buffer.from('image')));
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(asked).toBe(0);
    rest();
    expect((await Promise.all(results)).map((result) => result?.prediction)).toEqual([0.5, 0.5, 0.5, 0.5, 0.5]);
    expect(most).toBe(1);
    expect(lane.depth).toBe(0);
  });

  it('drops what does not fit and what waited too long, and never blames the candidate for it', async () => {
    let rest: () => void = () => undefined;
    const resting = new Promise<void>((resolve) => (rest = resolve));
    const lane = new ShadowLane({
      pool: { predict: () => Promise.resolve(said) },
      trial: 't',
      model: 'f'.repeat(64),
      idle: () => resting,
      maxAgeMs: 5,
    });
    const results = Array.from({ length: 100 }, () => lane.run(Buffer.from('image')));
    expect(lane.depth).toBeLessThanOrEqual(66);
    await new Promise((resolve) => setTimeout(resolve, 20));
    rest();
    expect(new Set(await Promise.all(results))).toEqual(new Set([null]));
  });

  it('reports what the candidate could not answer as its error', async () => {
    const lane = new ShadowLane({
      pool: { predict: () => Promise.reject(new Error('no number')) },
      trial: 't',
      model: 'f'.repeat(64),
      idle: () => Promise.resolve(),
    });
    expect(await lane.run(Buffer.from('image'))).toMatchObject({ prediction: null, error: 'no number', trial: 't' });
  });

  it('lets go of what waits when the trial ends', async () => {
    const lane = new ShadowLane({
      pool: { predict: () => Promise.resolve(said) },
      trial: 't',
      model: 'f'.repeat(64),
      idle: () => new Promise<void>(() => undefined),
    });
    const result = lane.run(Buffer.from('image'));
    lane.close();
    expect(await result).toBeNull();
    expect(await lane.run(Buffer.from('image'))).toBeNull();
  });
});
