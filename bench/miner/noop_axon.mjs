// The miner as it is shipped, with a model that does nothing: what all but decoding and inference costs. HTTP, headers,
// signature, nonce, metagraph, rate, body, base64, the image's header, queue, journal (images and lines on disk), metrics.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { runMiner } from '../../dist/miner/index.js';
import { verifySignature } from '../../dist/platform/bittensor/protocol.js';
import { fileMetagraph } from '../../dist/platform/metagraph/index.js';
import { newKey } from './common.mjs';

const [validator, seed] = process.argv.slice(2);
const key = await newKey(Buffer.from(seed, 'hex'));
const home = mkdtempSync(path.join(os.tmpdir(), 'flywheel-bench-noop-'));
const bundle = path.join(home, 'bundle');
mkdirSync(bundle);
// Nobody reads it: the model is the one below.
writeFileSync(path.join(bundle, 'bundle.json'), '{}');
const metagraph = path.join(home, 'metagraph.json');
writeFileSync(metagraph, JSON.stringify([{ uid: 0, hotkey: validator, validatorPermit: true, stake: 1000 }]));
const said = { prediction: 0.5, votes: { noop: 0.5 }, leftOut: [], augmented: false, ms: 0 };
const nothing = {
  predict: async () => said,
  estimateMs: () => 0,
  whenIdle: async () => undefined,
  stop: async () => undefined,
  depth: 0,
  pids: [process.pid],
  restarts: 0,
  sizes: { processes: 0, threads: 0 },
  batchLimit: 1,
  provider: 'cpu',
};
const quiet = { debug() {}, info() {}, warn() {}, error: (fields, text) => process.stderr.write(`${text} ${JSON.stringify(fields)}\n`) };
const miner = await runMiner({
  home,
  host: '127.0.0.1',
  port: 0,
  controlPort: 0,
  hotkey: key,
  bundle,
  startPool: async () => nothing,
  metagraph: await fileMetagraph(metagraph),
  open: false,
  processes: 0,
  threads: 0,
  journalMaxBytes: 500_000_000,
  rate: { perSecond: 1e6, burst: 1e6 },
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
  `${JSON.stringify({ ready: true, port: Number(new URL(miner.url).port), hotkey: key.address, verifyMs: (used.user + used.system) / 1000 / times })}\n`,
);
process.on('SIGTERM', async () => {
  await miner.stop();
  const { journalled, journalDropped } = miner.status();
  process.stderr.write(`no-op miner: ${journalled} answers journalled, ${journalDropped} not\n`);
  rmSync(home, { recursive: true, force: true });
  process.exit(0);
});
