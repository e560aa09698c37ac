/** Who may ask: signature, nonce, permit. Stricter than the reference axon, yet true to every genuine dendrite of 9.x. */
import { createHash } from 'node:crypto';
import {
  EMPTY_BODY_HASH,
  parseDendriteHeaders,
  ProtocolError,
  signedMessage,
  verifySignature,
  type DendriteHeaders,
} from '../platform/bittensor/protocol.js';

/** How old a nonce may be, ns: the reference's 4 s plus the validators' time-out of 9 s, whatever the unsigned header claims. */
export const NONCE_PAST_NS = 13_000_000_000n;
/** How far ahead of our clock a nonce may be, ns; the reference sets no bound. */
export const NONCE_FUTURE_NS = 5_000_000_000n;
/** Requests remembered at most; within the window that is over 10,000 a second. */
const MAX_REMEMBERED = 200_000;
const PRUNE_EVERY_NS = 1_000_000_000n;

/** The request is not from whom it says, or not fresh: 401. */
export class NotVerifiedError extends Error {
  override name = 'NotVerifiedError';
}
/** The table of seen requests is full: 503. Forgetting one early would let it be replayed. */
export class NonceTableFullError extends Error {
  override name = 'NonceTableFullError';
}

/** @returns the id of a request: hotkey, uuid and nonce hashed together; also the journal record's id */
export function requestId(headers: Pick<DendriteHeaders, 'hotkey' | 'uuid' | 'nonce'>): string {
  return createHash('sha256').update(`${headers.hotkey}:${headers.uuid}:${headers.nonce}`).digest('hex');
}

/** Every request once: nonces of one dendrite may arrive out of order, so each value is remembered, not the last. */
export class NonceTable {
  private readonly seen = new Map<string, bigint>();
  private pruned = 0n;

  /** @param capacity requests remembered at most */
  constructor(private readonly capacity: number = MAX_REMEMBERED) {}

  get size(): number {
    return this.seen.size;
  }

  has(id: string): boolean {
    return this.seen.has(id);
  }

  /** @throws NonceTableFullError */
  add(id: string, nonce: bigint, now: bigint): void {
    if (now - this.pruned > PRUNE_EVERY_NS || this.seen.size >= this.capacity) {
      this.pruned = now;
      for (const [old, value] of this.seen) if (value < now - NONCE_PAST_NS) this.seen.delete(old);
    }
    if (this.seen.size >= this.capacity) throw new NonceTableFullError(`${this.capacity} requests within the nonce window`);
    this.seen.set(id, nonce);
  }
}

export interface VerifiedRequest extends DendriteHeaders {
  id: string;
}

export class Verifier {
  private readonly nonces: NonceTable;

  /**
   * @param hotkey SS58 address of this miner: what the signed message must name
   * @param clock nanoseconds since the epoch
   * @param recent requests answered before a restart, `at` in ms since the epoch
   */
  constructor(
    private readonly hotkey: string,
    private readonly clock: () => bigint,
    recent: readonly { id: string; at: number }[] = [],
    nonces: NonceTable = new NonceTable(),
  ) {
    this.nonces = nonces;
    const now = clock();
    // Their nonces are not known; the time of the answer is later than the nonce, less the skew that was allowed.
    for (const { id, at } of recent) this.nonces.add(id, BigInt(Math.floor(at)) * 1_000_000n + NONCE_FUTURE_NS, now);
  }

  /**
   * Checks everything that headers can tell but the permit. Consumes nothing: call `accept` once the request is let in.
   * @throws NotVerifiedError
   */
  verify(raw: Readonly<Record<string, string | string[] | undefined>>): VerifiedRequest {
    let headers: DendriteHeaders;
    try {
      headers = parseDendriteHeaders(raw);
    } catch (error) {
      if (error instanceof ProtocolError) throw new NotVerifiedError(error.message);
      throw error;
    }
    if (headers.bodyHash !== EMPTY_BODY_HASH) throw new NotVerifiedError('Unexpected body hash');
    // Cheap before dear: a replayed flood of old requests costs no elliptic curves.
    const now = this.clock();
    if (headers.nonce <= now - NONCE_PAST_NS) throw new NotVerifiedError('Nonce is too old');
    if (headers.nonce > now + NONCE_FUTURE_NS) throw new NotVerifiedError('Nonce is in the future');
    const id = requestId(headers);
    if (this.nonces.has(id)) throw new NotVerifiedError('Nonce was used before');
    const message = signedMessage({
      nonce: headers.nonce,
      dendriteHotkey: headers.hotkey,
      axonHotkey: this.hotkey,
      uuid: headers.uuid,
      bodyHash: headers.bodyHash,
    });
    if (!verifySignature(message, headers.signature, headers.hotkey)) throw new NotVerifiedError('Signature mismatch');
    return { ...headers, id };
  }

  /** Uses the nonce up. @throws NonceTableFullError */
  accept(request: VerifiedRequest): void {
    this.nonces.add(request.id, request.nonce, this.clock());
  }
}
