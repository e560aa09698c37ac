// Our miner as `flywheel miner` runs it: front, queue, inference processes, journal; on a home of its own.
import { runMiner } from '../../dist/miner/index.js';
import { newKey } from './common.mjs';

const options = JSON.parse(process.argv[2]);
const key = await newKey(Buffer.from(options.seed, 'hex'));
const quiet = { debug() {}, info() {}, warn() {}, error: (fields, text) => process.stderr.write(`${text} ${JSON.stringify(fields)}\n`) };
const miner = await runMiner({
  home: options.home,
  host: '127.0.0.1',
  port: 0,
  controlPort: 0,
  hotkey: key,
  metagraph: null,
  metagraphFile: null,
  open: true,
  processes: options.processes ?? 0,
  threads: options.threads ?? 0,
  journalMaxBytes: 500_000_000,
  rate: { perSecond: 1e6, burst: 1e6 },
  logger: quiet,
});
while (!miner.status().ready) {
  if (miner.status().refused !== null) throw new Error(miner.status().refused);
  await new Promise((resolve) => setTimeout(resolve, 20));
}
process.stdout.write(
  `${JSON.stringify({ ready: true, port: Number(new URL(miner.url).port), control: miner.controlUrl, hotkey: key.address })}\n`,
);
process.on('SIGTERM', () => void miner.stop().then(() => process.exit(0)));
