/** A dendrite: sends signed synapses as bittensor's own does, over kept connections, and maps failures as it does. */
import { randomUUID } from 'node:crypto';
import { Agent, request } from 'undici';
import type { Hotkey } from './keys.js';
import { DEFAULT_TIMEOUT_S, DENDRITE_VERSION, EMPTY_BODY_HASH, HEADERS, signedMessage } from './protocol.js';

export interface DendriteOptions {
  hotkey: Hotkey;
  /** process-lifetime id of this dendrite; default: a new one */
  uuid?: string;
  /** nanoseconds since the epoch; default: the machine's clock. Nonces rise strictly whatever it says */
  clock?: () => bigint;
  /** the validator's own external IP, self-reported and unsigned */
  externalIp?: string;
  /** connections to one axon at most (the reference: 100) */
  connections?: number;
}

export interface Question {
  /** `http://host:port` of the axon */
  url: string;
  /** SS58 address the axon must have: part of what is signed */
  axonHotkey: string;
  /** encoded image (JPEG, as validators send it); absent for the ping `Synapse` */
  image?: Uint8Array;
  /** default ImageSynapse with an image, Synapse without */
  synapse?: 'ImageSynapse' | 'ExtendedImageSynapse' | 'Synapse';
  /** total time for connect, send, wait and read, s; default 9 */
  timeoutSeconds?: number;
  signal?: AbortSignal;
}

export interface Answer {
  /** as the axon sent it, not clamped; null when there is none (a real validator then keeps -1) */
  prediction: number | null;
  /** what the dendrite would report: the axon's code, or 408 time-out, 422 not JSON, 503 no connection, 400 cut short */
  status: number;
  /** request begun to answer read, ms */
  latencyMs: number;
  /** null when status is 200 */
  error: string | null;
}

export interface Dendrite {
  readonly uuid: string;
  /** Never throws on what the network or the axon does; one attempt, no retry, as the reference. */
  ask(question: Question): Promise<Answer>;
  close(): Promise<void>;
}

/** Bytes of an answer that are read at most. */
const MAX_ANSWER_BYTES = 1_000_000;
/** Idle connections are dropped after this long, as aiohttp does. */
const IDLE_MS = 15_000;

/** Headers of one signed request, exactly those a real dendrite sends; for tests that forge one of them, too. */
export function signedHeaders(options: {
  hotkey: Hotkey;
  axonHotkey: string;
  nonce: bigint;
  uuid: string;
  synapse: string;
  timeoutSeconds: number;
  axonIp: string;
  axonPort: number;
  externalIp: string;
}): Record<string, string> {
  const message = signedMessage({
    nonce: options.nonce,
    dendriteHotkey: options.hotkey.address,
    axonHotkey: options.axonHotkey,
    uuid: options.uuid,
    bodyHash: EMPTY_BODY_HASH,
  });
  return {
    [HEADERS.name]: options.synapse,
    [HEADERS.timeout]: pythonFloat(options.timeoutSeconds),
    [HEADERS.axonIp]: options.axonIp,
    [HEADERS.axonPort]: String(options.axonPort),
    [HEADERS.axonHotkey]: options.axonHotkey,
    [HEADERS.dendriteIp]: options.externalIp,
    [HEADERS.dendriteVersion]: String(DENDRITE_VERSION),
    [HEADERS.nonce]: String(options.nonce),
    [HEADERS.uuid]: options.uuid,
    [HEADERS.hotkey]: options.hotkey.address,
    [HEADERS.signature]: `0x${Buffer.from(options.hotkey.sign(message)).toString('hex')}`,
    [HEADERS.headerSize]: '464',
    [HEADERS.totalSize]: '4019',
    [HEADERS.bodyHash]: EMPTY_BODY_HASH,
  };
}

/** The JSON body of a synapse, as the model dump of the reference; the axon needs `image` alone. */
export function synapseBody(synapse: string, image: Uint8Array | undefined, timeoutSeconds: number): string {
  const body: Record<string, unknown> = { name: synapse, timeout: timeoutSeconds, total_size: 0, header_size: 0, computed_body_hash: '' };
  if (image !== undefined) {
    body.testnet_label = -1;
    body.image = Buffer.from(image).toString('base64');
    body.prediction = -1.0;
    if (synapse === 'ExtendedImageSynapse') body.model_url = '';
  }
  return JSON.stringify(body);
}

/** Opens a dendrite with a connection pool of its own; `close` it. */
export function connectDendrite(options: DendriteOptions): Dendrite {
  const agent = new Agent({
    connections: options.connections ?? 100,
    keepAliveTimeout: IDLE_MS,
    keepAliveMaxTimeout: IDLE_MS,
    pipelining: 1,
  });
  const uuid = options.uuid ?? randomUUID();
  const clock = options.clock ?? systemNanoseconds();
  let last = 0n;
  const nonce = (): bigint => {
    const now = clock();
    last = now > last ? now : last + 1n;
    return last;
  };

  async function ask(question: Question): Promise<Answer> {
    const timeoutSeconds = question.timeoutSeconds ?? DEFAULT_TIMEOUT_S;
    const synapse = question.synapse ?? (question.image === undefined ? 'Synapse' : 'ImageSynapse');
    const began = performance.now();
    const done = (status: number, error: string | null, prediction: number | null = null): Answer => ({
      prediction,
      status,
      latencyMs: performance.now() - began,
      error,
    });
    const timeout = AbortSignal.timeout(Math.max(1, Math.round(timeoutSeconds * 1000)));
    const signal = question.signal ? AbortSignal.any([timeout, question.signal]) : timeout;
    try {
      const target = new URL(question.url);
      const headers = signedHeaders({
        hotkey: options.hotkey,
        axonHotkey: question.axonHotkey,
        nonce: nonce(),
        uuid,
        synapse,
        timeoutSeconds,
        axonIp: target.hostname,
        axonPort: Number(target.port || 80),
        externalIp: options.externalIp ?? '127.0.0.1',
      });
      const response = await request(`${target.origin}/${synapse}`, {
        method: 'POST',
        dispatcher: agent,
        signal,
        headersTimeout: 0,
        bodyTimeout: 0,
        headers: { ...headers, 'content-type': 'application/json', accept: '*/*' },
        body: synapseBody(synapse, question.image, timeoutSeconds),
      });
      const text = await readBounded(response.body);
      let body: unknown;
      try {
        if (!String(response.headers['content-type'] ?? '').startsWith('application/json'))
          throw new SyntaxError('content type is not application/json');
        body = JSON.parse(text);
      } catch (error) {
        return done(422, `the axon answered HTTP ${response.statusCode} with something that is not JSON: ${(error as Error).message}`);
      }
      const fields = typeof body === 'object' && body !== null ? (body as Record<string, unknown>) : {};
      const claimed = Number(response.headers[HEADERS.axonStatusCode] ?? Number.NaN);
      const status = Number.isInteger(claimed) ? claimed : response.statusCode;
      if (response.statusCode !== 200 || status !== 200) {
        const message = response.headers[HEADERS.axonStatusMessage] ?? fields.message ?? fields.detail;
        return done(status, typeof message === 'string' ? message : `HTTP ${response.statusCode}`);
      }
      if (question.image === undefined) return done(200, null);
      const prediction = typeof fields.prediction === 'number' ? fields.prediction : null;
      return prediction === null ? done(422, 'the answer holds no numeric prediction') : done(200, null, prediction);
    } catch (error) {
      if (timeout.aborted) return done(408, `no answer within ${timeoutSeconds} s`);
      if (question.signal?.aborted) return done(499, 'the caller gave up');
      const code = (error as NodeJS.ErrnoException).code ?? '';
      // The reference maps a broken body to 400 and every failed or closed connection to 503.
      return done(
        code === 'UND_ERR_RES_CONTENT_LENGTH_MISMATCH' ? 400 : 503,
        `${code === '' ? '' : `${code}: `}${(error as Error).message}`,
      );
    }
  }

  return { uuid, ask, close: () => agent.close() };
}

async function readBounded(body: AsyncIterable<Uint8Array>): Promise<string> {
  const parts: Uint8Array[] = [];
  let bytes = 0;
  for await (const part of body) {
    bytes += part.length;
    if (bytes > MAX_ANSWER_BYTES) throw new Error(`the answer is longer than ${MAX_ANSWER_BYTES} bytes`);
    parts.push(part);
  }
  return Buffer.concat(parts).toString('utf8');
}

/** Wall-clock nanoseconds: the epoch from the system clock, the steps between from the monotonic one. */
function systemNanoseconds(): () => bigint {
  return () => BigInt(Date.now()) * 1_000_000n + (process.hrtime.bigint() % 1_000_000n);
}

/** Python's `str(float)` for the numbers that occur: 9 is "9.0". */
function pythonFloat(value: number): string {
  return Number.isInteger(value) ? `${value}.0` : String(value);
}
