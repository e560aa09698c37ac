import { createHash } from 'node:crypto';
import { beforeAll, describe, expect, it } from 'vitest';
import { signedHeaders } from '../../src/platform/bittensor/dendrite.js';
import { hotkeyFromMnemonic, type Hotkey } from '../../src/platform/bittensor/keys.js';
import {
  EMPTY_BODY_HASH,
  HEADERS,
  headerText,
  parseDendriteHeaders,
  parseTimeout,
  protocolReady,
  publicKeyOf,
  signedMessage,
  verifySignature,
} from '../../src/platform/bittensor/protocol.js';
import { NONCE_FUTURE_NS, NONCE_PAST_NS, NonceTable } from '../../src/miner/nonces.js';
import { requestId, Verifier } from '../../src/miner/verify.js';
import { TEST_KEYS, VECTORS } from './vectors.js';

let validator: Hotkey;
beforeAll(async () => {
  await protocolReady();
  validator = await hotkeyFromMnemonic(TEST_KEYS.validator.mnemonic);
});

const NOW = 1_795_476_273_918_569_471n;
const MINER = TEST_KEYS.miner.ss58;
/** Headers as a genuine dendrite sends them, for the given nonce. */
function headers(
  nonce: bigint,
  change: Record<string, string | undefined> = {},
  uuid = 'b'.repeat(36),
): Record<string, string | undefined> {
  return {
    ...signedHeaders({
      hotkey: validator,
      axonHotkey: MINER,
      nonce,
      uuid,
      synapse: 'ImageSynapse',
      timeoutSeconds: 9,
      axonIp: '127.0.0.1',
      axonPort: 8091,
      externalIp: '203.0.113.7',
    }),
    ...change,
  };
}

describe('golden vectors of bittensor 9.12.2', () => {
  it.each(VECTORS.signatures.map((v, i) => ({ ...v, i })))('signature $i of $signer: $bittensor_verify ($why)', (v) => {
    expect(verifySignature(v.message, Buffer.from(v.signature.slice(2), 'hex'), TEST_KEYS[v.signer].ss58)).toBe(v.bittensor_verify);
  });

  it('composes the message that was signed', () => {
    const [first] = VECTORS.signatures;
    const [nonce, dendriteHotkey, axonHotkey, uuid, bodyHash] = first!.message.split('.') as [string, string, string, string, string];
    expect(signedMessage({ nonce: BigInt(nonce), dendriteHotkey, axonHotkey, uuid, bodyHash })).toBe(first!.message);
  });

  it('has the body hash of a synapse without hash fields', () => {
    expect(EMPTY_BODY_HASH).toBe(VECTORS.body_hash[0]!.hash);
    expect(EMPTY_BODY_HASH).toBe(createHash('sha3-256').digest('hex'));
  });

  it.each(VECTORS.ss58_invalid.filter((v) => v.bittensor.startsWith('raises')))('takes "$input" for no address', ({ input }) => {
    expect(publicKeyOf(input)).toBeNull();
  });

  it.each(Object.values(TEST_KEYS))('reads the public key of $ss58', ({ ss58, public_key }) => {
    expect(`0x${Buffer.from(publicKeyOf(ss58)!).toString('hex')}`).toBe(public_key);
  });
});

describe('headers', () => {
  it('keep a nonce beyond 2^53 exact', () => {
    expect(parseDendriteHeaders(headers(NOW)).nonce).toBe(NOW);
  });

  it.each([
    ['9.0', 9],
    ['1000000.0', 9],
    ['1e6', 9],
    ['3.5', 3.5],
    ['nan', 9],
    ['inf', 9],
    ['-3', 9],
    ['0.0', 0.1],
    [undefined, 9],
  ])('clamp the unsigned time-out %s to %s s', (value, seconds) => {
    expect(parseTimeout(value)).toBe(seconds);
  });

  it('are one printable line', () => {
    expect(headerText('a\r\nb\u00e9\u0000c')).toBe('a b c');
    expect(headerText('x'.repeat(9000)).length).toBeLessThan(8190);
  });
});

describe('verification', () => {
  const verifier = (clock: () => bigint = () => NOW): Verifier => new Verifier(MINER, clock);

  it('lets a genuine request in', () => {
    expect(verifier().verify(headers(NOW))).toMatchObject({ hotkey: validator.address, nonce: NOW, timeoutS: 9 });
  });

  it.each([
    ['missing signature', { [HEADERS.signature]: undefined }, 'Missing Signature'],
    ['empty signature', { [HEADERS.signature]: '' }, 'Missing Signature'],
    ['short signature', { [HEADERS.signature]: '0x00' }, 'Malformed Signature'],
    ['signature of another message', { [HEADERS.signature]: `0x${'5a'.repeat(63)}8a` }, 'Signature mismatch'],
    ['missing nonce', { [HEADERS.nonce]: undefined }, 'Missing Nonce'],
    ['nonce that is no number', { [HEADERS.nonce]: '12ab' }, 'Malformed Nonce'],
    ['nonce of 21 digits', { [HEADERS.nonce]: '9'.repeat(21) }, 'Malformed Nonce'],
    ['missing hotkey', { [HEADERS.hotkey]: undefined }, 'Missing hotkey'],
    ['hotkey of another', { [HEADERS.hotkey]: TEST_KEYS.stranger.ss58 }, 'Signature mismatch'],
    ['hotkey that is no address', { [HEADERS.hotkey]: `${TEST_KEYS.validator.ss58.slice(0, -1)}a` }, 'Signature mismatch'],
    ['missing uuid', { [HEADERS.uuid]: undefined }, 'Missing uuid'],
    ['uuid altered', { [HEADERS.uuid]: 'c'.repeat(36) }, 'Signature mismatch'],
    ['body hash altered', { [HEADERS.bodyHash]: '00'.repeat(32) }, 'Unexpected body hash'],
  ])('refuses a request with %s', (_what, change, why) => {
    expect(() => verifier().verify(headers(NOW, change))).toThrow(why);
  });

  it('refuses what was signed for another miner', () => {
    expect(() => new Verifier(TEST_KEYS.stranger.ss58, () => NOW).verify(headers(NOW))).toThrow('Signature mismatch');
  });

  it('takes no notice of the claimed version and the axon header', () => {
    expect(() => verifier().verify(headers(NOW, { [HEADERS.dendriteVersion]: '1', [HEADERS.axonHotkey]: 'anything' }))).not.toThrow();
  });

  it('bounds the nonce on both sides, whatever the time-out header claims', () => {
    const v = verifier();
    expect(() => v.verify(headers(NOW - NONCE_PAST_NS, { timeout: '1000000.0' }))).toThrow('too old');
    expect(() => v.verify(headers(NOW - NONCE_PAST_NS + 1n))).not.toThrow();
    expect(() => v.verify(headers(NOW + NONCE_FUTURE_NS + 1n))).toThrow('future');
    expect(() => v.verify(headers(NOW + NONCE_FUTURE_NS))).not.toThrow();
  });

  it('takes a request once', () => {
    const v = verifier();
    v.accept(v.verify(headers(NOW)));
    expect(() => v.verify(headers(NOW))).toThrow('used before');
  });

  it('does not use a nonce up before the request is let in', () => {
    const v = verifier();
    v.verify(headers(NOW));
    expect(() => v.verify(headers(NOW))).not.toThrow();
  });

  it('takes requests of one dendrite out of order', () => {
    const v = verifier();
    v.accept(v.verify(headers(NOW)));
    expect(() => v.verify(headers(NOW - 5_000_000n))).not.toThrow();
  });

  it('tells two dendrites of one hotkey apart', () => {
    const v = verifier();
    v.accept(v.verify(headers(NOW)));
    expect(() => v.verify(headers(NOW, {}, 'c'.repeat(36)))).not.toThrow();
  });

  it('tells who does not hold the key nothing of nonces', () => {
    const v = verifier();
    v.accept(v.verify(headers(NOW)));
    const forged = { [HEADERS.signature]: `0x${'5a'.repeat(63)}8a` };
    for (const nonce of [NOW, NOW - NONCE_PAST_NS, NOW + 10n * NONCE_FUTURE_NS])
      expect(() => v.verify(headers(nonce, forged))).toThrow('Signature mismatch');
  });

  it('refuses after a restart what was accepted before it', () => {
    const id = requestId({ hotkey: validator.address, uuid: 'b'.repeat(36), nonce: NOW });
    const nonces = new NonceTable();
    nonces.restore([{ id, nonce: NOW }], NOW + 1_000_000_000n);
    const v = new Verifier(MINER, () => NOW + 1_000_000_000n, nonces);
    expect(() => v.verify(headers(NOW))).toThrow('used before');
  });
});

describe('the table of nonces', () => {
  const SECOND = 1_000_000_000n;

  it('forgets what is older than the window, a second at a time, and nothing younger', () => {
    const table = new NonceTable(4);
    table.add('a', NOW, NOW);
    table.add('b', NOW + SECOND, NOW);
    table.add('c', NOW + 3n * SECOND, NOW);
    const later = NOW + NONCE_PAST_NS + 2n * SECOND;
    table.add('d', later, later);
    expect([table.has('a', NOW), table.has('b', NOW + SECOND), table.has('c', NOW + 3n * SECOND), table.has('d', later)]).toEqual([
      false,
      false,
      true,
      true,
    ]);
    expect(table.size).toBe(2);
  });

  it('refuses rather than forgets one that could be replayed', () => {
    const table = new NonceTable(2);
    table.add('a', NOW, NOW);
    table.add('b', NOW, NOW);
    expect(() => table.add('c', NOW, NOW)).toThrow(/within the nonce window/);
    expect(table.has('a', NOW)).toBe(true);
  });
});
