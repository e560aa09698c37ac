/**
 * The axon: the HTTP front that validators speak to. Checks in this order: route, declared size and coding, headers,
 * signature, nonce, permit and stake, rate, a model that serves and room in the queue, body, image header. Nothing is
 * remembered of a request before its signature and permit are found good. Never blocks: images are decoded and answered in
 * other processes. Says nothing of models or members.
 */
import http, { type IncomingMessage, type ServerResponse } from 'node:http';
import net, { type AddressInfo, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { axonHeaders, headerText, IMAGE_ROUTES, PING_ROUTE, pingAnswer } from '../platform/bittensor/protocol.js';
import { checkClaimedSize } from '../platform/inference/imageHeader.js';
import { DeadlineError, OverloadedError } from '../platform/inference/pool.js';
import { DEFAULT_IMAGE_LIMITS, ImageError, type ImageLimits } from '../platform/inference/preprocess.js';
import { BodyBudget, BodyError, imageOf, MAX_BODY_BYTES, readBody, tooLong } from './body.js';
import type { Outcome, Stage } from './metrics.js';
import { NonceTableFullError } from './nonces.js';
import { NonceWindowError, NotVerifiedError, type VerifiedRequest, type Verifier } from './verify.js';

/** Idle connections: longer than the 15 s for which the client keeps one, or it writes into a closing one. */
const KEEP_ALIVE_MS = 65_000;
/** How long headers, and a whole request, may take to come. */
const HEADERS_MS = 5_000;
const REQUEST_MS = 15_000;
/** A genuine request has some 700 bytes of headers, and 20 of them. */
const MAX_HEADER_BYTES = 16 * 1024;
const MAX_HEADERS = 100;
/** Connections at most. Beyond, the one that was opened first and never brought a genuine request makes room. */
const MAX_CONNECTIONS = 2000;
/** What a refused request still sends is read and thrown away for so long, and so much, so that the refusal arrives. */
const LINGER_MS = 3000;
const LINGER_BYTES = 64 * 1024 * 1024;
/** A stopping axon closes an idle connection when nothing came on it for so long: what was sent before the stop is here by then. */
const QUIET_MS = 250;
/** Of the time until all is cut, so much is for sending the last answers. */
const SENDING_MS = 200;
/** How often it looks, and how long it goes on taking connections that have been waiting for it, ms. */
const LOOK_MS = 20;
const ACCEPT_MS = 1000;
/** Share of the caller's time-out that an answer may take: the rest is the network's. */
const DEADLINE_SHARE = 0.9;

export interface AxonAnswer {
  prediction: number;
}

export interface AxonOptions {
  verifier: Verifier;
  /** null: may ask; else the reason of the refusal */
  permit: (hotkey: string) => string | null;
  /** false: it asks too much (429) */
  rate: (key: string) => boolean;
  /** why no answer can be given now (503), or null. Asked before the body is read */
  unavailable: (hotkey: string, deadlineMs: number) => string | null;
  /** @throws OverloadedError, DeadlineError, ImageError */
  answer: (image: Buffer, deadlineMs: number, request: VerifiedRequest) => Promise<AxonAnswer>;
  /** after the answer was handed to the network; must not throw */
  answered: (request: VerifiedRequest, image: Buffer, answer: AxonAnswer, latencyMs: number) => void;
  /** how long a stage of an answered request took */
  stage: (stage: Stage, ms: number) => void;
  /** a genuine signature of a permitted validator: how far its clock is ahead of ours, and whether its nonce was accepted */
  clockSeen: (hotkey: string, aheadMs: number, accepted: boolean) => void;
  /** every request, however it ended */
  ended: (outcome: Outcome, latencyMs: number) => void;
  logger: { warn(fields: object, message: string): void; debug(fields: object, message: string): void };
  limits?: ImageLimits;
  /** connections at most; default 2000 */
  maxConnections?: number;
}

/** Pings of those without a permit share one rate, and leave no trace: their keys cost nothing to make. */
const STRANGERS = 'pings without a permit';

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
  /**
   * Stops in this order: connections that wait in the system's queue are taken and the port is closed; every request of
   * which a byte has come is answered; connections on which nothing comes are closed. What comes meanwhile on an open
   * connection is answered as well, with `Connection: close`. All of it within `graceMs`; what is left then is cut.
   */
  stop(graceMs: number): Promise<void>;
}

/**
 * Opens the port.
 * @param port 0: any free one
 * @throws the system's error, with its code (EADDRINUSE, EACCES)
 */
export async function openAxon(host: string, port: number, options: AxonOptions): Promise<Axon> {
  const connections = new Connections(options.maxConnections ?? MAX_CONNECTIONS);
  const budget = new BodyBudget();
  /** performance.now() until when all must be answered; null: no end in sight */
  let until: number | null = null;
  const server = http.createServer(
    {
      keepAliveTimeout: KEEP_ALIVE_MS,
      headersTimeout: HEADERS_MS,
      requestTimeout: REQUEST_MS,
      connectionsCheckingInterval: 1000,
      maxHeaderSize: MAX_HEADER_BYTES,
      noDelay: true,
    },
    (request, response) => take(request, response, false),
  );
  const leftMs = (): number => (until === null ? Number.POSITIVE_INFINITY : until - performance.now());
  const take = (request: IncomingMessage, response: ServerResponse, expectsContinue: boolean): void => {
    connections.asked(request, response);
    void handle(request, response, { ...options, budget, connections, expectsContinue, leftMs });
  };
  server.maxHeadersCount = MAX_HEADERS;
  server.on('connection', (socket) => connections.opened(socket));
  // A client that asks whether to send its body at all is told after everything else was looked at.
  server.on('checkContinue', (request, response) => take(request, response, true));
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
    // Who never closes its side is not waited for.
    setTimeout(() => socket.destroy(), LINGER_MS).unref();
  });
  await listen(server, host, port);
  return {
    port: (server.address() as AddressInfo).port,
    async stop(graceMs) {
      const began = performance.now();
      until = began + graceMs;
      await queueTaken(server, Math.min(ACCEPT_MS, graceMs));
      // net's own close: http's would also cut connections whose request is still in the kernel's buffer.
      const closed = new Promise<void>((resolve) => net.Server.prototype.close.call(server, () => resolve()));
      while (connections.count > 0 && leftMs() > 0) {
        await sleep(LOOK_MS);
        // Right after the sockets were read: what has come is known as such.
        await nextCheck();
        const since = performance.now() - QUIET_MS;
        if (began < since) connections.closeIdle(since);
      }
      connections.closeAll();
      await closed;
      // Ends the checks of connections too; there are none left to close.
      server.close();
    },
  };
}

/** Resolves when the event loop has looked at its sockets once more. */
function nextCheck(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/**
 * Lets the server take the connections that wait in the system's queue, which would be reset when the port is closed.
 * libuv takes one in each turn of the loop: a whole turn without one means that the queue is empty.
 * @param timeoutMs there may always come more
 */
async function queueTaken(server: http.Server, timeoutMs: number): Promise<void> {
  const until = performance.now() + timeoutMs;
  let taken = 1;
  const count = (): void => {
    taken += 1;
  };
  server.on('connection', count);
  // The first turn may be one that looked before the stop.
  await nextCheck();
  while (taken > 0 && performance.now() < until) {
    taken = 0;
    await nextCheck();
  }
  server.off('connection', count);
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

/** What is known of a connection. */
interface Connection {
  /** requests that are not answered, or whose body is still to come */
  busy: number;
  /** bytes received when the last request had ended: more of them are the beginning of another */
  read: number;
  /** performance.now() when the last request had ended, or the connection was opened */
  idleSince: number;
}

/** Open connections in the order they came. Who never brought a genuine request makes room for others; nobody else can be pushed out. */
class Connections {
  private readonly open = new Map<Socket, Connection>();
  private readonly unproven = new Set<Socket>();

  constructor(private readonly most: number) {}

  get count(): number {
    return this.open.size;
  }

  opened(socket: Socket): void {
    this.open.set(socket, { busy: 0, read: 0, idleSince: performance.now() });
    this.unproven.add(socket);
    socket.once('close', () => {
      this.open.delete(socket);
      this.unproven.delete(socket);
    });
    // There is always one: the newcomer itself, when all others are proven.
    if (this.open.size > this.most) (this.unproven.values().next().value as Socket).destroy();
  }

  proven(socket: Socket): void {
    this.unproven.delete(socket);
  }

  /** A request's headers have come. It is over when it is answered and its body was heard out. */
  asked(request: IncomingMessage, response: ServerResponse): void {
    const { socket } = request;
    const connection = this.open.get(socket);
    if (connection === undefined) return;
    connection.busy += 2;
    const done = (): void => {
      connection.busy -= 1;
      connection.read = socket.bytesRead;
      connection.idleSince = performance.now();
    };
    request.once('close', done);
    response.once('close', done);
  }

  /** Closes the connections on which no request has begun, and that have been at rest since before that time. */
  closeIdle(since: number): void {
    for (const [socket, { busy, read, idleSince }] of this.open)
      if (busy === 0 && socket.bytesRead === read && idleSince < since) socket.destroy();
  }

  closeAll(): void {
    for (const socket of this.open.keys()) socket.destroy();
  }
}

interface Handling extends AxonOptions {
  budget: BodyBudget;
  connections: Connections;
  /** the client waits for "100 Continue" before it sends its body */
  expectsContinue: boolean;
  /** until a stopping axon cuts what is not answered, ms; Infinity when it does not stop */
  leftMs: () => number;
}

async function handle(request: IncomingMessage, response: ServerResponse, options: Handling): Promise<void> {
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
    if (isCoded(request)) throw new Refusal(415, 'bad-request', 'A compressed body is not read: dendrites send plain JSON.');
    const verified = verify(request, options);
    const refusal = options.permit(verified.hotkey);
    if (refusal !== null) {
      // The reference answers a ping of whoever signs.
      if (!isPing) throw new Refusal(403, 'forbidden', `Forbidden. Key is blacklisted: ${refusal}.`);
      if (!options.rate(STRANGERS)) throw tooMany();
    } else {
      if (!options.rate(verified.hotkey)) throw tooMany();
      options.verifier.accept(verified);
      options.connections.proven(request.socket);
      options.clockSeen(verified.hotkey, verified.aheadMs, true);
    }
    if (isPing) {
      lastOne(response, options);
      sendPing(request, response, elapsed());
      linger(request);
      options.ended('ping', elapsed());
      return;
    }
    const verifiedMs = elapsed();
    const deadlineMs = Math.min(verified.timeoutS * 1000 * DEADLINE_SHARE, options.leftMs() - SENDING_MS);
    const unavailable = options.unavailable(verified.hotkey, deadlineMs - elapsed());
    if (unavailable !== null) throw new Refusal(503, unavailable.startsWith('no model') ? 'no-model' : 'overloaded', unavailable);

    if (options.expectsContinue) response.writeContinue();
    const image = imageOf(await readBody(request, options.budget, verified.hotkey, deadlineMs - elapsed()));
    checkClaimedSize(image, options.limits ?? DEFAULT_IMAGE_LIMITS);
    const readMs = elapsed();
    const answer = await options.answer(image, deadlineMs - elapsed(), verified);
    const latencyMs = elapsed();
    if (response.destroyed || request.socket.destroyed) {
      options.ended('gone', latencyMs);
      return;
    }
    lastOne(response, options);
    send(response, 200, 'Success', latencyMs, { prediction: answer.prediction });
    options.ended('answered', latencyMs);
    options.stage('verify', verifiedMs);
    options.stage('body', readMs - verifiedMs);
    options.answered(verified, image, answer, latencyMs);
  } catch (error) {
    const refusal = refusalOf(error as Error);
    if (refusal.outcome === 'failed') options.logger.warn({ error: (error as Error).message }, 'request failed');
    options.ended(response.destroyed ? 'gone' : refusal.outcome, elapsed());
    lastOne(response, options);
    send(response, refusal.status, refusal.message, elapsed(), { message: refusal.message });
    linger(request);
  }
}

/** @throws NotVerifiedError; one that only the nonce is to blame for tells of clocks, when a permitted validator signed it */
function verify(request: IncomingMessage, { verifier, permit, clockSeen }: AxonOptions): VerifiedRequest {
  try {
    return verifier.verify(request.headers);
  } catch (error) {
    if (error instanceof NonceWindowError && permit(error.hotkey) === null) clockSeen(error.hotkey, error.aheadMs, false);
    throw error;
  }
}

function isCoded({ headers }: IncomingMessage): boolean {
  const content = headers['content-encoding'];
  const transfer = headers['transfer-encoding'];
  return (
    (content !== undefined && content.trim().toLowerCase() !== 'identity') ||
    (transfer !== undefined && transfer.trim().toLowerCase() !== 'chunked')
  );
}

const BODY_OUTCOMES: Record<BodyError['kind'], Outcome> = {
  'too-long': 'too-large',
  late: 'late',
  gone: 'gone',
  busy: 'overloaded',
  malformed: 'bad-request',
  'no-image': 'bad-image',
};

function refusalOf(error: Error): Refusal {
  if (error instanceof Refusal) return error;
  if (error instanceof BodyError) return new Refusal(error.status, BODY_OUTCOMES[error.kind], error.message);
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

function tooMany(): Refusal {
  return new Refusal(429, 'rate', 'Too many requests of this hotkey.');
}

/**
 * An answer of a stopping axon says that its connection ends with it, as one does to a client that asked for that. Not while
 * the body still comes: closed under a sender, the connection would be reset and the answer lost. It is closed afterwards.
 */
function lastOne(response: ServerResponse, { leftMs }: Pick<Handling, 'leftMs'>): void {
  const { req: request } = response;
  if (request.complete) {
    if (Number.isFinite(leftMs())) response.shouldKeepAlive = false;
  } else if (!response.shouldKeepAlive) {
    response.shouldKeepAlive = true;
    request.once('end', () => request.socket.end());
  }
}

/** The ping has no image, and is answered as by the reference: with itself, and what became of it. */
function sendPing(request: IncomingMessage, response: ServerResponse, elapsedMs: number): void {
  if (response.headersSent || response.destroyed) return;
  const { localAddress, localPort } = request.socket;
  const { headers, body } = pingAnswer(request.headers, { ip: localAddress ?? '', port: localPort ?? 0 }, elapsedMs / 1000);
  response.writeHead(200, { ...headers, 'content-length': String(Buffer.byteLength(body)) });
  response.end(body);
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
