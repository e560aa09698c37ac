/** The body of a request: read within bounds of size, time and memory, and taken apart without building more than it holds. */
import type { IncomingMessage } from 'node:http';

/** A genuine body holds an image of a few hundred kilobytes at most. */
export const MAX_BODY_BYTES = 16 * 1024 * 1024;
/** Bytes of a body outside of its texts at most: a genuine one has some hundreds, and JSON of nothing but brackets costs a hundred times its size in memory. */
const MAX_STRUCTURE_BYTES = 64 * 1024;
/** Bodies that are being read hold so much at most, all together; one hotkey's at most half of it. */
const BUDGET_BYTES = 256 * 1024 * 1024;
const FIRST_BYTES = 64 * 1024;
/** A declared length up to this is believed at once, which spares copying. */
const BELIEVED_BYTES = 1024 * 1024;

/** What is wrong with a body, and the HTTP status that says so. */
export class BodyError extends Error {
  override name = 'BodyError';
  constructor(
    readonly kind: 'too-long' | 'late' | 'gone' | 'busy' | 'malformed' | 'no-image',
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

/** What the bodies under way hold, so that slow senders cannot pile up memory. */
export class BodyBudget {
  private total = 0;
  private readonly byKey = new Map<string, number>();

  constructor(private readonly most: number = BUDGET_BYTES) {}

  get held(): number {
    return this.total;
  }

  /** @returns false when there is no room; nothing is taken then */
  take(key: string, bytes: number): boolean {
    const own = (this.byKey.get(key) ?? 0) + bytes;
    if (this.total + bytes > this.most || own > this.most / 2) return false;
    this.total += bytes;
    this.byKey.set(key, own);
    return true;
  }

  give(key: string, bytes: number): void {
    const own = (this.byKey.get(key) ?? 0) - bytes;
    this.total -= bytes;
    if (own > 0) this.byKey.set(key, own);
    else this.byKey.delete(key);
  }
}

/**
 * Reads the whole body into one buffer, whatever pieces it comes in.
 * @param key whose share of the budget it takes
 * @param timeoutMs how long it may take
 * @throws BodyError: too long (413), too slow (408), no room (503), or the connection was closed (400)
 */
export function readBody(request: IncomingMessage, budget: BodyBudget, key: string, timeoutMs: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const declared = Number(request.headers['content-length'] ?? Number.NaN);
    let taken = 0;
    let body = Buffer.alloc(0);
    let filled = 0;
    const grow = (needed: number): boolean => {
      let size = Math.max(body.length * 2, FIRST_BYTES);
      if (Number.isInteger(declared) && declared <= BELIEVED_BYTES) size = declared;
      size = Math.min(MAX_BODY_BYTES, Math.max(size, needed));
      // Until the copy is made both are held.
      if (!budget.take(key, size)) return false;
      const larger = Buffer.allocUnsafe(size);
      body.copy(larger, 0, 0, filled);
      budget.give(key, taken);
      taken = size;
      body = larger;
      return true;
    };
    const done = (error: BodyError | null): void => {
      clearTimeout(timer);
      request.off('data', onData);
      request.off('end', onEnd);
      request.off('close', onClose);
      budget.give(key, taken);
      taken = 0;
      if (error === null) resolve(body.subarray(0, filled));
      else reject(error);
    };
    const onData = (piece: Buffer): void => {
      const needed = filled + piece.length;
      if (needed > MAX_BODY_BYTES) return done(tooLong());
      if (needed > body.length && !grow(needed)) return done(new BodyError('busy', 503, 'Busy: too many bodies are being sent at once.'));
      piece.copy(body, filled);
      filled = needed;
    };
    const onEnd = (): void => done(null);
    const onClose = (): void => done(new BodyError('gone', 400, 'The connection was closed before the whole body came.'));
    const timer = setTimeout(
      () => done(new BodyError('late', 408, 'The body came too slowly to be answered in time.')),
      Math.max(1, timeoutMs),
    );
    request.on('data', onData);
    request.once('end', onEnd);
    request.once('close', onClose);
    if (request.destroyed) onClose();
  });
}

export function tooLong(): BodyError {
  return new BodyError('too-long', 413, `The body is longer than ${MAX_BODY_BYTES} bytes.`);
}

/**
 * The bytes of the field `image`.
 * @throws BodyError: 422 for a body that is no JSON object with a text `image`, 400 for a text that is no base64
 */
export function imageOf(body: Buffer): Buffer {
  if (structureBytes(body, MAX_STRUCTURE_BYTES) > MAX_STRUCTURE_BYTES)
    throw new BodyError('malformed', 422, 'The body has more structure than any synapse.');
  let value: unknown;
  try {
    value = JSON.parse(body.toString('utf8'));
  } catch {
    throw new BodyError('malformed', 422, 'The body is not JSON.');
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new BodyError('malformed', 422, 'The body is not a JSON object.');
  const { image } = value as { image?: unknown };
  if (typeof image !== 'string') throw new BodyError('malformed', 422, 'The body has no text field "image".');
  if (image === '') throw new BodyError('no-image', 400, 'The image is empty.');
  if (/[^A-Za-z0-9+/=\s]/.test(image)) throw new BodyError('no-image', 400, 'The image is not base64.');
  const bytes = Buffer.from(image, 'base64');
  if (bytes.length === 0) throw new BodyError('no-image', 400, 'The image is not base64.');
  return bytes;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;

/**
 * Bytes outside of JSON texts, quotes included. Jumps from quote to quote, so a long base64 text costs next to nothing.
 * @param enough stops counting beyond this
 */
export function structureBytes(json: Buffer, enough = Number.POSITIVE_INFINITY): number {
  let count = 0;
  for (let at = 0; at < json.length && count <= enough;) {
    const open = json.indexOf(QUOTE, at);
    if (open < 0) return count + json.length - at;
    count += open - at + 2;
    let close = json.indexOf(QUOTE, open + 1);
    while (close > 0 && escaped(json, close, open)) close = json.indexOf(QUOTE, close + 1);
    if (close < 0) return count;
    at = close + 1;
  }
  return count;
}

/** Whether an odd number of backslashes stands before the quote. */
function escaped(json: Buffer, quote: number, open: number): boolean {
  let before = quote - 1;
  while (before > open && json[before] === BACKSLASH) before -= 1;
  return (quote - 1 - before) % 2 === 1;
}
