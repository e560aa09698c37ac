import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import sharp from 'sharp';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { MinerStatus } from '../../src/domain/contracts/miner.js';
import { chosen, runMiner } from '../../src/miner/index.js';
import { connectDendrite, signedHeaders, synapseBody, type Dendrite } from '../../src/platform/bittensor/dendrite.js';
import { hotkeyFromMnemonic, type Hotkey } from '../../src/platform/bittensor/keys.js';
import { journalImagePath, readJournal } from '../../src/platform/journal.js';
import { greyJpeg } from '../support/images.js';
import { quiet, startMiner, type TestMiner } from '../support/miner.js';
import { writeBundle } from '../support/bundle.js';
import { TEST_KEYS } from './vectors.js';

const BRIGHT = { name: 'says bright' };
const DARK = { name: 'says dark', members: [{ model: 'dark' as const, weight: 1 }] };

let nonce = BigInt(Date.now()) * 1_000_000n;
/** Sends exactly these headers and bytes; unlike the dendrite it may be wrong in any way. */
function raw(
  url: string,
  options: { headers: Record<string, string>; body: string | Buffer; path?: string; method?: string; chunked?: boolean },
): Promise<{ status: number; headers: http.IncomingHttpHeaders; body: { prediction?: number; message?: string } }> {
  return new Promise((resolve, reject) => {
    const request = http.request(
      `${url}${options.path ?? '/ImageSynapse'}`,
      {
        method: options.method ?? 'POST',
        agent: false,
        headers: {
          'content-type': 'application/json',
          ...options.headers,
          ...(options.chunked ? { 'transfer-encoding': 'chunked' } : { 'content-length': String(Buffer.byteLength(options.body)) }),
        },
      },
      (response) => {
        const pieces: Buffer[] = [];
        response.on('data', (piece: Buffer) => pieces.push(piece));
        response.on('error', reject);
        response.on('end', () =>
          resolve({
            status: response.statusCode ?? 0,
            headers: response.headers,
            body: JSON.parse(Buffer.concat(pieces).toString()) as object,
          }),
        );
      },
    );
    request.on('error', reject);
    request.end(options.body);
  });
}

describe('a miner with a champion', () => {
  let t: TestMiner;
  let dendrite: Dendrite;
  let light: Buffer;
  const ask = (image: Buffer, synapse?: 'ExtendedImageSynapse') =>
    dendrite.ask({ url: t.miner.url, axonHotkey: t.hotkey.address, image, ...(synapse ? { synapse } : {}) });
  const headers = (key: Hotkey = t.validator, synapse = 'ImageSynapse', now = ++nonce) =>
    signedHeaders({
      hotkey: key,
      axonHotkey: t.hotkey.address,
      nonce: now,
      uuid: 'test-uuid',
      synapse,
      timeoutSeconds: 9,
      axonIp: '127.0.0.1',
      axonPort: 1,
      externalIp: '127.0.0.1',
    });
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
    const same = signedHeaders({
      hotkey: t.validator,
      axonHotkey: t.hotkey.address,
      nonce: BigInt(Date.now()) * 1_000_000n,
      uuid: 'restart',
      synapse: 'ImageSynapse',
      timeoutSeconds: 9,
      axonIp: '127.0.0.1',
      axonPort: 1,
      externalIp: '127.0.0.1',
    });
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

describe('the dendrite', () => {
  let server: http.Server;
  let respond: http.RequestListener;
  let url: string;
  let key: Hotkey;
  let dendrite: Dendrite;
  beforeAll(async () => {
    key = await hotkeyFromMnemonic(TEST_KEYS.validator.mnemonic);
    dendrite = connectDendrite({ hotkey: key });
    server = http.createServer((request, response) => respond(request, response));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  afterAll(async () => {
    await dendrite.close();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
  const ask = (timeoutSeconds = 9) => dendrite.ask({ url, axonHotkey: TEST_KEYS.miner.ss58, image: Buffer.from('x'), timeoutSeconds });

  it('gives up after its time-out with 408', async () => {
    respond = (request) => request.resume();
    expect(await ask(0.2)).toMatchObject({ status: 408, prediction: null });
  });

  it('reports an answer that is not JSON as 422, as the reference does', async () => {
    respond = (_request, response) => response.writeHead(200, { 'content-type': 'text/html' }).end('<html>');
    expect(await ask()).toMatchObject({ status: 422, prediction: null });
  });

  it('believes the status in the header over that of HTTP', async () => {
    respond = (_request, response) =>
      response.writeHead(200, { 'content-type': 'application/json', bt_header_axon_status_code: '403' }).end('{"prediction":0.9}');
    expect(await ask()).toMatchObject({ status: 403, prediction: null });
  });

  it('reports a connection that is closed without an answer as 503', async () => {
    respond = (request) => request.socket.destroy();
    expect(await ask()).toMatchObject({ status: 503, prediction: null });
  });

  it('keeps its connections for the next requests', async () => {
    const ports = new Set<number | undefined>();
    respond = (request, response) => {
      ports.add(request.socket.remotePort);
      request.resume();
      request.on('end', () => response.writeHead(200, { 'content-type': 'application/json' }).end('{"prediction":0.5}'));
    };
    const fresh = connectDendrite({ hotkey: key });
    for (let i = 0; i < 20; i++)
      expect(await fresh.ask({ url, axonHotkey: TEST_KEYS.miner.ss58, image: Buffer.from('x') })).toMatchObject({
        status: 200,
        prediction: 0.5,
      });
    await fresh.close();
    // The client may open a second one while it still reads the end of the first answer.
    expect(ports.size).toBeLessThanOrEqual(2);
  });
});
