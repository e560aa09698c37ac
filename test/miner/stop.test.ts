/**
 * What becomes of requests when the axon stops: none whose first byte came before is lost, wherever it was then. On loopback a
 * byte that was written is with the kernel of the other side, so a test knows what came before the stop and what after.
 */
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { seededRng } from '../../src/domain/rng.js';
import { openAxon, type Axon } from '../../src/miner/axon.js';
import { Verifier } from '../../src/miner/verify.js';
import { synapseBody } from '../../src/platform/bittensor/dendrite.js';
import { hotkeyFromMnemonic, type Hotkey } from '../../src/platform/bittensor/keys.js';
import { protocolReady } from '../../src/platform/bittensor/protocol.js';
import { greyJpeg } from '../support/images.js';
import { quiet } from '../support/miner.js';
import { signed } from '../support/requests.js';
import { TEST_KEYS } from './vectors.js';

const GRACE_MS = 5000;
let miner: Hotkey;
let validator: Hotkey;
let body: string;
beforeAll(async () => {
  await protocolReady();
  miner = await hotkeyFromMnemonic(TEST_KEYS.miner.mnemonic);
  validator = await hotkeyFromMnemonic(TEST_KEYS.validator.mnemonic);
  body = synapseBody('ImageSynapse', await greyJpeg(200), 9);
});

/** The axon with a model that takes as long as `answerMs` says. */
function open(answerMs: () => number): Promise<Axon> {
  return openAxon('127.0.0.1', 0, {
    verifier: new Verifier(miner.address, () => BigInt(Date.now()) * 1_000_000n),
    permit: (hotkey) => (hotkey === validator.address ? null : 'Unrecognized hotkey'),
    rate: () => true,
    unavailable: () => null,
    answer: async () => {
      await sleep(answerMs());
      return { prediction: 0.5 };
    },
    answered: () => undefined,
    stage: () => undefined,
    clockSeen: () => undefined,
    ended: () => undefined,
    logger: quiet,
  });
}

let nonce = 0n;
/** A whole request, as it goes over the wire. */
function request(): Buffer {
  const now = BigInt(Date.now()) * 1_000_000n;
  nonce = now > nonce ? now : nonce + 1n;
  const headers = signed(validator, miner.address, { nonce, uuid: 'stop' });
  const lines = Object.entries({ host: 'x', 'content-type': 'application/json', 'content-length': String(body.length), ...headers });
  return Buffer.from(`POST /ImageSynapse HTTP/1.1\r\n${lines.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n${body}`);
}

/** A client that does with its connection what a test says. */
class Client {
  readonly closed: Promise<void>;
  private readonly socket: net.Socket;
  private text = '';
  private changed: () => void = () => undefined;
  isClosed = false;
  /** the answers so far: status and whether the connection ends with it */
  answers: { status: number; close: boolean }[] = [];

  constructor(port: number, connected: () => void = () => undefined) {
    this.socket = net.connect({ host: '127.0.0.1', port, noDelay: true }, connected);
    this.socket.on('data', (piece) => this.take(piece.toString('latin1')));
    this.socket.on('error', () => undefined);
    this.closed = new Promise((resolve) =>
      this.socket.once('close', () => {
        this.isClosed = true;
        this.changed();
        resolve();
      }),
    );
  }

  connected(): Promise<void> {
    return this.socket.connecting
      ? new Promise((resolve) => this.socket.once('connect', () => resolve()).once('close', () => resolve()))
      : Promise.resolve();
  }
  write(bytes: Buffer): void {
    if (!this.socket.destroyed) this.socket.write(bytes);
  }
  /** Resolves when there are so many answers, or the connection was closed. */
  async answered(count: number): Promise<void> {
    while (this.answers.length < count && !this.isClosed) await new Promise<void>((resolve) => (this.changed = resolve));
  }
  end(): void {
    this.socket.destroy();
  }

  private take(piece: string): void {
    this.text += piece;
    for (;;) {
      const head = this.text.indexOf('\r\n\r\n');
      const length = Number(/content-length: (\d+)/i.exec(this.text)?.[1]);
      if (head < 0 || this.text.length < head + 4 + length) return;
      const answer = this.text.slice(0, head);
      this.answers.push({ status: Number(answer.slice(9, 12)), close: /\r\nconnection: close/i.test(answer) });
      this.text = this.text.slice(head + 4 + length);
      this.changed();
    }
  }
}

describe('an axon that stops', () => {
  it('answers what waits in the queue of connections that are not accepted yet', async () => {
    const axon = await open(() => 5);
    const stopped: Promise<void>[] = [];
    let sent = 0;
    // All connected and sent at once: the axon has had no moment yet to accept more than a few of them.
    const clients = Array.from({ length: 24 }, () => {
      const client: Client = new Client(axon.port, () => {
        client.write(request());
        sent += 1;
        if (sent === 24) stopped.push(axon.stop(GRACE_MS));
      });
      return client;
    });
    await Promise.all(clients.map((client) => client.closed));
    await Promise.all(stopped);
    expect(clients.map(({ answers }) => answers)).toEqual(clients.map(() => [{ status: 200, close: true }]));
  });

  it('answers what comes in pieces or late on an open connection, with "Connection: close", and waits for nobody who is silent', async () => {
    const axon = await open(() => 5);
    const [silent, kept, halfHead, halfBody] = Array.from({ length: 4 }, () => new Client(axon.port)) as [Client, Client, Client, Client];
    kept.write(request());
    await kept.answered(1);
    expect(kept.answers[0]).toEqual({ status: 200, close: false });
    const [one, two] = [request(), request()];
    halfHead.write(one.subarray(0, 300));
    halfBody.write(two.subarray(0, two.length - 300));
    // Longer than the test may take: an axon that waited for the silent one would not be done.
    const stopped = axon.stop(600_000);
    kept.write(request());
    await kept.answered(2);
    await sleep(600);
    halfHead.write(one.subarray(300));
    halfBody.write(two.subarray(two.length - 300));
    await stopped;
    await Promise.all([silent, kept, halfHead, halfBody].map((client) => client.closed));
    const last = { status: 200, close: true };
    expect([silent.answers, kept.answers.slice(1), halfHead.answers, halfBody.answers]).toEqual([[], [last], [last], [last]]);
  });

  it('hears out the sender of a request that it refuses, so that the refusal arrives', async () => {
    const axon = await open(() => 5);
    const client = new Client(axon.port);
    const unsigned = Buffer.from(request().toString('latin1').replace('bt_header_dendrite_signature', 'x-none'), 'latin1');
    client.write(unsigned.subarray(0, unsigned.length - 100));
    const stopped = axon.stop(600_000);
    await client.answered(1);
    expect(client.answers).toMatchObject([{ status: 401 }]);
    await sleep(300);
    expect(client.isClosed).toBe(false);
    client.write(unsigned.subarray(unsigned.length - 100));
    await stopped;
    await client.closed;
  });

  it('cuts what is not done when the time is up, and answers in time what it can', async () => {
    const axon = await open(() => 50);
    const [slow, quick] = [new Client(axon.port), new Client(axon.port)];
    slow.write(request().subarray(0, 200));
    quick.write(request());
    await Promise.all([slow.connected(), quick.connected()]);
    await axon.stop(2000);
    await Promise.all([slow.closed, quick.closed]);
    expect([slow.answers, quick.answers]).toEqual([[], [{ status: 200, close: true }]]);
  });

  it('loses none of the requests that had begun, at whatever moment of them it stops', async () => {
    const outcomes: string[] = [];
    const rounds = Number(process.env.FLYWHEEL_STOP_ROUNDS ?? 12);
    for (let round = 0; round < rounds; round++) {
      const rng = seededRng(`stop ${round}`);
      const axon = await open(() => 10 + 80 * rng.next());
      let stopping = false;
      const clients = Array.from({ length: 16 }, async (): Promise<void> => {
        const earlier = rng.next() < 0.5 ? 1 : 0;
        const begins = 160 * rng.next();
        const whole = request();
        // In headers as often as in the body.
        const cuts = Array.from({ length: Math.floor(5 * rng.next()) }, () =>
          Math.floor((rng.next() < 0.5 ? 1500 : whole.length) * rng.next()),
        );
        const ends = [...cuts.sort((a, b) => a - b), whole.length];
        const gaps = ends.map(() => 60 * rng.next());
        if (earlier === 0) await sleep(begins);
        if (stopping) return;
        const client = new Client(axon.port);
        await client.connected();
        if (earlier === 1) {
          client.write(request());
          await client.answered(1);
          await sleep(begins);
        }
        const begun = !stopping && !client.isClosed;
        for (const [i, end] of ends.entries()) {
          client.write(whole.subarray(ends[i - 1] ?? 0, end));
          if (end < whole.length) await sleep(gaps[i]);
        }
        await client.answered(earlier + 1);
        client.end();
        const said = client.answers[earlier]?.status;
        // What began after the stop is answered, or finds the connection closed: never half an answer.
        outcomes.push(begun ? `begun ${said ?? 'lost'}` : `late ${said === 200 || said === undefined ? 'well' : said}`);
      });
      await sleep(30 + 120 * rng.next());
      stopping = true;
      await Promise.all([axon.stop(GRACE_MS), ...clients]);
    }
    expect(new Set(outcomes)).toEqual(new Set(['begun 200', 'late well']));
    expect(outcomes.filter((outcome) => outcome === 'begun 200').length).toBeGreaterThan(5 * rounds);
  });
});
