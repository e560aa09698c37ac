/**
 * The axon: the HTTP front that validators speak to. Checks in this order: route, declared size, headers and signature,
 * nonce, permit, a model that serves, room in the queue; only then is a byte of the body kept. Never blocks: images are
 * decoded and answered in other processes. Says nothing of models or members.
 */
import http, { type IncomingMessage, type ServerResponse } from 'node:http';
import net, { type AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { axonHeaders, headerText, IMAGE_ROUTES, PING_ROUTE } from '../platform/bittensor/protocol.js';
import { DeadlineError, OverloadedError } from '../platform/inference/pool.js';
import { DEFAULT_IMAGE_LIMITS, ImageError, inspectImage, type ImageLimits } from '../platform/inference/preprocess.js';
import type { Outcome } from './metrics.js';
import { NonceTableFullError, NotVerifiedError, type VerifiedRequest, type Verifier } from './verify.js';

/** A genuine body holds an image of a few hundred kilobytes at most. */
export const MAX_BODY_BYTES = 16 * 1024 * 1024;
/** Idle connections: longer than the 15 s for which the client keeps one, or it writes into a closing one. */
const KEEP_ALIVE_MS = 65_000;
const HEADERS_MS = 10_000;
const REQUEST_MS = 20_000;
/** What a refused request still sends is read and thrown away for so long, and so much, so that the refusal arrives. */
const LINGER_MS = 3000;
const LINGER_BYTES = 64 * 1024 * 1024;
/** A stopping axon waits until no request came for so long: those already sent are answered. */
const QUIET_MS = 100;
/** Share of the caller's time-out that an answer may take: the rest is the network's. */
const DEADLINE_SHARE = 0.9;

export interface AxonAnswer {
  prediction: number;
}

export interface AxonOptions {
  verifier: Verifier;
  /** null: may ask; else the reason of the refusal */
  permit: (hotkey: string) => string | null;
  /** why no answer can be given now (503), or null. Asked before the body is read */
  unavailable: (hotkey: string, deadlineMs: number) => string | null;
  /** @throws OverloadedError, DeadlineError, ImageError */
  answer: (image: Buffer, deadlineMs: number, request: VerifiedRequest) => Promise<AxonAnswer>;
  /** after the answer was handed to the network; must not throw */
  answered: (request: VerifiedRequest, image: Buffer, answer: AxonAnswer, latencyMs: number) => void;
  /** every request, however it ended */
  ended: (outcome: Outcome, latencyMs: number) => void;
  logger: { warn(fields: object, message: string): void; debug(fields: object, message: string): void };
  limits?: ImageLimits;
}

/** A refusal: HTTP status, the text for the other side, and how it is counted. */
class Refusal extends Error {
  constructor(
    readonly status: number,
    readonly outcome: Outcome,
    message: string,
  ) {
    super(message);
  }
}

export interface Axon {
  readonly port: number;
  /** Takes no new request, lets those under way end, closes all connections. */
  stop(graceMs: number): Promise<void>;
}

/**
 * Opens the port.
 * @param port 0: any free one
 * @throws the system's error, with its code (EADDRINUSE, EACCES)
 */
export async function openAxon(host: string, port: number, options: AxonOptions): Promise<Axon> {
  const under = new Set<Promise<void>>();
  let stopping = false;
  let lastRequest = 0;
  const server = http.createServer(
    {
      keepAliveTimeout: KEEP_ALIVE_MS,
      headersTimeout: HEADERS_MS,
      requestTimeout: REQUEST_MS,
      connectionsCheckingInterval: 1000,
      noDelay: true,
    },
    (request, response) => {
      lastRequest = performance.now();
      if (stopping) response.setHeader('connection', 'close');
      const work = handle(request, response, options).finally(() => under.delete(work));
      under.add(work);
    },
  );
  server.maxConnections = 2000;
  server.on('clientError', (error: NodeJS.ErrnoException, socket) => {
    if (error.code === 'ECONNRESET' || !socket.writable) {
      socket.destroy();
      return;
    }
    const status = error.code === 'HPE_HEADER_OVERFLOW' ? 431 : error.code === 'ERR_HTTP_REQUEST_TIMEOUT' ? 408 : 400;
    const body = JSON.stringify({ message: `The request could not be read: ${headerText(error.code ?? error.message)}` });
    socket.end(
      `HTTP/1.1 ${status} ${http.STATUS_CODES[status] ?? ''}\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
    );
  });
  await listen(server, host, port);
  return {
    port: (server.address() as AddressInfo).port,
    async stop(graceMs) {
      stopping = true;
      const until = performance.now() + graceMs;
      // net's own close: http's would also cut connections whose request is still in the kernel's buffer.
      const closed = new Promise<void>((resolve) => net.Server.prototype.close.call(server, () => resolve()));
      do {
        await sleep(Math.min(QUIET_MS, graceMs));
      } while ((under.size > 0 || performance.now() - lastRequest < QUIET_MS) && performance.now() < until);
      server.closeIdleConnections();
      // What is still open now holds a request that did not end in time, or never sent a whole one.
      setTimeout(() => server.closeAllConnections(), 100).unref();
      await closed;
      // Ends the checks of connections too; there are none left to close.
      server.close();
    },
  };
}

/** @throws the system's error, with its code */
export function listen(server: http.Server, host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen({ host, port, exclusive: true }, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

async function handle(request: IncomingMessage, response: ServerResponse, options: AxonOptions): Promise<void> {
  const began = performance.now();
  const elapsed = (): number => performance.now() - began;
  // A caller that hangs up; told by the response's 'close'.
  request.on('error', () => undefined);
  response.on('error', () => undefined);
  try {
    const route = (request.url ?? '').split('?', 1)[0] ?? '';
    const isPing = route === PING_ROUTE;
    if (!isPing && !(IMAGE_ROUTES as readonly string[]).includes(route))
      throw new Refusal(404, 'not-found', 'Unknown synapse. This axon answers ImageSynapse.');
    if (request.method !== 'POST') {
      response.setHeader('allow', 'POST');
      throw new Refusal(405, 'not-found', 'Only POST is answered.');
    }
    const declared = request.headers['content-length'];
    if (declared !== undefined && Number(declared) > MAX_BODY_BYTES) throw tooLong();
    const verified = options.verifier.verify(request.headers);
    const refusal = options.permit(verified.hotkey);
    if (refusal !== null) throw new Refusal(403, 'forbidden', `Forbidden. Key is blacklisted: ${refusal}.`);
    options.verifier.accept(verified);
    if (isPing) {
      send(response, 200, 'Success', elapsed(), {});
      linger(request);
      options.ended('ping', elapsed());
      return;
    }
    const deadlineMs = verified.timeoutS * 1000 * DEADLINE_SHARE;
    const unavailable = options.unavailable(verified.hotkey, deadlineMs - elapsed());
    if (unavailable !== null) throw new Refusal(503, unavailable.startsWith('no model') ? 'no-model' : 'overloaded', unavailable);

    const image = imageOf(await readBody(request));
    await inspectImage(image, options.limits ?? DEFAULT_IMAGE_LIMITS);
    const answer = await options.answer(image, deadlineMs - elapsed(), verified);
    const latencyMs = elapsed();
    if (response.destroyed || request.socket.destroyed) {
      options.ended('gone', latencyMs);
      return;
    }
    send(response, 200, 'Success', latencyMs, { prediction: answer.prediction });
    options.ended('answered', latencyMs);
    options.answered(verified, image, answer, latencyMs);
  } catch (error) {
    const refusal = refusalOf(error as Error);
    if (refusal.outcome === 'failed') options.logger.warn({ error: (error as Error).message }, 'request failed');
    options.ended(response.destroyed ? 'gone' : refusal.outcome, elapsed());
    send(response, refusal.status, refusal.message, elapsed(), { message: refusal.message });
    linger(request);
  }
}

function refusalOf(error: Error): Refusal {
  if (error instanceof Refusal) return error;
  if (error instanceof NotVerifiedError) return new Refusal(401, 'not-verified', `Not Verified with error: ${error.message}`);
  if (error instanceof NonceTableFullError) return new Refusal(503, 'overloaded', `Too many requests: ${error.message}`);
  if (error instanceof ImageError)
    return new Refusal(
      error.kind === 'too-large' ? 413 : 400,
      error.kind === 'too-large' ? 'too-large' : 'bad-image',
      `The image cannot be answered: ${error.message}`,
    );
  if (error instanceof OverloadedError) return new Refusal(503, 'overloaded', `Busy: ${error.message}`);
  if (error instanceof DeadlineError) return new Refusal(503, 'overloaded', `Too late: ${error.message}`);
  // What broke inside is the operator's to read, in the log, not the caller's.
  return new Refusal(500, 'failed', 'The model could not answer this image.');
}

function tooLong(): Refusal {
  return new Refusal(413, 'too-large', `The body is longer than ${MAX_BODY_BYTES} bytes.`);
}

function send(response: ServerResponse, status: number, message: string, elapsedMs: number, body: object): void {
  if (response.headersSent || response.destroyed) return;
  const text = JSON.stringify(body);
  response.writeHead(status, { ...axonHeaders(status, message, elapsedMs / 1000), 'content-length': String(Buffer.byteLength(text)) });
  response.end(text);
}

/** Reads and throws away what a request still sends, so that a refusal is not lost in a reset; within bounds. */
function linger(request: IncomingMessage): void {
  if (request.complete || request.destroyed) return;
  let bytes = 0;
  const timer = setTimeout(() => request.socket.destroy(), LINGER_MS);
  timer.unref();
  request.on('data', (piece: Buffer) => {
    bytes += piece.length;
    if (bytes > LINGER_BYTES) request.socket.destroy();
  });
  const done = (): void => clearTimeout(timer);
  request.once('end', done);
  request.once('close', done);
  request.resume();
}

function readBody(request: IncomingMessage): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const pieces: Buffer[] = [];
    let bytes = 0;
    const onData = (piece: Buffer): void => {
      bytes += piece.length;
      if (bytes > MAX_BODY_BYTES) {
        request.off('data', onData);
        pieces.length = 0;
        reject(tooLong());
        return;
      }
      pieces.push(piece);
    };
    request.on('data', onData);
    request.once('end', () => resolve(Buffer.concat(pieces, bytes)));
    request.once('close', () => reject(new Refusal(400, 'gone', 'The connection was closed before the whole body came.')));
  });
}

/** @throws Refusal 422 for a body that is no JSON object with `image`, 400 for an image that is not base64 */
function imageOf(body: Buffer): Buffer {
  let value: unknown;
  try {
    value = JSON.parse(body.toString('utf8'));
  } catch {
    throw new Refusal(422, 'bad-request', 'The body is not JSON.');
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new Refusal(422, 'bad-request', 'The body is not a JSON object.');
  const { image } = value as { image?: unknown };
  if (typeof image !== 'string') throw new Refusal(422, 'bad-request', 'The body has no text field "image".');
  if (image === '') throw new Refusal(400, 'bad-image', 'The image is empty.');
  if (/[^A-Za-z0-9+/=\s]/.test(image)) throw new Refusal(400, 'bad-image', 'The image is not base64.');
  const bytes = Buffer.from(image, 'base64');
  if (bytes.length === 0) throw new Refusal(400, 'bad-image', 'The image is not base64.');
  return bytes;
}
