/**
 * A subtensor for tests: JSON-RPC over WebSocket on loopback with the metadata of a real runtime (test/fixtures/subtensor),
 * storage and blocks of its own, and the rules of `serve_axon` (opentensor/subtensor, pallets/subtensor/src/subnets/serving.rs
 * and transaction_extension.rs). Keys, values and transactions are put together and taken apart here by hand, byte by byte,
 * so that the library under the miner's client is not its own judge. It can also be slow, mute, mad or away.
 */
import type { AddressInfo } from 'node:net';
import { WebSocketServer, type WebSocket } from 'ws';
import { blake2AsU8a, decodeAddress, encodeAddress, sr25519Verify, xxhashAsU8a } from '@polkadot/util-crypto';
import { runtimeMetadata, type MetadataVersion, type Runtime } from './subtensorMetadata.js';

export interface StandInNeuron {
  /** SS58 */
  hotkey: string;
  permit: boolean;
  /** alpha on the subnet and TAO on the root, rao */
  alpha?: bigint;
  tao?: bigint;
  /** [proportion of 2^64 - 1, SS58] */
  parents?: [bigint, string][];
  children?: [bigint, string][];
}

export interface StandInAxon {
  block: number;
  version: number;
  ip: bigint;
  port: number;
  ipType: number;
  protocol: number;
}

/** A transaction as it was taken apart. */
export interface Received {
  signer: string;
  mortal: boolean;
  nonce: number;
  tip: number;
  netuid: number;
  axon: Omit<StandInAxon, 'block'>;
}

/** `silent`: takes requests and answers none. `garbage`: answers every storage request with bytes of no meaning. `noise`: speaks no JSON. `hangup`: closes a connection once it is asked. */
export type Fault = 'silent' | 'garbage' | 'noise' | 'hangup';

const U64_MAX = 2n ** 64n - 1n;
const SPEC_VERSION = 224;
const TX_VERSION = 1;
/** Indices in the metadata of this runtime. */
const PALLET = 7;
const SERVE_AXON = 4;
const AXON_SERVED = 26;
const ERRORS = {
  InvalidIpType: 2,
  InvalidIpAddress: 3,
  InvalidPort: 4,
  HotKeyNotRegisteredInNetwork: 7,
  ServingRateLimitExceeded: 31,
  SubnetNotExists: 76,
};
/** What later runtimes answer before a block is made (common/src/transaction_error.rs). */
const CUSTOM = {
  SubnetNotExists: 3,
  HotKeyNotRegisteredInNetwork: 10,
  InvalidIpAddress: 11,
  ServingRateLimitExceeded: 12,
  InvalidPort: 13,
  InvalidIpType: 28,
};
type ServeError = keyof typeof ERRORS;

/** Those that the library may use: it hides what a node does not name. */
const METHODS = [
  'author_submitAndWatchExtrinsic',
  'author_submitExtrinsic',
  'author_unwatchExtrinsic',
  'chain_getBlock',
  'chain_getBlockHash',
  'chain_getFinalizedHead',
  'chain_getHeader',
  'rpc_methods',
  'state_call',
  'state_getMetadata',
  'state_getRuntimeVersion',
  'state_getStorage',
  'state_queryStorageAt',
  'state_subscribeRuntimeVersion',
  'state_unsubscribeRuntimeVersion',
  'system_accountNextIndex',
  'system_chain',
  'system_health',
  'system_properties',
];

const number = (value: bigint | number, bytes: number): Buffer => {
  const out = Buffer.alloc(bytes);
  let rest = BigInt(value);
  for (let i = 0; i < bytes; i++, rest >>= 8n) out[i] = Number(rest & 255n);
  return out;
};
const u16 = (value: number): Buffer => number(value, 2);
const u32 = (value: number): Buffer => number(value, 4);
const u64 = (value: bigint | number): Buffer => number(value, 8);
const u128 = (value: bigint): Buffer => number(value, 16);
const account = (ss58: string): Buffer => Buffer.from(decodeAddress(ss58));
/** SCALE compact, up to 2^30 - 1 */
const compact = (value: number): Buffer =>
  value < 64 ? number(value << 2, 1) : value < 16_384 ? number((value << 2) | 1, 2) : number(((BigInt(value) << 2n) | 2n) & 0xffffffffn, 4);
const vector = (items: readonly Uint8Array[]): Buffer => Buffer.concat([compact(items.length), ...items]);
const hex = (bytes: Uint8Array): string => `0x${Buffer.from(bytes).toString('hex')}`;
const twox128 = (text: string): Buffer => Buffer.from(xxhashAsU8a(text, 128));
const blake2Concat = (key: Buffer): Buffer => Buffer.concat([blake2AsU8a(key, 128), key]);
const item = (pallet: string, name: string, ...keys: Buffer[]): string => hex(Buffer.concat([twox128(pallet), twox128(name), ...keys]));
const subtensor = (name: string, ...keys: Buffer[]): string => item('SubtensorModule', name, ...keys);

/** Reads SCALE from the front. @throws RangeError beyond the end */
class Reader {
  private at = 0;
  constructor(private readonly bytes: Buffer) {}
  take(n: number): Buffer {
    if (this.at + n > this.bytes.length) throw new RangeError('the transaction ends too early');
    return this.bytes.subarray(this.at, (this.at += n));
  }
  number(bytes: number): bigint {
    return this.take(bytes).reduceRight((sum, byte) => (sum << 8n) | BigInt(byte), 0n);
  }
  compact(): number {
    const first = this.bytes[this.at] ?? 0;
    if ((first & 3) === 0) return Number(this.number(1)) >> 2;
    if ((first & 3) === 1) return Number(this.number(2)) >> 2;
    if ((first & 3) === 2) return Number(this.number(4) >> 2n);
    throw new RangeError('a compact number of more than 30 bits');
  }
  rest(): Buffer {
    return this.bytes.subarray(this.at);
  }
  get done(): boolean {
    return this.at === this.bytes.length;
  }
}

interface RpcError {
  code: number;
  message: string;
  data?: string;
}
class Refused extends Error {
  constructor(readonly error: RpcError) {
    super(error.message);
  }
}

export class StandIn {
  neurons: StandInNeuron[] = [];
  readonly axons = new Map<string, StandInAxon>();
  readonly nonces = new Map<string, number>();
  readonly received: Received[] = [];
  /** methods asked for since the beginning */
  readonly asked: string[] = [];
  rateLimit = 50;
  taoWeight = (U64_MAX * 18n) / 100n;
  /** own stake of hotkeys that are no neurons here (parents), rao */
  readonly others = new Map<string, { alpha: bigint; tao: bigint }>();
  fault: Fault | null = null;
  /** before every answer, ms */
  slowMs = 0;
  /** closes the connection instead of telling that a transaction is in a block; it is applied all the same */
  hangUpBeforeBlock = false;
  /** called once, when the next transaction comes and before it is looked at */
  beforeSubmit: (() => unknown) | null = null;
  number = 1_000;
  private server: WebSocketServer | null = null;
  private port = 0;
  private lastSubscription = 0;
  private readonly blocks = new Map<string, { extrinsics: string[]; events: Buffer }>();
  private readonly metadata: Buffer;
  private readonly hashes: string[] = [];
  /** told apart by this, chains of one kind have different blocks */
  private readonly root: Buffer;

  readonly runtime: Runtime;
  readonly netuid: number;

  /**
   * @param options.runtime `224`: as the test network had it; errors of a call show in its block. `wrapped` (default): with the
   *   fee extension of later runtimes, which also refuse before a block
   * @param options.chain chains of different names have different blocks
   */
  constructor(private readonly options: { runtime?: Runtime; netuid?: number; chain?: string; metadata?: MetadataVersion } = {}) {
    this.runtime = options.runtime ?? 'wrapped';
    this.netuid = options.netuid ?? 72;
    this.root = Buffer.from(blake2AsU8a(options.chain ?? 'stand-in', 256));
    this.metadata = runtimeMetadata(this.runtime, options.metadata ?? 14);
  }

  get url(): string {
    return `ws://127.0.0.1:${this.port}`;
  }

  get genesis(): string {
    return this.hashOf(0);
  }

  /** Listens, on the same port as before. */
  async up(): Promise<this> {
    const server = new WebSocketServer({ host: '127.0.0.1', port: this.port });
    this.server = server;
    server.on('connection', (socket) => {
      socket.on('message', (data: Buffer) => void this.receive(socket, data.toString('utf8')));
      socket.on('error', () => undefined);
    });
    await new Promise((resolve, reject) => server.once('listening', () => resolve(undefined)).once('error', reject));
    this.port = (server.address() as AddressInfo).port;
    return this;
  }

  /** Breaks every connection; new ones are taken. */
  drop(): void {
    for (const socket of this.server?.clients ?? []) socket.terminate();
  }

  /** Blocks pass: what was changed here shows in a new block, and after two more in a finalized one. */
  mine(blocks = 3): void {
    this.number += blocks;
  }

  get connections(): number {
    return this.server?.clients.size ?? 0;
  }

  /** Goes away: connections break and new ones are refused. */
  async down(): Promise<void> {
    const { server } = this;
    this.server = null;
    if (server === null) return;
    for (const socket of server.clients) socket.terminate();
    await new Promise((resolve) => server.close(() => resolve(undefined)));
  }

  /** A block's hash is that of its header, as in any Substrate chain. */
  private hashOf(block: number): string {
    for (let next = this.hashes.length; next <= block; next++) {
      const parent = next === 0 ? Buffer.alloc(32) : this.bytesOf(this.hashes[next - 1] ?? '');
      this.hashes.push(hex(blake2AsU8a(Buffer.concat([parent, compact(next), this.root, this.root, compact(0)]), 256)));
    }
    return this.hashes[block] ?? '';
  }

  private async receive(socket: WebSocket, text: string): Promise<void> {
    const { id, method, params } = JSON.parse(text) as { id: number; method: string; params: unknown[] };
    this.asked.push(method);
    if (this.fault === 'silent') return;
    if (this.fault === 'hangup') return socket.terminate();
    if (this.fault === 'noise') return socket.send('<html>502 Bad Gateway</html>');
    if (this.slowMs > 0) await new Promise((resolve) => setTimeout(resolve, this.slowMs));
    const send = (body: object): void => {
      if (socket.readyState === socket.OPEN) socket.send(JSON.stringify({ jsonrpc: '2.0', ...body }));
    };
    const subscribe = (name: string, results: readonly unknown[]): void => {
      const subscription = `s${++this.lastSubscription}`;
      send({ id, result: subscription });
      for (const result of results) send({ method: name, params: { subscription, result } });
    };
    try {
      if (method === 'state_subscribeRuntimeVersion') subscribe('state_runtimeVersion', [this.version()]);
      else if (method === 'author_submitAndWatchExtrinsic') {
        const block = this.submit(Buffer.from((params[0] as string).slice(2), 'hex'));
        if (this.hangUpBeforeBlock) socket.terminate();
        else subscribe('author_extrinsicUpdate', ['ready', { inBlock: block }, { finalized: block }]);
      } else send({ id, result: this.answer(method, params) });
    } catch (error) {
      send({ id, error: error instanceof Refused ? error.error : { code: -32_603, message: (error as Error).message } });
    }
  }

  private version(): object {
    return {
      specName: 'node-subtensor',
      implName: 'node-subtensor',
      authoringVersion: 1,
      specVersion: SPEC_VERSION,
      implVersion: 1,
      apis: [['0x37e397fc7c91f5e4', 2]],
      transactionVersion: TX_VERSION,
      stateVersion: 1,
    };
  }

  private answer(method: string, params: unknown[]): unknown {
    switch (method) {
      case 'rpc_methods':
        return { methods: METHODS };
      case 'system_chain':
        return 'Bittensor';
      case 'system_properties':
        return { ss58Format: 42, tokenDecimals: 9, tokenSymbol: 'TAO' };
      case 'system_health':
        return { peers: 1, isSyncing: false, shouldHavePeers: true };
      case 'chain_getBlockHash':
        return this.hashOf((params[0] as number | null | undefined) ?? this.number);
      case 'chain_getFinalizedHead':
        return this.hashOf(this.number - 2);
      case 'chain_getHeader':
        return this.header((params[0] as string | undefined) ?? this.hashOf(this.number));
      case 'chain_getBlock': {
        const hash = params[0] as string;
        return { block: { header: this.header(hash), extrinsics: this.blocks.get(hash)?.extrinsics ?? [] }, justifications: null };
      }
      case 'state_getRuntimeVersion':
        return this.version();
      case 'state_call':
        return this.call(params[0] as string);
      case 'state_getMetadata':
        return hex(this.metadata);
      case 'state_getStorage':
        return this.fault === 'garbage' ? '0xdeadbeef' : (this.storage(params[1] as string | undefined).get(params[0] as string) ?? null);
      case 'state_queryStorageAt': {
        const [keys, at] = params as [string[], string | undefined];
        const storage = this.storage(at);
        return [{ block: at, changes: keys.map((key) => [key, this.fault === 'garbage' ? '0xdeadbeef' : (storage.get(key) ?? null)]) }];
      }
      case 'author_submitExtrinsic': {
        this.submit(Buffer.from((params[0] as string).slice(2), 'hex'));
        return hex(blake2AsU8a(Buffer.from((params[0] as string).slice(2), 'hex'), 256));
      }
      case 'system_accountNextIndex':
        return this.nonces.get(params[0] as string) ?? 0;
      case 'author_unwatchExtrinsic':
      case 'state_unsubscribeRuntimeVersion':
        return true;
      default:
        throw new Refused({ code: -32_601, message: 'Method not found' });
    }
  }

  private call(name: string): string {
    if (name === 'Metadata_metadata_versions') return hex(vector([u32(this.options.metadata ?? 14)]));
    if (name === 'Metadata_metadata_at_version') {
      const { length } = this.metadata;
      return hex(Buffer.concat([Buffer.of(1), compact(length), this.metadata]));
    }
    throw new Refused({ code: 4003, message: `Execution failed: Exported method ${name} is not found` });
  }

  private header(hash: string): object {
    const block = this.hashes.indexOf(hash);
    if (block < 0) throw new Refused({ code: 4003, message: 'Client error: UnknownBlock' });
    const root = hex(this.root);
    const parentHash = block === 0 ? hex(Buffer.alloc(32)) : this.hashOf(block - 1);
    return { parentHash, number: `0x${block.toString(16)}`, stateRoot: root, extrinsicsRoot: root, digest: { logs: [] } };
  }

  /** What storage holds, by key. Only events differ from block to block: tests change the rest between two looks. */
  private storage(at: string | undefined): Map<string, string> {
    const map = new Map<string, string>();
    const put = (key: string, value: Buffer): unknown => map.set(key, hex(value));
    const net = u16(this.netuid);
    put(subtensor('NetworksAdded', net), Buffer.of(1));
    put(subtensor('SubnetworkN', net), u16(this.neurons.length));
    put(subtensor('ValidatorPermit', net), vector(this.neurons.map(({ permit }) => Buffer.of(permit ? 1 : 0))));
    put(subtensor('ServingRateLimit', net), u64(this.rateLimit));
    put(subtensor('TaoWeight'), u64(this.taoWeight));
    const stake = (hotkey: string, alpha: bigint, tao: bigint): void => {
      if (alpha > 0n) put(subtensor('TotalHotkeyAlpha', blake2Concat(account(hotkey)), net), u64(alpha));
      if (tao > 0n) put(subtensor('TotalHotkeyAlpha', blake2Concat(account(hotkey)), u16(0)), u64(tao));
    };
    const family = (list: readonly [bigint, string][]): Buffer =>
      vector(list.map(([part, hotkey]) => Buffer.concat([u64(part), account(hotkey)])));
    this.neurons.forEach(({ hotkey, alpha = 0n, tao = 0n, parents, children }, uid) => {
      put(subtensor('Keys', net, u16(uid)), account(hotkey));
      put(subtensor('Uids', net, blake2Concat(account(hotkey))), u16(uid));
      stake(hotkey, alpha, tao);
      if (parents) put(subtensor('ParentKeys', blake2Concat(account(hotkey)), net), family(parents));
      if (children) put(subtensor('ChildKeys', blake2Concat(account(hotkey)), net), family(children));
    });
    for (const [hotkey, { alpha, tao }] of this.others) stake(hotkey, alpha, tao);
    for (const [hotkey, axon] of this.axons) {
      const { block, version, ip, port, ipType, protocol } = axon;
      const value = [u64(block), u32(version), u128(ip), u16(port), Buffer.of(ipType, protocol, 0, 0)];
      put(subtensor('Axons', net, blake2Concat(account(hotkey))), Buffer.concat(value));
    }
    const events = at === undefined ? undefined : this.blocks.get(at)?.events;
    if (events) put(item('System', 'Events'), events);
    return map;
  }

  /** Takes the transaction apart, checks and applies it. @returns the hash of its block. @throws Refused */
  private submit(bytes: Buffer): string {
    this.beforeSubmit?.();
    this.beforeSubmit = null;
    const { received, verify } = this.decode(bytes);
    if (!verify()) throw new Refused({ code: 1010, message: 'Invalid Transaction', data: 'Transaction has a bad signature' });
    const next = this.nonces.get(received.signer) ?? 0;
    if (received.nonce < next) throw new Refused({ code: 1010, message: 'Invalid Transaction', data: 'Transaction is outdated' });
    if (received.nonce > next) throw new Error('a transaction of the future waits in the pool; the stand-in has none');
    const wrong = this.check(received);
    if (wrong !== null && this.runtime === 'wrapped')
      throw new Refused({ code: 1010, message: 'Invalid Transaction', data: `Custom error: ${CUSTOM[wrong]}` });
    this.received.push(received);
    this.nonces.set(received.signer, next + 1);
    this.number += 1;
    if (wrong === null) this.axons.set(received.signer, { block: this.number, ...received.axon });
    const hash = this.hashOf(this.number);
    this.blocks.set(hash, { extrinsics: [hex(bytes)], events: this.events(received, wrong) });
    return hash;
  }

  private decode(bytes: Buffer): { received: Received; verify: () => boolean } {
    // What a runtime does with bytes that it cannot read: its execution fails.
    const unreadable = (why: string): Refused =>
      new Refused({ code: 1002, message: 'Verification Error: Runtime error: Execution failed: wasm trap: unreachable', data: why });
    try {
      const reader = new Reader(bytes);
      if (reader.compact() !== reader.rest().length) throw unreadable('wrong length');
      if (reader.number(1) !== 0x84n) throw unreadable('not a signed transaction of version 4');
      if (reader.number(1) !== 0n) throw unreadable('not an account id');
      const publicKey = reader.take(32);
      if (reader.number(1) !== 1n) throw unreadable('not sr25519');
      const signature = reader.take(64);
      const signed = reader.rest();
      const era = reader.rest()[0] === 0 ? reader.take(1) : reader.take(2);
      const nonce = reader.compact();
      const tip = reader.compact();
      const mode = reader.number(1);
      const extra = signed.subarray(0, signed.length - reader.rest().length);
      const call = reader.rest();
      if (mode > 1n) throw unreadable('CheckMetadataHash has no such mode');
      if (reader.number(1) !== BigInt(PALLET) || reader.number(1) !== BigInt(SERVE_AXON)) throw unreadable('not serve_axon');
      const netuid = Number(reader.number(2));
      const version = Number(reader.number(4));
      const ip = reader.number(16);
      const [port, ipType, protocol] = [Number(reader.number(2)), Number(reader.number(1)), Number(reader.number(1))];
      reader.take(2);
      if (!reader.done) throw unreadable('bytes after the call');
      const signer = encodeAddress(publicKey, 42);
      const implicit = [u32(SPEC_VERSION), u32(TX_VERSION), this.bytesOf(this.genesis), this.bytesOf(this.birth(era)), Buffer.of(0)];
      const payload = Buffer.concat([call, extra, ...implicit]);
      const message = payload.length > 256 ? blake2AsU8a(payload, 256) : payload;
      return {
        received: { signer, mortal: era.length === 2, nonce, tip, netuid, axon: { version, ip, port, ipType, protocol } },
        verify: () => {
          try {
            return sr25519Verify(message, signature, publicKey);
          } catch {
            return false; // no signature at all
          }
        },
      };
    } catch (error) {
      throw error instanceof Refused ? error : unreadable((error as Error).message);
    }
  }

  /** Hash of the block that a mortal transaction was born in (sp_runtime, generic/era.rs); genesis for an immortal one. */
  private birth(era: Buffer): string {
    if (era.length === 1) return this.genesis;
    const encoded = era.readUInt16LE(0);
    const period = 2 << (encoded % 16);
    const phase = (encoded >> 4) * Math.max(period >> 12, 1);
    return this.hashOf(Math.floor((Math.max(this.number, phase) - phase) / period) * period + phase);
  }

  private bytesOf(text: string): Buffer {
    return Buffer.from(text.slice(2), 'hex');
  }

  private check({ signer, netuid, axon }: Received): ServeError | null {
    if (netuid !== this.netuid) return 'SubnetNotExists';
    if (!this.neurons.some(({ hotkey }) => hotkey === signer)) return 'HotKeyNotRegisteredInNetwork';
    if (axon.ipType !== 4 && axon.ipType !== 6) return 'InvalidIpType';
    if (axon.ipType === 4 && (axon.ip >= 0xffffffffn || axon.ip === 0x7f000001n)) return 'InvalidIpAddress';
    if (axon.ipType === 6 && axon.ip === 1n) return 'InvalidIpAddress';
    const last = this.axons.get(signer)?.block ?? 0;
    if (this.rateLimit !== 0 && last !== 0 && this.number - last < this.rateLimit) return 'ServingRateLimitExceeded';
    return axon.port === 0 ? 'InvalidPort' : null;
  }

  private events(received: Received, wrong: ServeError | null): Buffer {
    const phase = Buffer.concat([Buffer.of(0), u32(0)]);
    const record = (...event: Uint8Array[]): Buffer => Buffer.concat([phase, ...event, compact(0)]);
    // weight (two compact numbers), class Normal, Pays::No
    const info = Buffer.concat([compact(33_010_000), compact(0), Buffer.of(0, 1)]);
    if (wrong !== null) return vector([record(Buffer.of(0, 1), Buffer.of(3, PALLET, ERRORS[wrong], 0, 0, 0), info)]);
    return vector([record(Buffer.of(PALLET, AXON_SERVED), u16(received.netuid), account(received.signer)), record(Buffer.of(0, 0), info)]);
  }
}
