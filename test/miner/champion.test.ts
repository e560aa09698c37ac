/** What the miner serves: champions that come and are refused, the shadow beside them, and a fixed bundle. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { MinerStatus } from '../../src/domain/contracts/miner.js';
import { chosen } from '../../src/miner/index.js';
import { connectDendrite, synapseBody, type Dendrite } from '../../src/platform/bittensor/dendrite.js';
import { readJournal } from '../../src/platform/journal.js';
import { writeBundle } from '../support/bundle.js';
import { greyJpeg } from '../support/images.js';
import { startMiner, type TestMiner } from '../support/miner.js';
import { raw, signed } from '../support/requests.js';

const BRIGHT = { name: 'says bright' };
const DARK = { name: 'says dark', members: [{ model: 'dark' as const, weight: 1 }] };

describe('a champion', () => {
  let t: TestMiner;
  let dendrite: Dendrite;
  afterEach(async () => {
    await dendrite.close();
    await t.end();
  });
  async function start(): Promise<void> {
    t = await startMiner();
    dendrite = connectDendrite({ hotkey: t.validator });
  }
  const ask = (image: Buffer) => dendrite.ask({ url: t.miner.url, axonHotkey: t.hotkey.address, image });
  const serving = (generation: number) => () => t.miner.status().serving?.generation === generation;

  it('is needed: before there is one the answer is 503, and the miner is not ready', async () => {
    await start();
    expect(await ask(await greyJpeg(200))).toMatchObject({ status: 503, prediction: null, error: 'no model yet' });
    const ready = await fetch(`${t.miner.controlUrl}/readyz`);
    expect(ready.status).toBe(503);
    expect(MinerStatus.parse(await ready.json())).toMatchObject({ ready: false, serving: null, refused: null });
  });

  it('is swapped ten times under load without losing a request', async () => {
    await start();
    await t.promote(1, BRIGHT);
    await t.until('it is ready', () => t.miner.status().ready);
    const image = await greyJpeg(200);
    let swapping = true;
    const answers: { status: number; prediction: number | null; error: string | null }[] = [];
    const load = Array.from({ length: 4 }, async () => {
      while (swapping) answers.push(await ask(image));
    });
    try {
      for (let generation = 2; generation <= 11; generation++) {
        await t.promote(generation, generation % 2 === 0 ? DARK : BRIGHT);
        await t.until(`generation ${generation} serves`, serving(generation));
        const { prediction } = await ask(image);
        if (generation % 2 === 0) expect(prediction).toBeLessThan(0.1);
        else expect(prediction).toBeGreaterThan(0.9);
      }
    } finally {
      // The load must end with the test, also with one that failed: it would never let the next one come.
      swapping = false;
      await Promise.all(load);
    }
    expect(answers.length).toBeGreaterThan(50);
    expect(answers.filter((answer) => answer.status !== 200)).toEqual([]);
    expect(await (await fetch(`${t.miner.controlUrl}/metrics`)).text()).toContain('miner_swaps_total{result="done"} 11');
  }, 120_000);

  it('stays when an older or equal generation comes, which is refused by name', async () => {
    await start();
    const first = await t.promote(5, BRIGHT);
    await t.until('it is ready', () => t.miner.status().ready);
    for (const generation of [4, 5]) {
      await t.promote(generation, DARK);
      await t.until('it is refused', () => t.miner.status().refused?.includes(`generation ${generation} `) === true);
      expect(t.miner.status()).toMatchObject({ ready: true, serving: { generation: 5, digest: first } });
    }
    expect((await ask(await greyJpeg(200))).prediction).toBeGreaterThan(0.9);
    await t.promote(6, DARK);
    await t.until('the next one serves', serving(6));
    expect(t.miner.status().refused).toBeNull();
  });

  it('stays when a corrupt bundle comes, and gives way when it is mended', async () => {
    await start();
    await t.promote(1, BRIGHT);
    await t.until('it is ready', () => t.miner.status().ready);
    const { dir, digest, bundle } = await writeBundle(path.join(t.home, 'bundles'), DARK);
    const file = path.join(dir, bundle.members[0]!.onnx.path);
    const good = await readFile(file);
    await writeFile(file, Buffer.alloc(good.length));
    await t.point(JSON.stringify({ generation: 2, digest, previous: null }));
    await t.until('it is refused', () => t.miner.status().refused?.includes('damaged') === true);
    expect(t.miner.status().serving?.generation).toBe(1);
    expect((await ask(await greyJpeg(200))).status).toBe(200);
    await writeFile(file, good);
    await t.until('the mended one serves', serving(2));
  });

  it('stays when the pointer is no pointer, or is gone', async () => {
    await start();
    await t.promote(1, BRIGHT);
    await t.until('it is ready', () => t.miner.status().ready);
    await t.point('{"generation": "two"');
    await t.until('it is refused', () => t.miner.status().refused !== null);
    await rm(path.join(t.home, 'champion.json'));
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect((await ask(await greyJpeg(200))).status).toBe(200);
  });

  it('is served again after a restart, and an answered request is still refused then', async () => {
    await start();
    await t.promote(3, BRIGHT);
    await t.until('it is ready', () => t.miner.status().ready);
    const image = await greyJpeg(200);
    const same = signed(t.validator, t.hotkey.address);
    const send = () => raw(t.miner.url, { headers: same, body: synapseBody('ImageSynapse', image, 9) });
    expect((await send()).status).toBe(200);
    await t.restart();
    await t.until('it serves again', serving(3));
    expect((await send()).status).toBe(401);
    expect((await ask(image)).status).toBe(200);
    await t.miner.stop();
    expect((await readJournal(path.join(t.home, 'journal'))).map((part) => part.records.length)).toEqual([1, 1]);
  });

  it('answers what is under way before it stops', async () => {
    await start();
    await t.promote(1, BRIGHT);
    await t.until('it is ready', () => t.miner.status().ready);
    const image = await greyJpeg(200);
    // Each on a connection of its own, of which the first is answered while others wait to be accepted.
    const asked = Array.from({ length: 12 }, () => ask(image));
    await t.until('requests are under way', () => t.miner.status().answered > 0);
    await t.miner.stop();
    const answers = await Promise.all(asked);
    expect(answers.filter((answer) => answer.status !== 200)).toEqual([]);
    const written = (await readJournal(path.join(t.home, 'journal'))).flatMap((part) => part.records);
    expect(written).toHaveLength(12);
  });
});

describe('the shadow', () => {
  let t: TestMiner;
  let dendrite: Dendrite;
  beforeAll(async () => {
    t = await startMiner();
    dendrite = connectDendrite({ hotkey: t.validator });
    await t.promote(1, BRIGHT);
    await t.until('it is ready', () => t.miner.status().ready);
  });
  afterAll(async () => {
    await dendrite.close();
    await t.end();
  });
  const journal = async () => (await readJournal(path.join(t.home, 'journal'))).flatMap((part) => part.records);

  it('answers its share, off the answer path, and its result stands in the journal', async () => {
    const { digest } = await writeBundle(path.join(t.home, 'bundles'), DARK);
    await t.shadow({ trial: 'trial-1', digest, share: 0.5 });
    await t.until('the candidate runs', () => t.miner.status().shadowReady);
    for (let i = 0; i < 40; i++) await dendrite.ask({ url: t.miner.url, axonHotkey: t.hotkey.address, image: await greyJpeg(200, i) });
    await expect.poll(async () => (await journal()).length, { timeout: 10_000 }).toBe(40);
    const records = await journal();
    for (const record of records) {
      expect(record.prediction).toBeGreaterThan(0.9);
      expect(record.shadow !== null).toBe(chosen('trial-1', record.id, 0.5));
      if (record.shadow !== null) {
        expect(record.shadow).toMatchObject({ trial: 'trial-1', model: digest, error: null });
        expect(record.shadow.prediction).toBeLessThan(0.1);
      }
    }
    const share = records.filter((record) => record.shadow !== null).length;
    expect(share).toBeGreaterThan(5);
    expect(share).toBeLessThan(35);
  });

  it('ends with the order', async () => {
    await t.shadow(null);
    await t.until('it ended', () => t.miner.status().shadow === null && !t.miner.status().shadowReady);
    expect(t.miner.status().ready).toBe(true);
  });

  it('that cannot be loaded is refused by name, and the champion answers', async () => {
    await t.shadow({ trial: 'trial-2', digest: 'f'.repeat(64), share: 1 });
    await t.until('it is refused', () => t.miner.status().refused?.startsWith('shadow: ') === true);
    expect(t.miner.status()).toMatchObject({ ready: true, shadowReady: false });
    expect((await dendrite.ask({ url: t.miner.url, axonHotkey: t.hotkey.address, image: await greyJpeg(200) })).status).toBe(200);
    await t.shadow(null);
    await t.until('the refusal is gone', () => t.miner.status().refused === null);
  });
});

describe('a bundle folder', () => {
  it('is served without a pointer, and a pointer that appears is not followed', async () => {
    const { dir, digest } = await writeBundle(await mkdtemp(path.join(os.tmpdir(), 'flywheel-fixed-')), DARK);
    const t = await startMiner({ bundle: dir });
    const dendrite = connectDendrite({ hotkey: t.validator });
    const ask = async () => dendrite.ask({ url: t.miner.url, axonHotkey: t.hotkey.address, image: await greyJpeg(200) });
    try {
      expect(t.miner.status()).toMatchObject({ ready: true, serving: { generation: 1, digest, previous: null } });
      expect((await ask()).prediction).toBeLessThan(0.1);
      await t.promote(2, BRIGHT);
      await new Promise((resolve) => setTimeout(resolve, 200));
      expect((await ask()).prediction).toBeLessThan(0.1);
    } finally {
      await dendrite.close();
      await t.end();
      await rm(path.dirname(dir), { recursive: true });
    }
  });

  it('that is none, or is damaged, is refused before the miner serves', async () => {
    const root = await mkdtemp(path.join(os.tmpdir(), 'flywheel-fixed-'));
    await expect(startMiner({ bundle: root })).rejects.toThrow(/is no bundle/);
    const { dir, bundle } = await writeBundle(root, DARK);
    await writeFile(path.join(dir, bundle.members[0]!.onnx.path), 'damaged');
    await expect(startMiner({ bundle: dir })).rejects.toThrow(/damaged/);
    await rm(root, { recursive: true });
  });
});
