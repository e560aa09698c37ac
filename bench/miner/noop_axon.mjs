// Our axon with a model that does nothing: the protocol alone, all of it. HTTP, headers, signature, nonce, permit, body,
// base64, the image's header; no journal, no inference.
import { openAxon } from '../../dist/miner/axon.js';
import { Verifier } from '../../dist/miner/verify.js';
import { protocolReady, verifySignature } from '../../dist/platform/bittensor/protocol.js';
import { newKey } from './common.mjs';

const [validator, seed] = process.argv.slice(2);
await protocolReady();
const key = await newKey(Buffer.from(seed, 'hex'));
const verifier = new Verifier(key.address, () => BigInt(Date.now()) * 1_000_000n);
const quiet = { debug() {}, info() {}, warn() {}, error() {} };
const axon = await openAxon('127.0.0.1', 0, {
  verifier,
  permit: (hotkey) => (hotkey === validator ? null : 'Unrecognized hotkey'),
  rate: () => true,
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
process.on('SIGTERM', () => process.exit(0));
