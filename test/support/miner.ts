/** A real miner on loopback for tests, with a home of its own, a validator that has a permit and one that has none. */
import { mkdir, mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { runMiner, type Miner, type MinerOptions } from '../../src/miner/index.js';
import { fileMetagraph } from '../../src/platform/metagraph/index.js';
import { hotkeyFromMnemonic, type Hotkey } from '../../src/platform/bittensor/keys.js';
import { TEST_KEYS } from '../miner/vectors.js';
import { writeBundle, type BundleOptions } from './bundle.js';

export const quiet = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };

export interface TestMiner {
  home: string;
  miner: Miner;
  /** the miner's own key */
  hotkey: Hotkey;
  validator: Hotkey;
  /** writes a bundle and points the champion at it */
  promote(generation: number, bundle?: BundleOptions): Promise<string>;
  /** writes champion.json as it stands */
  point(text: string): Promise<void>;
  /** starts or, with null, ends a shadow */
  shadow(order: { trial: string; digest: string; share: number } | null): Promise<void>;
  until(what: string, done: () => boolean): Promise<void>;
  /** stops it and starts it again on the same home */
  restart(): Promise<void>;
  /** ends everything and removes the home */
  end(): Promise<void>;
}

/** Starts a miner without a champion; `promote` gives it one. */
export async function startMiner(change: Partial<MinerOptions> = {}): Promise<TestMiner> {
  const home = await mkdtemp(path.join(os.tmpdir(), 'flywheel-miner-'));
  const key = (role: keyof typeof TEST_KEYS): Promise<Hotkey> => hotkeyFromMnemonic(TEST_KEYS[role].mnemonic);
  const [hotkey, validator] = [await key('miner'), await key('validator')];
  const metagraphFile = path.join(home, 'metagraph.json');
  await mkdir(path.join(home, 'bundles'));
  await writeFile(
    metagraphFile,
    JSON.stringify([
      { uid: 0, hotkey: validator.address, validatorPermit: true, stake: 1000 },
      { uid: 1, hotkey: TEST_KEYS.nonvalidator.ss58, validatorPermit: false, stake: 5 },
    ]),
  );
  const options = async (): Promise<MinerOptions> => ({
    home,
    host: '127.0.0.1',
    port: 0,
    controlPort: 0,
    hotkey,
    metagraph: await fileMetagraph(metagraphFile, { pollMs: 50 }),
    open: false,
    processes: 1,
    threads: 1,
    journalMaxBytes: 50_000_000,
    logger: quiet,
    pollMs: 50,
    ...change,
  });
  const write = async (name: string, text: string): Promise<void> => {
    await writeFile(path.join(home, `${name}.new`), text);
    await rename(path.join(home, `${name}.new`), path.join(home, name));
  };
  let previous: string | null = null;
  const made: TestMiner = {
    home,
    miner: await runMiner(await options()).catch(async (error: unknown) => {
      await rm(home, { recursive: true, force: true });
      throw error;
    }),
    hotkey,
    validator,
    async promote(generation, bundle = {}) {
      const { digest } = await writeBundle(path.join(home, 'bundles'), bundle);
      await made.point(JSON.stringify({ generation, digest, previous }));
      previous = digest;
      return digest;
    },
    point: (text) => write('champion.json', text),
    shadow: (order) => (order === null ? rm(path.join(home, 'shadow.json'), { force: true }) : write('shadow.json', JSON.stringify(order))),
    async until(what, done) {
      for (let i = 0; i < 1000; i++) {
        if (done()) return;
        await sleep(20);
      }
      throw new Error(`waited in vain until ${what}: ${JSON.stringify(made.miner.status())}`);
    },
    async restart() {
      await made.miner.stop();
      made.miner = await runMiner(await options());
    },
    async end() {
      await made.miner.stop();
      await rm(home, { recursive: true, force: true });
    },
  };
  return made;
}
