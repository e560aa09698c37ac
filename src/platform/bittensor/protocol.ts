/** What goes over the wire between dendrite and axon: routes, headers, the signed message, its verification. Pure. */
import { u8aWrapBytes } from '@polkadot/util';
import { cryptoWaitReady, decodeAddress } from '@polkadot/util-crypto';
// Not util-crypto's own: since version 14 that is JavaScript, five times as slow as schnorrkel itself in WebAssembly.
import { sr25519Verify, waitReady } from '@polkadot/wasm-crypto';
import { SS58_PREFIX } from './keys.js';

/** POST paths of the challenge: the current class, and the one validators sent until 2025-11-30. */
export const IMAGE_ROUTES = ['/ImageSynapse', '/ExtendedImageSynapse'] as const;
/** POST path of the bare synapse, which serves as a ping. */
export const PING_ROUTE = '/Synapse';

/** Header names (`Synapse.to_headers`). They hold underscores: nginx drops them unless told otherwise. */
export const HEADERS = {
  name: 'name',
  timeout: 'timeout',
  axonIp: 'bt_header_axon_ip',
  axonPort: 'bt_header_axon_port',
  axonHotkey: 'bt_header_axon_hotkey',
  axonStatusCode: 'bt_header_axon_status_code',
  axonStatusMessage: 'bt_header_axon_status_message',
  axonProcessTime: 'bt_header_axon_process_time',
  dendriteIp: 'bt_header_dendrite_ip',
  dendriteVersion: 'bt_header_dendrite_version',
  nonce: 'bt_header_dendrite_nonce',
  uuid: 'bt_header_dendrite_uuid',
  hotkey: 'bt_header_dendrite_hotkey',
  signature: 'bt_header_dendrite_signature',
  headerSize: 'header_size',
  totalSize: 'total_size',
  bodyHash: 'computed_body_hash',
} as const;

/** Body hash of a synapse without hash fields, sha3-256 of nothing: the signature does not cover the image (`Synapse.body_hash`). */
export const EMPTY_BODY_HASH = 'a7ffc6f8bf1ed76651c14756a061d662f580ff4de43b49fa82d80a4b80f8434a';

/** The dendrite version this client claims, major * 1e6 + minor * 1e3 + patch; nobody signs it. */
export const DENDRITE_VERSION = 9_012_002;
/** A validator's own time-out, s (SN72 `forward.py`). */
export const DEFAULT_TIMEOUT_S = 9;
/** The longest time-out a request may claim, s: the header is not signed, so it may shorten the wait and never widen it. */
export const MAX_TIMEOUT_S = DEFAULT_TIMEOUT_S;

export interface SignedParts {
  /** nanoseconds since the epoch in decimal, beyond 2^53: text or BigInt, never a number */
  nonce: string | bigint;
  dendriteHotkey: string;
  axonHotkey: string;
  uuid: string;
  bodyHash: string;
}

/** The text that is signed, raw UTF-8, no hashing (`DendriteMixin.preprocess_synapse_for_request`). */
export function signedMessage(parts: SignedParts): string {
  return `${parts.nonce}.${parts.dendriteHotkey}.${parts.axonHotkey}.${parts.uuid}.${parts.bodyHash}`;
}

/** What an axon needs of a dendrite's headers; each has the right form, nothing is verified yet. */
export interface DendriteHeaders {
  nonce: bigint;
  uuid: string;
  hotkey: string;
  /** 64 bytes */
  signature: Uint8Array;
  bodyHash: string;
  /** s, clamped to [0.1, MAX_TIMEOUT_S]; unsigned, so it decides nothing but how long an answer is worth computing */
  timeoutS: number;
}

/** A header is missing or malformed. The message is what the other side may read. */
export class ProtocolError extends Error {
  override name = 'ProtocolError';
}

/**
 * Reads the headers of a signed request. The claimed version and everything the body repeats are ignored.
 * @param headers names in lower case, as Node gives them
 * @throws ProtocolError naming the first header that is missing or malformed
 */
export function parseDendriteHeaders(headers: Readonly<Record<string, string | string[] | undefined>>): DendriteHeaders {
  const need = (name: string, what: string, form: RegExp): string => {
    const value = headers[name];
    if (value === undefined || value === '') throw new ProtocolError(`Missing ${what}`);
    if (typeof value !== 'string' || !form.test(value)) throw new ProtocolError(`Malformed ${what}`);
    return value;
  };
  const hotkey = need(HEADERS.hotkey, 'hotkey', /^[1-9A-HJ-NP-Za-km-z]{40,60}$/);
  const nonce = need(HEADERS.nonce, 'Nonce', /^\d{1,20}$/);
  const uuid = need(HEADERS.uuid, 'uuid', /^[A-Za-z0-9_-]{1,64}$/);
  const signature = need(HEADERS.signature, 'Signature', /^0x[0-9a-fA-F]{128}$/);
  const bodyHash = need(HEADERS.bodyHash, 'body hash', /^[0-9a-f]{64}$/);
  return {
    nonce: BigInt(nonce),
    uuid,
    hotkey,
    signature: Buffer.from(signature.slice(2), 'hex'),
    bodyHash,
    timeoutS: parseTimeout(headers[HEADERS.timeout]),
  };
}

/** @returns s in [0.1, MAX_TIMEOUT_S]; what is absent or no number counts as the validators' own time-out */
export function parseTimeout(value: string | string[] | undefined): number {
  if (typeof value !== 'string' || !/^\d{1,12}(\.\d{1,20})?(e[+-]?\d{1,3})?$/i.test(value.trim())) return DEFAULT_TIMEOUT_S;
  return Math.min(MAX_TIMEOUT_S, Math.max(0.1, Number(value)));
}

/** Resolves when signatures can be verified (the cryptography is WebAssembly, compiled once). */
export async function protocolReady(): Promise<void> {
  await cryptoWaitReady();
  if (!(await waitReady()))
    throw new Error('The WebAssembly of @polkadot/wasm-crypto could not be compiled: no signature can be verified.');
}

const KEYS_REMEMBERED = 1024;
const publicKeys = new Map<string, Uint8Array | null>();

/** @returns the 32 bytes behind an SS58 address of prefix 42, or null when it is none */
export function publicKeyOf(address: string): Uint8Array | null {
  const known = publicKeys.get(address);
  if (known !== undefined) return known;
  let key: Uint8Array | null = null;
  try {
    const bytes = decodeAddress(address, false, SS58_PREFIX);
    if (bytes.length === 32) key = bytes;
  } catch {
    key = null;
  }
  if (publicKeys.size >= KEYS_REMEMBERED) publicKeys.delete(publicKeys.keys().next().value as string);
  publicKeys.set(address, key);
  return key;
}

/**
 * Whether the hotkey signed the message. As the reference (`Keypair.verify`), a signature over `<Bytes>message</Bytes>`
 * counts too. Call `protocolReady` once before.
 */
export function verifySignature(message: string, signature: Uint8Array, address: string): boolean {
  const key = publicKeyOf(address);
  if (key === null || signature.length !== 64) return false;
  const bytes = Buffer.from(message, 'utf8');
  try {
    return sr25519Verify(signature, bytes, key) || sr25519Verify(signature, u8aWrapBytes(bytes), key);
  } catch {
    // The verifier throws on bytes that are no curve point: not a signature either.
    return false;
  }
}

/** The three headers without which a dendrite cannot tell what happened (`process_server_response`). */
export function axonHeaders(status: number, message: string, processSeconds: number): Record<string, string> {
  return {
    'content-type': 'application/json',
    [HEADERS.axonStatusCode]: String(status),
    [HEADERS.axonStatusMessage]: headerText(message),
    [HEADERS.axonProcessTime]: processSeconds.toFixed(6),
  };
}

/**
 * The whole answer to a ping (`Synapse.to_headers` and `model_dump` of `Axon.ping`, `synapse_to_response`): the synapse
 * itself, what it said of its dendrite, and the axon's status.
 * @param headers of a verified request: what is echoed has a harmless form
 * @param axon where the request came in
 */
export function pingAnswer(
  headers: Readonly<Record<string, string | string[] | undefined>>,
  axon: { ip: string; port: number },
  processSeconds: number,
): { headers: Record<string, string>; body: string } {
  const echo = (name: string, form: RegExp): string | null => {
    const value = headers[name];
    return typeof value === 'string' && form.test(value) ? value : null;
  };
  const whole = /^\d{1,20}$/;
  const text = /^[A-Za-z0-9_.:-]{1,64}$/;
  const number = (value: string | null): number | null => (value === null ? null : Number(value));
  const dendrite = {
    ip: echo(HEADERS.dendriteIp, text),
    version: echo(HEADERS.dendriteVersion, /^\d{1,9}$/),
    nonce: echo(HEADERS.nonce, whole),
    uuid: echo(HEADERS.uuid, text),
    hotkey: echo(HEADERS.hotkey, text),
    signature: echo(HEADERS.signature, /^0x[0-9a-fA-F]{128}$/),
  };
  const seconds = processSeconds.toFixed(6);
  const [axonIp, axonPort, axonHotkey] = [
    echo(HEADERS.axonIp, text) ?? axon.ip,
    echo(HEADERS.axonPort, /^\d{1,5}$/) ?? String(axon.port),
    echo(HEADERS.axonHotkey, text),
  ];
  const timeout = echo(HEADERS.timeout, /^\d{1,12}(\.\d{1,20})?$/) ?? `${DEFAULT_TIMEOUT_S}.0`;
  const size = echo(HEADERS.totalSize, /^\d{1,9}$/) ?? '0';
  const headerSize = echo(HEADERS.headerSize, /^\d{1,9}$/) ?? '0';
  const echoed: [string, string | null][] = [
    [HEADERS.name, 'Synapse'],
    [HEADERS.timeout, timeout],
    [HEADERS.axonIp, axonIp],
    [HEADERS.axonPort, axonPort],
    [HEADERS.axonHotkey, axonHotkey],
    [HEADERS.dendriteIp, dendrite.ip],
    [HEADERS.dendriteVersion, dendrite.version],
    [HEADERS.nonce, dendrite.nonce],
    [HEADERS.uuid, dendrite.uuid],
    [HEADERS.hotkey, dendrite.hotkey],
    [HEADERS.signature, dendrite.signature],
    [HEADERS.headerSize, headerSize],
    [HEADERS.totalSize, size],
    [HEADERS.bodyHash, EMPTY_BODY_HASH],
  ];
  const none = { status_code: null, status_message: null, process_time: null };
  const body = JSON.stringify({
    name: 'Synapse',
    timeout: Number(timeout),
    total_size: Number(size),
    header_size: 0,
    dendrite: {
      ...none,
      ip: dendrite.ip,
      port: null,
      version: number(dendrite.version),
      nonce: '@nonce',
      uuid: dendrite.uuid,
      hotkey: dendrite.hotkey,
      signature: dendrite.signature,
    },
    axon: {
      status_code: 200,
      status_message: 'Success',
      process_time: Number(seconds),
      ip: axonIp,
      port: Number(axonPort),
      version: null,
      nonce: null,
      uuid: null,
      hotkey: axonHotkey,
      signature: null,
    },
    computed_body_hash: '',
    // A bare integer beyond 2^53, as Python writes it: no number of this language holds it.
  }).replace('"@nonce"', dendrite.nonce === null ? 'null' : dendrite.nonce.replace(/^0+(?=\d)/, ''));
  return {
    headers: {
      ...axonHeaders(200, 'Success', processSeconds),
      ...Object.fromEntries(echoed.filter((entry): entry is [string, string] => entry[1] !== null)),
    },
    body,
  };
}

/** Printable ASCII in one line, at most 300 characters: aiohttp refuses anything else as a header. */
export function headerText(text: string): string {
  return text
    .replace(/[^\x20-\x7e]+/g, ' ')
    .trim()
    .slice(0, 300);
}
