// Our axon with a model that does nothing: the protocol alone, all of it. HTTP, headers, signature, nonce, permit, body,
// base64, the image's header, used nonces recorded; no journal, no inference.
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { openAxon } from '../../dist/miner/axon.js';
import { NonceLog, NonceTable } from '../../dist/miner/nonces.js';
import { RateLimiter } from '../../dist/miner/rate.js';
import { Verifier } from '../../dist/miner/verify.js';
import { protocolReady, verifySignature } from '../../dist/platform/bittensor/protocol.js';
import { newKey } from './common.mjs';

const [validator, seed] = process.argv.slice(2);
await protocolReady();
const key = await newKey(Buffer.from(seed, 'hex'));
const quiet = { debug() {}, info() {}, warn() {}, error() {} };
// Used nonces go to the disk, as in the miner.
const folder = mkdtempSync(path.join(os.tmpdir(), 'flywheel-bench-nonces-'));
const { log } = NonceLog.open(path.join(folder, 'nonces'), quiet);
const verifier = new Verifier(key.address, () => BigInt(Date.now()) * 1_000_000n, new NonceTable(undefined, log));
const rates = new RateLimiter({ perSecond: 1e6, burst: 1e6 }, () => performance.now());
const axon = await openAxon('127.0.0.1', 0, {
  verifier,
  permit: (hotkey) => (hotkey === validator ? null : 'Unrecognized hotkey'),
  rate: (hotkey) => rates.take(hotkey),
  unavailable: () => null,
  answer: async () => ({ prediction: 0.5 }),
  answered: () => undefined,
  stage: () => undefined,
  clockSeen: () => undefined,
  ended: () => undefined,
  logger: quiet,
});
// The signature's share: the same check as in each request, alone.
const message = `1795476273918569471.${key.address}.${key.address}.0a99ad66-e6f1-11ef-9a6b-0242ac110002.${'a'.repeat(64)}`;
const signature = key.sign(message);
const before = process.cpuUsage();
const times = 2000;
for (let i = 0; i < times; i++) if (!verifySignature(message, signature, key.address)) throw new Error('the signature must be good');
const used = process.cpuUsage(before);
process.stdout.write(
  `${JSON.stringify({ ready: true, port: axon.port, hotkey: key.address, verifyMs: (used.user + used.system) / 1000 / times })}\n`,
);
process.on('SIGTERM', () => {
  log.close();
  rmSync(folder, { recursive: true, force: true });
  process.exit(0);
});
