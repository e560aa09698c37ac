/** A wallet that Bittensor's own package made is the miner's, by name; its coldkey never is. */
import { execFile } from 'node:child_process';
import { chmod, mkdtemp, rm, stat } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { EXIT } from '../../src/cli/exit.js';
import { writeBundle } from '../support/bundle.js';
import { MinerEnded, startProgram } from '../support/minerProgram.js';

const MAKE = `
import sys
from bittensor_wallet import Wallet
w = Wallet(name="owner", hotkey="miner-1", path=sys.argv[1])
w.create_new_coldkey(use_password=False, overwrite=False, suppress=True)
w.create_new_hotkey(use_password=False, overwrite=False, suppress=True)
print("ADDRESS", w.hotkey.ss58_address)
`;

let root: string;
let address: string;
let bundle: string;
const wallets = (): string => path.join(root, 'wallets');
beforeAll(async () => {
  const { ensureInteropPython } = (await import(path.join(import.meta.dirname, 'venv.mjs'))) as {
    ensureInteropPython: () => Promise<string>;
  };
  const python = await ensureInteropPython();
  root = await mkdtemp(path.join(os.tmpdir(), 'flywheel-wallet-'));
  const { stdout } = await promisify(execFile)(python, ['-c', MAKE, wallets()]);
  address = /ADDRESS (\w+)/.exec(stdout)![1]!;
  bundle = (await writeBundle(path.join(root, 'bundles'))).dir;
}, 900_000);
afterAll(() => rm(root, { recursive: true, force: true }));
const start = (...args: string[]) => startProgram(path.join(root, 'home'), ['--bundle', bundle, '--open', ...args]);

describe("a wallet of Bittensor's own", { timeout: 60_000 }, () => {
  it('is found by its names, and its hotkey is the one of the miner', async () => {
    const miner = await start('--wallet-path', wallets(), '--wallet-name', 'owner', '--wallet-hotkey', 'miner-1');
    try {
      expect(miner.info.hotkey).toBe(address);
      const { mode } = await stat(path.join(wallets(), 'owner', 'hotkeys', 'miner-1'));
      // The package writes it for its owner alone, so there is nothing to warn of.
      expect(miner.said().includes('chmod 600')).toBe((mode & 0o077) !== 0);
    } finally {
      await miner.stop();
    }
  });

  it('has a coldkey that is refused', async () => {
    await chmod(path.join(wallets(), 'owner', 'coldkey'), 0o600);
    const ended = await start('--hotkey-file', path.join(wallets(), 'owner', 'coldkey')).catch((error: unknown) => error);
    expect(ended).toBeInstanceOf(MinerEnded);
    expect(ended).toMatchObject({ code: EXIT.badInput, said: expect.stringContaining('A coldkey holds the funds') as string });
  });
});
