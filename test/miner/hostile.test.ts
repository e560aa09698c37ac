/** What hostile and broken clients do to the axon: a quick, correct refusal, and the miner answers on. */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import net from 'node:net';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { gzipSync } from 'node:zlib';
import sharp from 'sharp';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { connectDendrite, synapseBody, type Dendrite } from '../../src/platform/bittensor/dendrite.js';
import { hotkeyFromMnemonic, type Hotkey } from '../../src/platform/bittensor/keys.js';
import { claimedSize } from '../../src/platform/inference/imageHeader.js';
import { readJournal } from '../../src/platform/journal.js';
import { greyJpeg } from '../support/images.js';
import { startMiner, type TestMiner } from '../support/miner.js';
import { signed } from '../support/requests.js';
import { TEST_KEYS } from './vectors.js';

let t: TestMiner;
let dendrite: Dendrite;
let light: Buffer;
let stranger: Hotkey;
beforeAll(async () => {
  light = await greyJpeg(200);
  stranger = await hotkeyFromMnemonic(TEST_KEYS.stranger.mnemonic);
  t = await startMiner();
  dendrite = connectDendrite({ hotkey: t.validator });
  await t.promote(1);
  await t.until('it is ready', () => t.miner.status().ready);
});
afterAll(async () => {
  await dendrite.close();
  await t.end();
});
afterEach(async () => {
  expect(await ask(light)).toMatchObject({ status: 200 });
});

const ask = (image: Buffer) => dendrite.ask({ url: t.miner.url, axonHotkey: t.hotkey.address, image });
let last = BigInt(Date.now()) * 1_000_000n;
function headers(key: Hotkey = t.validator, synapse = 'ImageSynapse', nonce = BigInt(Date.now()) * 1_000_000n): Record<string, string> {
  last = nonce > last ? nonce : last + 1n;
  return signed(key, t.hotkey.address, { nonce: last, uuid: 'hostile', synapse });
}
const lines = (fields: Record<string, string>): string =>
  Object.entries(fields)
    .map(([name, value]) => `${name}: ${value}\r\n`)
    .join('');
const head = (fields: Record<string, string>, route = '/ImageSynapse'): string =>
  `POST ${route} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n${lines(fields)}\r\n`;

function dial(): net.Socket {
  const socket = net.connect(Number(new URL(t.miner.url).port), '127.0.0.1');
  socket.on('error', () => undefined);
  return socket;
}
/** Sends bytes as they are and hears the answer out. @returns status and body; status 0 when the connection was just closed */
async function raw(send: string | Buffer, options: { end?: boolean } = {}): Promise<{ status: number; text: string; ms: number }> {
  const began = performance.now();
  const socket = dial();
  const pieces: Buffer[] = [];
  socket.on('data', (piece: Buffer) => pieces.push(piece));
  socket.write(send);
  if (options.end) socket.end();
  const complete = (): boolean => {
    const text = Buffer.concat(pieces).toString('latin1');
    const at = text.lastIndexOf('\r\n\r\n');
    const length = /content-length: (\d+)\r\n(?![^]*HTTP\/1)/i.exec(text)?.[1];
    return at > 0 && length !== undefined && text.length - at - 4 >= Number(length);
  };
  await new Promise<void>((resolve) => {
    socket.on('close', () => resolve());
    socket.on('data', () => complete() && resolve());
  });
  socket.destroy();
  const text = Buffer.concat(pieces).toString('latin1');
  const statuses = [...text.matchAll(/^HTTP\/1\.1 (\d{3})/gm)].map((match) => Number(match[1]));
  return { status: statuses.at(-1) ?? 0, text, ms: performance.now() - began };
}
const body = (image: Buffer = light): string => synapseBody('ImageSynapse', image, 9);
const post = (fields: Record<string, string>, content: string | Buffer = body(), route?: string) =>
  raw(Buffer.concat([Buffer.from(head({ ...fields, 'content-length': String(Buffer.byteLength(content)) }, route)), Buffer.from(content)]));

describe('headers', () => {
  it.each([
    ['a header of 20 kB', () => head({ ...headers(), padding: 'x'.repeat(20_000) }), [431]],
    [
      'five thousand headers',
      () => head({ ...headers(), ...Object.fromEntries(Array.from({ length: 5000 }, (_, i) => [`h${i}`, '1'])) }),
      [431],
    ],
    ['two signatures', () => head(headers()).replace('\r\n\r\n', `\r\nbt_header_dendrite_signature: 0x${'00'.repeat(64)}\r\n\r\n`), [401]],
    ['two lengths', () => head({ ...headers(), 'content-length': '5' }).replace('\r\n\r\n', '\r\ncontent-length: 6\r\n\r\n'), [400]],
    ['a length and chunks', () => head({ ...headers(), 'content-length': '5', 'transfer-encoding': 'chunked' }), [400]],
    ['a negative length', () => head({ ...headers(), 'content-length': '-1' }), [400]],
    ['a length of a terabyte', () => head({ ...headers(), 'content-length': '1000000000000' }), [413]],
    ['a NUL byte', () => head({ ...headers(), name: 'a\0b' }), [400]],
    ['no HTTP at all', () => '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03', [400]],
    ['an HTTP/2 preface', () => 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', [400, 505]],
    ['an upgrade', () => `GET /ImageSynapse HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n`, [405]],
  ])('with %s are refused at once', async (_what, send, statuses) => {
    const answer = await raw(send());
    expect(statuses).toContain(answer.status);
    expect(answer.ms).toBeLessThan(2000);
  });

  it.each([
    ['empty', ''],
    ['no address', 'not an address'],
    ['too long', `${TEST_KEYS.validator.ss58}${TEST_KEYS.validator.ss58}`],
    ['of another network', '1' + TEST_KEYS.validator.ss58.slice(1)],
    ['with a wrong checksum', `${TEST_KEYS.validator.ss58.slice(0, -1)}z`],
  ])('with a hotkey that is %s are not verified', async (_what, hotkey) => {
    expect((await post({ ...headers(), bt_header_dendrite_hotkey: hotkey })).status).toBe(401);
  });

  it.each(['gzip', 'deflate', 'br', 'gzip, gzip', 'nonsense'])('with a body coded as %s are refused before it is read', async (coding) => {
    expect(await post({ ...headers(), 'content-encoding': coding }, gzipSync(body()))).toMatchObject({
      status: 415,
      text: expect.stringContaining('compressed body is not read') as string,
    });
  });
});

describe('the order of checks', () => {
  it('an unsigned request changes nothing: the genuine one with the same nonce is answered after it', async () => {
    const fields = headers();
    const { bt_header_dendrite_signature: signature, ...unsigned } = fields;
    for (const forged of [
      unsigned,
      { ...unsigned, bt_header_dendrite_signature: `0x${'5a'.repeat(63)}8a` },
      { ...unsigned, bt_header_dendrite_nonce: '99999999999999999999' },
    ])
      expect((await post(forged)).status).toBe(401);
    expect((await post({ ...unsigned, bt_header_dendrite_signature: signature as string })).status).toBe(200);
  });

  it('a correctly signed request without a permit uses nothing up and reads no body', async () => {
    const before = await metric('miner_nonces');
    const answer = await raw(head({ ...headers(stranger), 'content-length': '10000000' }));
    expect(answer).toMatchObject({ status: 403 });
    expect(await metric('miner_nonces')).toBe(before);
  });

  it('a body is asked for only when everything before it is in order', async () => {
    const expecting = (key?: Hotkey) =>
      head({ ...headers(key), 'content-length': String(Buffer.byteLength(body())), expect: '100-continue' });
    const refused = await raw(expecting(stranger));
    expect(refused.status).toBe(403);
    expect(refused.text).not.toContain('100 Continue');
    const socket = dial();
    const heard: string[] = [];
    socket.on('data', (piece: Buffer) => heard.push(piece.toString('latin1')));
    socket.write(expecting());
    await expect.poll(() => heard.join(''), { timeout: 5000 }).toContain('100 Continue');
    socket.write(body());
    await expect.poll(() => heard.join(''), { timeout: 5000 }).toContain('HTTP/1.1 200');
    socket.destroy();
  });
});

describe('a ping', () => {
  it('of a stranger who signs is answered as by the reference, at a rate, and leaves no trace', async () => {
    const before = await metric('miner_nonces');
    const answer = await post(headers(stranger, 'Synapse'), '{}', '/Synapse');
    expect(answer.status).toBe(200);
    const reply = JSON.parse(answer.text.slice(answer.text.indexOf('\r\n\r\n') + 4)) as Record<string, Record<string, unknown>>;
    expect(reply).toMatchObject({
      name: 'Synapse',
      axon: { status_code: 200, hotkey: t.hotkey.address },
      dendrite: { hotkey: stranger.address },
    });
    expect(answer.text).toContain(`"nonce":${last}`);
    expect(answer.text.toLowerCase()).toContain(`bt_header_dendrite_hotkey: ${stranger.address.toLowerCase()}`);
    expect(await metric('miner_nonces')).toBe(before);
    const many = await Promise.all(Array.from({ length: 60 }, () => post(headers(stranger, 'Synapse'), '{}', '/Synapse')));
    expect(many.filter((one) => one.status === 429).length).toBeGreaterThan(10);
  });

  it('has the fields of the recorded one of the reference, all of them', async () => {
    const recorded = JSON.parse(await readFile(path.join(import.meta.dirname, '..', 'fixtures', 'ping-9.12.2.json'), 'utf8')) as {
      headers: string[];
      body: Record<string, unknown>;
    };
    const answer = await post(headers(t.validator, 'Synapse'), '{}', '/Synapse');
    const reply = JSON.parse(answer.text.slice(answer.text.indexOf('\r\n\r\n') + 4)) as Record<string, object>;
    expect(Object.keys(reply)).toEqual(Object.keys(recorded.body));
    for (const part of ['axon', 'dendrite'])
      expect(Object.keys(reply[part] as object).sort()).toEqual(Object.keys(recorded.body[part] as object).sort());
    for (const name of recorded.headers) expect(answer.text.toLowerCase()).toContain(`\r\n${name}: `);
  });
});

describe('slow and broken clients', () => {
  it('that send a header a second at a time are cut off, and that start a body and stall are told 408', async () => {
    const slow = dial();
    slow.resume();
    slow.write('POST /ImageSynapse HTTP/1.1\r\n');
    const drip = setInterval(() => slow.write('x: y\r\n'), 500);
    const began = performance.now();
    const stalled = raw(head({ ...headers(), timeout: '1.0', 'content-length': '20000' }) + body().slice(0, 500));
    await new Promise((resolve) => slow.on('close', resolve));
    clearInterval(drip);
    expect(performance.now() - began).toBeLessThan(12_000);
    expect(await stalled).toMatchObject({ status: 408 });
  });

  it('that hang up in the middle of headers, body or answer do no harm', async () => {
    const before = await metric('miner_requests_total{outcome="answered"}');
    for (let i = 0; i < 30; i++) {
      const whole = head({ ...headers(), 'content-length': String(Buffer.byteLength(body())) }) + body();
      const socket = dial();
      await new Promise((resolve) => socket.on('connect', resolve));
      socket.write(whole.slice(0, Math.floor((whole.length * (i + 1)) / 30)));
      await sleep(5);
      if (i % 2 === 0) socket.destroy();
      else socket.resetAndDestroy();
    }
    expect((await ask(light)).status).toBe(200);
    expect(await metric('miner_requests_total{outcome="answered"}')).toBeGreaterThan(before);
    expect(await metric('miner_requests_total{outcome="failed"}')).toBe(0);
  });

  it('that want the connection closed are heard out first: a reset under the sender would cost it the refusal', async () => {
    const socket = dial();
    let text = '';
    socket.on('data', (piece: Buffer) => (text += piece.toString('latin1')));
    let closed = false;
    socket.once('close', () => (closed = true));
    socket.write(head({ connection: 'close', 'content-length': '1000' }) + 'A'.repeat(500));
    await expect.poll(() => text, { timeout: 10_000 }).toMatch(/^HTTP\/1\.1 401/);
    await sleep(200);
    expect(closed).toBe(false);
    socket.write('A'.repeat(500));
    await expect.poll(() => closed, { timeout: 10_000 }).toBe(true);
  });

  it('that hold every connection open are pushed out by genuine ones', async () => {
    const crowded = await startMiner({ maxConnections: 20 });
    const asker = connectDendrite({ hotkey: crowded.validator });
    const idle: net.Socket[] = [];
    try {
      await crowded.promote(1);
      await crowded.until('it is ready', () => crowded.miner.status().ready);
      const genuine = () => asker.ask({ url: crowded.miner.url, axonHotkey: crowded.hotkey.address, image: light });
      expect((await genuine()).status).toBe(200);
      for (let i = 0; i < 60; i++) {
        const socket = net.connect(Number(new URL(crowded.miner.url).port), '127.0.0.1');
        socket.on('error', () => undefined);
        socket.resume();
        idle.push(socket);
      }
      const open = (): number => idle.filter((socket) => socket.readyState === 'open').length;
      await expect.poll(() => idle.every((socket) => !socket.connecting) && open() <= 20, { timeout: 10_000 }).toBe(true);
      expect(await Promise.all(Array.from({ length: 5 }, genuine))).toMatchObject(Array.from({ length: 5 }, () => ({ status: 200 })));
    } finally {
      for (const socket of idle) socket.destroy();
      await asker.close();
      await crowded.end();
    }
  });

  it('of whom one asks too much are told 429, and the nonce is not used up', async () => {
    const limited = await startMiner({ rate: { perSecond: 1, burst: 3 } });
    const asker = connectDendrite({ hotkey: limited.validator });
    try {
      await limited.promote(1);
      await limited.until('it is ready', () => limited.miner.status().ready);
      const statuses: number[] = [];
      for (let i = 0; i < 6; i++)
        statuses.push((await asker.ask({ url: limited.miner.url, axonHotkey: limited.hotkey.address, image: light })).status);
      expect(statuses.slice(0, 3)).toEqual([200, 200, 200]);
      expect(statuses).toContain(429);
    } finally {
      await asker.close();
      await limited.end();
    }
  });
});

describe('a request that was accepted but not answered', () => {
  it('is still refused after the miner was started again', async () => {
    const other = await startMiner();
    try {
      await other.promote(1);
      await other.until('it is ready', () => other.miner.status().ready);
      const fields = signed(other.validator, other.hotkey.address, { uuid: 'restart' });
      const send = async (content: string) =>
        (
          await fetch(`${other.miner.url}/ImageSynapse`, {
            method: 'POST',
            headers: { ...fields, 'content-type': 'application/json' },
            body: content,
          })
        ).status;
      expect(await send('not JSON')).toBe(422);
      await other.restart();
      await other.until('it is ready', () => other.miner.status().ready);
      expect(await send(body())).toBe(401);
      expect((await readJournal(path.join(other.home, 'journal'))).flatMap((part) => part.records)).toEqual([]);
    } finally {
      await other.end();
    }
  });
});

describe('images', () => {
  const base = () => sharp({ create: { width: 64, height: 48, channels: 3, background: '#ccc' } });
  const kinds: [string, () => Promise<Buffer>][] = [
    ['a grey JPEG', () => base().grayscale().jpeg().toBuffer()],
    ['a CMYK JPEG', () => base().toColourspace('cmyk').jpeg().toBuffer()],
    ['a progressive JPEG', () => base().jpeg({ progressive: true }).toBuffer()],
    ['a PNG', () => base().png().toBuffer()],
    ['a 16-bit PNG', () => base().toColourspace('rgb16').png().toBuffer()],
    ['a palette PNG', () => base().png({ palette: true }).toBuffer()],
    ['a PNG with alpha', () => base().ensureAlpha(0.5).png().toBuffer()],
    ['a WebP', () => base().webp().toBuffer()],
    ['a lossless WebP', () => base().webp({ lossless: true }).toBuffer()],
    ['a WebP with alpha', () => base().ensureAlpha(0.5).webp().toBuffer()],
    ['a GIF', () => base().gif().toBuffer()],
    [
      'a moving GIF',
      async () =>
        sharp(Buffer.concat(Array.from({ length: 3 }, (_, i) => Buffer.alloc(64 * 48 * 3, 190 + 10 * i))), {
          raw: { width: 64, height: 144, channels: 3, pageHeight: 48 } as never,
        })
          .gif()
          .toBuffer(),
    ],
    ['a TIFF', () => base().tiff().toBuffer()],
  ];

  it.each(kinds)('%s is answered, and its size is read from its header', async (_what, make) => {
    const image = await make();
    expect(claimedSize(image)).toMatchObject({ width: 64, height: 48 });
    const answer = await ask(image);
    expect(answer).toMatchObject({ status: 200, error: null });
    expect(answer.prediction).toBeGreaterThan(0.5);
  });

  it.each([
    ['an AVIF', () => base().avif({ effort: 0 }).toBuffer()],
    ['an SVG', async () => Buffer.from('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')],
    ['a PDF', async () => Buffer.from('%PDF-1.4\n%%EOF')],
    ['an image cut off', async () => light.subarray(0, 300)],
    ['a JPEG with a hole', async () => Buffer.concat([light.subarray(0, 200), Buffer.alloc(400), light.subarray(600)])],
    ['a frame of no size', async () => resized(light, 0, 0)],
  ])('%s is refused with an error, not answered with a guess', async (_what, make) => {
    const answer = await ask(await make());
    expect(answer).toMatchObject({ status: 400, prediction: null });
  });

  /** A JPEG whose frame header claims another size. */
  function resized(jpeg: Buffer, width: number, height: number): Buffer {
    const copy = Buffer.from(jpeg);
    const at = copy.indexOf(Buffer.from([0xff, 0xc0]));
    copy.writeUInt16BE(height, at + 5);
    copy.writeUInt16BE(width, at + 7);
    return copy;
  }
  async function pngClaiming(width: number, height: number): Promise<Buffer> {
    const png = Buffer.from(await base().png().toBuffer());
    png.writeUInt32BE(width, 16);
    png.writeUInt32BE(height, 20);
    return png;
  }

  it.each([
    ['a JPEG of 65500 x 65500', async () => resized(light, 65_500, 65_500)],
    ['a PNG of 2 billion a side', async () => pngClaiming(2 ** 31 - 1, 2 ** 31 - 1)],
    ['a PNG of 1 x 60 million', async () => pngClaiming(1, 60_000_000)],
  ])('%s is refused by its header at once, without memory for it', async (_what, make) => {
    const image = await make();
    const before = process.memoryUsage().rss;
    const answer = await ask(image);
    expect(answer).toMatchObject({ status: 413, prediction: null });
    expect(answer.latencyMs).toBeLessThan(1000);
    expect(process.memoryUsage().rss - before).toBeLessThan(100_000_000);
  });

  it('in bodies made of single bytes in chunks cost no more memory than their bytes', async () => {
    const chunked = Buffer.from(
      [...Buffer.from(body())].map((byte) => `1\r\n${String.fromCharCode(byte)}\r\n`).join('') + '0\r\n\r\n',
      'latin1',
    );
    const answer = await raw(Buffer.concat([Buffer.from(head({ ...headers(), 'transfer-encoding': 'chunked' })), chunked]));
    expect(answer.status).toBe(200);
  });
});

describe('the axon port', () => {
  it.each(['/metrics', '/healthz', '/readyz', '/swapz', '/'])('knows nothing of %s', async (route) => {
    const answer = await raw(`GET ${route} HTTP/1.1\r\nhost: x\r\n\r\n`);
    expect(answer.status).toBe(404);
    expect(answer.text).not.toContain(t.miner.status().serving!.digest);
  });
});

async function metric(name: string): Promise<number> {
  const text = await (await fetch(`${t.miner.controlUrl}/metrics`)).text();
  const line = text.split('\n').find((one) => one.startsWith(`${name} `));
  return line === undefined ? 0 : Number(line.slice(name.length + 1));
}

it('journals a hash of the uuid, not the uuid', async () => {
  const image = await greyJpeg(190, 4321);
  await ask(image);
  const digest = createHash('sha256').update(image).digest('hex');
  const find = async () =>
    (await readJournal(path.join(t.home, 'journal'))).flatMap((part) => part.records).find((one) => one.image === digest);
  await expect.poll(find, { timeout: 10_000 }).toMatchObject({ uuidHash: createHash('sha256').update(dendrite.uuid).digest('hex') });
});
