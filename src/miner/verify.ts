/** Who asks, and is it fresh: signature, then nonce. Stricter than the reference axon, yet true to every genuine dendrite of 9.x. */
import { createHash } from 'node:crypto';
import {
  EMPTY_BODY_HASH,
  parseDendriteHeaders,
  ProtocolError,
  signedMessage,
  verifySignature,
  type DendriteHeaders,
} from '../platform/bittensor/protocol.js';
import { NONCE_FUTURE_NS, NONCE_PAST_NS, NonceTable } from './nonces.js';

/** The request is not from whom it says, or not fresh: 401. */
export class NotVerifiedError extends Error {
  override name = 'NotVerifiedError';
}

/** The signature is genuine, but the nonce is out of the window. */
export class NonceWindowError extends NotVerifiedError {
  override name = 'NonceWindowError';
  constructor(
    message: string,
    readonly hotkey: string,
    /** nonce minus our clock, ms */
    readonly aheadMs: number,
  ) {
    super(message);
  }
}

/** @returns the id of a request: hotkey, uuid and nonce hashed together; also the journal record's id */
export function requestId(headers: Pick<DendriteHeaders, 'hotkey' | 'uuid' | 'nonce'>): string {
  return createHash('sha256').update(`${headers.hotkey}:${headers.uuid}:${headers.nonce}`).digest('hex');
}

export interface VerifiedRequest extends DendriteHeaders {
  id: string;
  /** nonce minus our clock, ms */
  aheadMs: number;
}

export class Verifier {
  /**
   * @param hotkey SS58 address of this miner: what the signed message must name
   * @param clock nanoseconds since the epoch
   */
  constructor(
    private readonly hotkey: string,
    private readonly clock: () => bigint,
    private readonly nonces: NonceTable = new NonceTable(),
  ) {}

  /**
   * Checks everything that headers can tell but the permit. Changes nothing: call `accept` once the request is let in.
   * Signature first: who does not hold a key learns nothing of nonces.
   * @throws NotVerifiedError, and NonceWindowError when the nonce alone is wrong
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
    const message = signedMessage({
      nonce: headers.nonce,
      dendriteHotkey: headers.hotkey,
      axonHotkey: this.hotkey,
      uuid: headers.uuid,
      bodyHash: headers.bodyHash,
    });
    if (!verifySignature(message, headers.signature, headers.hotkey)) throw new NotVerifiedError('Signature mismatch');
    const now = this.clock();
    const aheadMs = Number((headers.nonce - now) / 1_000_000n);
    if (headers.nonce <= now - NONCE_PAST_NS) throw new NonceWindowError('Nonce is too old', headers.hotkey, aheadMs);
    if (headers.nonce > now + NONCE_FUTURE_NS) throw new NonceWindowError('Nonce is in the future', headers.hotkey, aheadMs);
    const id = requestId(headers);
    if (this.nonces.has(id, headers.nonce)) throw new NotVerifiedError('Nonce was used before');
    return { ...headers, id, aheadMs };
  }

  /** Uses the nonce up. @throws NonceTableFullError */
  accept(request: Pick<VerifiedRequest, 'id' | 'nonce'>): void {
    this.nonces.add(request.id, request.nonce, this.clock());
  }
}
