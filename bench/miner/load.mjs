// The client of the benchmark, a process of its own: requests signed beforehand, plain sockets, the least work while it
// measures. The same for our axon and the reference. Reads one JSON job from standard input, prints one JSON line.
// Closed loop: `connections` at once, each asks again when it was answered. Open loop: `arrivals` in ms, whatever the
// server does. Timers are coarse: a request goes out up to a millisecond or two after it was due, and when it did is told in
// `sentAt`, which is what an ideal queue is to be fed with; how late it was is told as well.
import { readdirSync, readFileSync } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { newKey, summary } from './common.mjs';

const job = JSON.parse(readFileSync(0, 'utf8'));
const { port, axon, seed, imagesDir, timeoutS = 9 } = job;
const key = await newKey(Buffer.from(seed, 'hex'));
const HASH = 'a7ffc6f8bf1ed76651c14756a061d662f580ff4de43b49fa82d80a4b80f8434a';
const bodies = readdirSync(imagesDir)
  .sort()
  .map((name) => {
    const image = readFileSync(path.join(imagesDir, name)).toString('base64');
    return Buffer.from(
      JSON.stringify({
        name: 'ImageSynapse',
        timeout: timeoutS,
        total_size: 0,
        header_size: 0,
        computed_body_hash: '',
        testnet_label: -1,
        image,
        prediction: -1.0,
      }),
    );
  });

/** A whole request as bytes. The reference wants rising nonces of one uuid, so each connection has a uuid of its own. */
function make(i, uuid, nonce) {
  const body = bodies[i % bodies.length];
  const signature = Buffer.from(key.sign(`${nonce}.${key.address}.${axon}.${uuid}.${HASH}`)).toString('hex');
  const head = [
    'POST /ImageSynapse HTTP/1.1',
    `Host: 127.0.0.1:${port}`,
    'name: ImageSynapse',
    `timeout: ${timeoutS.toFixed(1)}`,
    'bt_header_axon_ip: 127.0.0.1',
    `bt_header_axon_port: ${port}`,
    `bt_header_axon_hotkey: ${axon}`,
    'bt_header_dendrite_ip: 203.0.113.7',
    'bt_header_dendrite_version: 9012002',
    `bt_header_dendrite_nonce: ${nonce}`,
    `bt_header_dendrite_uuid: ${uuid}`,
    `bt_header_dendrite_hotkey: ${key.address}`,
    `bt_header_dendrite_signature: 0x${signature}`,
    'header_size: 464',
    'total_size: 4019',
    `computed_body_hash: ${HASH}`,
    'Accept: */*',
    'Accept-Encoding: gzip, deflate',
    'User-Agent: Python/3.11 aiohttp/3.13.2',
    `Content-Length: ${body.length}`,
    'Content-Type: application/json',
    '',
    '',
  ].join('\r\n');
  return Buffer.concat([Buffer.from(head), body]);
}

const statuses = {};
const failures = {};
let counting = false;
let lost = 0;
class Connection {
  constructor(uuid) {
    this.uuid = uuid;
    this.nonce = 0n;
    this.answer = null;
    this.text = '';
  }
  async open() {
    this.socket = net.connect({ host: '127.0.0.1', port, noDelay: true });
    await new Promise((resolve, reject) => {
      this.socket.once('connect', resolve);
      this.socket.once('error', reject);
    });
    this.socket.setEncoding('latin1');
    this.socket.on('data', (piece) => this.take(piece));
    this.socket.on('error', () => undefined);
    this.socket.on('close', () => {
      this.closed = true;
      if (this.answer !== null) this.done(0, '');
    });
    return this;
  }
  take(piece) {
    // What nobody asked for is the server's farewell to an idle connection.
    if (this.answer === null) {
      this.closed = true;
      return;
    }
    this.text += piece;
    const end = this.text.indexOf('\r\n\r\n');
    if (end < 0) return;
    const head = this.text.slice(0, end).toLowerCase();
    const length = Number(/content-length: (\d+)/.exec(head)?.[1] ?? Number.NaN);
    if (Number.isNaN(length)) throw new Error(`an answer without content-length: ${head}`);
    if (this.text.length < end + 4 + length) return;
    const body = this.text.slice(end + 4, end + 4 + length);
    this.text = '';
    this.done(Number(head.slice(9, 12)), body);
  }
  done(status, body) {
    const { resolve } = this.answer;
    this.answer = null;
    if (counting) {
      statuses[status] = (statuses[status] ?? 0) + 1;
      if (status !== 200 || !/"prediction":\s*[01](\.\d+)?(e-\d+)?[,}]/.test(body)) {
        lost += 1;
        const why = `${status} ${body.slice(0, 120)}`;
        failures[why] = (failures[why] ?? 0) + 1;
      }
    }
    resolve(status);
  }
  /** @returns status, 0 when the connection broke */
  send(bytes) {
    return new Promise((resolve) => {
      this.answer = { resolve };
      this.socket.write(bytes);
    });
  }
}
let serial = 0;
const uuidOf = () =>
  `00000000-0000-4000-8000-${Date.now().toString(16).slice(-6)}${(process.pid % 4096).toString(16).padStart(3, '0')}${(serial++ % 4096).toString(16).padStart(3, '0')}`;
const now = () => BigInt(Date.now()) * 1_000_000n;

const latencies = [];
let result;
if (job.arrivals === undefined) {
  const { connections, seconds, warmSeconds = 1, most } = job;
  const all = await Promise.all(Array.from({ length: connections }, () => new Connection(uuidOf()).open()));
  // Signed beforehand; a nonce may lie 5 s ahead and 13 s back. What is not enough is signed when it is needed.
  const each = Math.ceil(most / connections);
  let late = 0;
  const ahead = now() + 2_000_000_000n;
  const ready = all.map((one, c) =>
    Array.from({ length: each }, (_, i) => make(c * each + i, one.uuid, (one.nonce = ahead + BigInt(i) * 1000n))).reverse(),
  );
  const began = performance.now();
  let measured = began + warmSeconds * 1000;
  const until = measured + seconds * 1000;
  await Promise.all([
    (async () => {
      await sleep(warmSeconds * 1000);
      counting = true;
      measured = performance.now();
      process.stdout.write(`${JSON.stringify({ measuring: true })}\n`);
      await sleep(until - performance.now());
      counting = false;
      process.stdout.write(`${JSON.stringify({ measured: true })}\n`);
    })(),
    ...all.map(async (one, c) => {
      for (let i = 0; performance.now() < until; i++) {
        let bytes = ready[c].pop();
        if (bytes === undefined) {
          late += 1;
          const fresh = now();
          one.nonce = fresh > one.nonce ? fresh : one.nonce + 1n;
          bytes = make(i, one.uuid, one.nonce);
        }
        const sent = performance.now();
        const status = await one.send(bytes);
        if (counting) latencies.push(performance.now() - sent);
        if (status === 0) return;
      }
    }),
  ]);
  const s = (until - measured) / 1000;
  result = { requests: latencies.length, seconds: s, perS: latencies.length / s, signedLate: late };
  for (const one of all) one.socket.destroy();
} else {
  const { arrivals } = job;
  const idle = await Promise.all(Array.from({ length: 4 }, () => new Connection().open()));
  // Signed beforehand, each for the moment when it is due: the client shares the machine with the server that it measures.
  const start = now() + BigInt(arrivals.length) * 400_000n;
  const ready = arrivals.map((at, i) => make(i, uuidOf(), start + BigInt(Math.round(at * 1e6))));
  counting = true;
  const under = new Set();
  const sentAt = [];
  const lateMs = [];
  await sleep(Number(start - now()) / 1e6);
  process.stdout.write(`${JSON.stringify({ measuring: true })}\n`);
  const began = performance.now();
  const cpu = process.cpuUsage();
  for (const [i, at] of arrivals.entries()) {
    const wait = began + at - performance.now();
    if (wait > 0) await sleep(wait);
    // As the real client: a connection is opened when one is needed, and kept.
    let one = idle.pop();
    while (one?.closed === true) one = idle.pop();
    one ??= await new Connection().open();
    const sent = performance.now();
    sentAt.push(sent - began);
    lateMs.push(sent - began - at);
    const work = one
      .send(ready[i])
      .then(() => {
        latencies[i] = performance.now() - sent;
        if (one.closed !== true) idle.push(one);
      })
      .finally(() => under.delete(work));
    under.add(work);
  }
  await Promise.all(under);
  counting = false;
  process.stdout.write(`${JSON.stringify({ measured: true })}\n`);
  const used = process.cpuUsage(cpu);
  result = {
    requests: latencies.length,
    seconds: (performance.now() - began) / 1000,
    sentLateMs: summary(lateMs),
    sentAt: job.keep ? sentAt : undefined,
    clientCpuS: (used.user + used.system) / 1e6,
  };
  for (const one of idle) one.socket.destroy();
}
process.stdout.write(
  `${JSON.stringify({ ...result, statuses, lost, failures, overDeadline: latencies.filter((ms) => ms > timeoutS * 1000).length, latencyMs: summary(latencies), latencies: job.keep ? latencies : undefined })}\n`,
  // a pipe takes no more than 64 KiB at once: what is not read yet would be lost
  () => process.exit(0),
);
