import { createHash } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { MinerStatus } from '../../src/domain/contracts/miner.js';
import { runMiner } from '../../src/miner/index.js';
import { connectDendrite, synapseBody, type Dendrite } from '../../src/platform/bittensor/dendrite.js';
import { hotkeyFromMnemonic, type Hotkey } from '../../src/platform/bittensor/keys.js';
import { journalImagePath, readJournal } from '../../src/platform/journal.js';
import { greyJpeg } from '../support/images.js';
import { quiet, startMiner, type TestMiner } from '../support/miner.js';
import { raw, signed } from '../support/requests.js';
import { TEST_KEYS } from './vectors.js';

const BRIGHT = { name: 'says bright' };

let nonce = BigInt(Date.now()) * 1_000_000n;

describe('a miner with a champion', () => {
  let t: TestMiner;
  let dendrite: Dendrite;
  let light: Buffer;
  const ask = (image: Buffer, synapse?: 'ExtendedImageSynapse') =>
    dendrite.ask({ url: t.miner.url, axonHotkey: t.hotkey.address, image, ...(synapse ? { synapse } : {}) });
  const headers = (key: Hotkey = t.validator, synapse = 'ImageSynapse', now = ++nonce) =>
    signed(key, t.hotkey.address, { nonce: now, synapse });
  const body = (image: Buffer = light) => synapseBody('ImageSynapse', image, 9);

  beforeAll(async () => {
    t = await startMiner();
    dendrite = connectDendrite({ hotkey: t.validator });
    light = await greyJpeg(200);
    await t.promote(1, BRIGHT);
    await t.until('it is ready', () => t.miner.status().ready);
  });
  afterAll(async () => {
    await dendrite.close();
    await t.end();
  });

  it('answers a signed challenge with the prediction of its model', async () => {
    const answer = await ask(light);
    expect(answer).toMatchObject({ status: 200, error: null });
    expect(answer.prediction).toBeGreaterThan(0.9);
    expect((await ask(await greyJpeg(60))).prediction).toBeLessThan(0.1);
  });

  it('answers the class name that validators used before', async () => {
    expect((await ask(light, 'ExtendedImageSynapse')).status).toBe(200);
  });

  it('answers a ping', async () => {
    expect(await dendrite.ask({ url: t.miner.url, axonHotkey: t.hotkey.address })).toMatchObject({
      status: 200,
      prediction: null,
      error: null,
    });
  });

  it('sends the headers that a dendrite needs, and nothing of the model', async () => {
    const answer = await raw(t.miner.url, { headers: headers(), body: body() });
    expect(answer.headers).toMatchObject({
      'content-type': 'application/json',
      bt_header_axon_status_code: '200',
      bt_header_axon_status_message: 'Success',
    });
    expect(Number(answer.headers.bt_header_axon_process_time)).toBeGreaterThan(0);
    expect(Object.keys(answer.body)).toEqual(['prediction']);
    expect(JSON.stringify(answer)).not.toContain(t.miner.status().serving!.digest);
  });

  it('refuses a request whose signature is missing', async () => {
    const { bt_header_dendrite_signature: _, ...rest } = headers();
    expect(await raw(t.miner.url, { headers: rest, body: body() })).toMatchObject({
      status: 401,
      body: { message: 'Not Verified with error: Missing Signature' },
    });
  });

  it('refuses a request that was answered before', async () => {
    const same = headers();
    expect((await raw(t.miner.url, { headers: same, body: body() })).status).toBe(200);
    expect(await raw(t.miner.url, { headers: same, body: body() })).toMatchObject({ status: 401 });
  });

  it.each(['nonvalidator', 'stranger'] as const)('refuses a %s who signs correctly', async (role) => {
    const key = await hotkeyFromMnemonic(TEST_KEYS[role].mnemonic);
    expect(await raw(t.miner.url, { headers: headers(key), body: body() })).toMatchObject({
      status: 403,
      headers: { bt_header_axon_status_code: '403' },
    });
  });

  it('lets a validator in as soon as the metagraph gives it a permit, and keeps the list when the file is broken', async () => {
    const key = await hotkeyFromMnemonic(TEST_KEYS.stranger.mnemonic);
    const file = path.join(t.home, 'metagraph.json');
    const before = await readFile(file, 'utf8');
    await writeFile(
      file,
      JSON.stringify([...(JSON.parse(before) as object[]), { uid: 2, hotkey: key.address, validatorPermit: true, stake: 1 }]),
    );
    let status = 0;
    await expect
      .poll(async () => (status = (await raw(t.miner.url, { headers: headers(key), body: body() })).status), { timeout: 10_000 })
      .toBe(200);
    await writeFile(file, '[{"uid": 3');
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect((await raw(t.miner.url, { headers: headers(key), body: body() })).status).toBe(200);
    await writeFile(file, before);
    await expect
      .poll(async () => (status = (await raw(t.miner.url, { headers: headers(key), body: body() })).status), { timeout: 10_000 })
      .toBe(403);
    expect(status).toBe(403);
  });

  it.each([
    ['an unknown synapse', { path: '/NoSuchSynapse' }, 404],
    ['a longer path', { path: '/ImageSynapse/extra' }, 404],
    ['another method', { method: 'DELETE' }, 405],
    ['a body that is no JSON', { body: '{"image": "abc", oops' }, 422],
    ['a body that is a list', { body: '[1,2,3]' }, 422],
    ['an empty body', { body: '' }, 422],
    ['an image that is a number', { body: '{"image": 5}' }, 422],
    ['no image', { body: '{}' }, 422],
    ['an empty image', { body: '{"image": ""}' }, 400],
    ['an image that is not base64', { body: '{"image": "!!!!"}' }, 400],
    ['an image that is text', { body: JSON.stringify({ image: Buffer.from('this is not an image').toString('base64') }) }, 400],
  ])('refuses %s with a clear status', async (_what, change, status) => {
    const answer = await raw(t.miner.url, { headers: headers(), body: body(), ...change });
    expect(answer.status).toBe(status);
    expect(answer.body.message).toMatch(/\w+/);
    expect(answer.headers.bt_header_axon_status_code).toBe(String(status));
  });

  it('refuses an image that is cut off instead of guessing', async () => {
    expect(await ask(light.subarray(0, light.length >> 1))).toMatchObject({ status: 400, prediction: null });
  });

  it('refuses a picture of 100 megapixels by its header', async () => {
    const bomb = await sharp({ create: { width: 10_000, height: 10_000, channels: 3, background: '#000' } })
      .png({ compressionLevel: 9 })
      .toBuffer();
    expect(await ask(bomb)).toMatchObject({ status: 413, prediction: null });
  });

  it.each([false, true])('refuses a body of 20 MB (chunked: %s), and hears the sender out', async (chunked) => {
    const answer = await raw(t.miner.url, { headers: headers(), body: Buffer.alloc(20_000_000, 'A'), chunked });
    expect(answer.status).toBe(413);
  });

  it('refuses a body of 15 MB from a stranger before it is read', async () => {
    const key = await hotkeyFromMnemonic(TEST_KEYS.stranger.mnemonic);
    expect((await raw(t.miner.url, { headers: headers(key), body: Buffer.alloc(15_000_000, 'A') })).status).toBe(403);
  });

  it('reads a chunked body', async () => {
    expect((await raw(t.miner.url, { headers: headers(), body: body(), chunked: true })).status).toBe(200);
  });

  it('journals image, prediction, votes and the model that gave them', async () => {
    const image = await greyJpeg(170, 77);
    const answer = await ask(image);
    const digest = createHash('sha256').update(image).digest('hex');
    let found;
    await expect
      .poll(
        async () => (found = (await readJournal(path.join(t.home, 'journal'))).flatMap((p) => p.records).find((r) => r.image === digest)),
        { timeout: 10_000 },
      )
      .toBeTruthy();
    expect(found).toMatchObject({
      prediction: answer.prediction,
      votes: { 'bright-0': answer.prediction },
      validator: t.validator.address,
      generation: 1,
      bytes: image.length,
      shadow: null,
    });
    expect(await readFile(journalImagePath(path.join(t.home, 'journal'), digest))).toEqual(image);
  });

  it('tells health, readiness and metrics on the control port', async () => {
    expect(await (await fetch(`${t.miner.controlUrl}/healthz`)).json()).toEqual({ ok: true });
    const ready = await fetch(`${t.miner.controlUrl}/readyz`);
    expect(ready.status).toBe(200);
    expect(MinerStatus.parse(await ready.json())).toEqual(t.miner.status());
    const metrics = await (await fetch(`${t.miner.controlUrl}/metrics`)).text();
    expect(metrics).toMatch(/miner_requests_total\{outcome="answered"\} \d+/);
    for (const stage of ['verify', 'body', 'wait', 'inference'])
      expect(metrics).toMatch(new RegExp(`miner_stage_seconds_count\\{stage="${stage}"\\} [1-9]`));
    expect(metrics).toMatch(/miner_vote_count\{member="bright-0"\} [1-9]/);
    expect(metrics).toMatch(/miner_event_loop_delay_seconds\{quantile="0.99"\} \d/);
    expect(metrics).toMatch(/miner_clock_skew_seconds -?\d/);
    expect(metrics).toMatch(/miner_metagraph_neurons \d/);
    expect(metrics).toContain(`miner_model_info{digest="${t.miner.status().serving!.digest}",generation="1"} 1`);
  });

  it('tells on the control port whether a swap was made, refused, or is still to come', async () => {
    const probe = async (query: string) => (await fetch(`${t.miner.controlUrl}/swapz?${query}`)).status;
    expect(await probe('generation=1')).toBe(200);
    expect(await probe(`generation=1&digest=${t.miner.status().serving!.digest}`)).toBe(200);
    expect(await probe(`generation=1&digest=${'0'.repeat(64)}`)).toBe(409);
    expect(await probe('generation=2')).toBe(503);
    expect(await probe('generation=none')).toBe(400);
    const next = probe('generation=2&waitMs=20000');
    await t.promote(2, BRIGHT);
    expect(await next).toBe(200);
    await t.point(JSON.stringify({ generation: 3, digest: 'f'.repeat(64), previous: null }));
    expect(await probe('generation=3&waitMs=20000')).toBe(409);
    expect(t.miner.status().serving?.generation).toBe(2);
  });

  it('says that a port is taken', async () => {
    const port = Number(new URL(t.miner.url).port);
    const other = startMiner({ port });
    await expect(other).rejects.toMatchObject({
      name: 'PortError',
      code: 'EADDRINUSE',
      message: expect.stringContaining(`127.0.0.1:${port}`) as string,
    });
  });

  it('tries a request of a killed inference process again: the caller notices nothing', async () => {
    const asked = Array.from({ length: 20 }, () => ask(light));
    process.kill(t.miner.pids()[0] as number, 'SIGKILL');
    expect((await Promise.all(asked)).map((answer) => answer.status)).toEqual(Array.from({ length: 20 }, () => 200));
  });
});

describe('runMiner', () => {
  it('does not open itself to the network without permits', async () => {
    const hotkey = await hotkeyFromMnemonic(TEST_KEYS.miner.mnemonic);
    const options = {
      home: '/nonexistent',
      port: 0,
      controlPort: 0,
      hotkey,
      metagraph: null,
      processes: 1,
      threads: 1,
      journalMaxBytes: 1e6,
      logger: quiet,
    };
    await expect(runMiner({ ...options, host: '0.0.0.0', open: true })).rejects.toThrow(/loopback only/);
    await expect(runMiner({ ...options, host: '127.0.0.1', open: false })).rejects.toThrow(/needs a metagraph/);
    await expect(runMiner({ ...options, host: '127.0.0.1', open: true })).rejects.toThrow(/does not exist/);
  });
});
