import { chmod, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { inspect } from 'node:util';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { operatorHotkey } from '../../src/cli/identity.js';
import { createHotkey, hotkeyFromMnemonic, loadHotkey, loadOrCreateHotkey, walletHotkeyFile } from '../../src/platform/bittensor/keys.js';
import { verifySignature } from '../../src/platform/bittensor/protocol.js';
import { TEST_KEYS } from './vectors.js';

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), 'flywheel-keys-'));
});
afterEach(async () => {
  await rm(dir, { recursive: true, force: true });
});
const file = (): string => path.join(dir, 'hotkey');

describe('hotkeys', () => {
  it('are made with a file that its owner alone can read', async () => {
    await createHotkey(path.join(dir, 'keys', 'hotkey'));
    expect((await stat(path.join(dir, 'keys', 'hotkey'))).mode & 0o777).toBe(0o600);
  });

  it('are loaded as they were made', async () => {
    const made = await createHotkey(file());
    const loaded = await loadHotkey(file());
    expect(loaded.address).toBe(made.address);
    expect(verifySignature('hello', loaded.sign('hello'), made.address)).toBe(true);
  });

  it('are never overwritten', async () => {
    await createHotkey(file());
    const before = await readFile(file(), 'utf8');
    await expect(createHotkey(file())).rejects.toThrow(/never overwritten/);
    expect(await readFile(file(), 'utf8')).toBe(before);
  });

  it('are one key when several make them at once', async () => {
    const made = await Promise.all(Array.from({ length: 6 }, () => loadOrCreateHotkey(file())));
    expect(new Set(made.map((key) => key.address)).size).toBe(1);
  });

  it('are written in the format of Bittensor', async () => {
    const made = await createHotkey(file());
    const json = JSON.parse(await readFile(file(), 'utf8')) as Record<string, string>;
    expect(json).toMatchObject({ ss58Address: made.address, publicKey: `0x${Buffer.from(made.publicKey).toString('hex')}` });
    expect(json.secretPhrase?.split(' ')).toHaveLength(12);
    expect(json.secretSeed).toMatch(/^0x[0-9a-f]{64}$/);
  });

  it.each(Object.entries(TEST_KEYS))('come from a phrase with the address that Bittensor gives (%s)', async (_role, key) => {
    expect((await hotkeyFromMnemonic(key.mnemonic)).address).toBe(key.ss58);
  });

  it('are loaded from a seed without a phrase', async () => {
    const made = await createHotkey(file());
    const { secretSeed } = JSON.parse(await readFile(file(), 'utf8')) as { secretSeed: string };
    await writeFile(path.join(dir, 'seed'), JSON.stringify({ secretSeed }));
    expect((await loadHotkey(path.join(dir, 'seed'))).address).toBe(made.address);
  });

  it('show no secret when they are printed', async () => {
    const made = await createHotkey(file());
    const { secretPhrase, secretSeed } = JSON.parse(await readFile(file(), 'utf8')) as { secretPhrase: string; secretSeed: string };
    const shown = inspect(made, { depth: 9, showHidden: true }) + JSON.stringify(made);
    expect(shown).not.toContain(secretPhrase);
    expect(shown).not.toContain(secretSeed.slice(2));
  });

  it.each([
    ['an encrypted coldkey', '$NACL\u0001\u0002\u0003', /encrypted/],
    ['a public key only', JSON.stringify({ ss58Address: TEST_KEYS.miner.ss58, publicKey: '0x00' }), /public key only/],
    ['no JSON', 'hello', /not a JSON key file/],
    ['a list', '[]', /an object was expected/],
    ['nothing of use', '{}', /neither secretPhrase nor secretSeed/],
    ['a wrong phrase', JSON.stringify({ secretPhrase: 'one two three' }), /no valid BIP-39/],
    ['a short seed', JSON.stringify({ secretSeed: '0x1234' }), /not 32 bytes/],
    [
      'a phrase of another address',
      JSON.stringify({ secretPhrase: TEST_KEYS.miner.mnemonic, ss58Address: TEST_KEYS.stranger.ss58 }),
      /belongs to/,
    ],
    [
      'a seed of another phrase',
      JSON.stringify({ secretPhrase: TEST_KEYS.miner.mnemonic, secretSeed: `0x${'11'.repeat(32)}` }),
      /does not belong to its secretPhrase/,
    ],
  ])('refuse a file with %s, and keep it', async (_what, text, why) => {
    await writeFile(file(), text);
    await expect(loadHotkey(file())).rejects.toThrow(why);
    expect(await readFile(file(), 'utf8')).toBe(text);
  });

  it('refuse a file that is named as a coldkey', async () => {
    await writeFile(path.join(dir, 'coldkey'), JSON.stringify({ secretPhrase: TEST_KEYS.miner.mnemonic }));
    await expect(loadHotkey(path.join(dir, 'coldkey'))).rejects.toThrow(/coldkey/);
  });

  it('say that a file is missing', async () => {
    await expect(loadHotkey(file())).rejects.toThrow(/no key file/);
  });

  it('never repeat a secret in an error', async () => {
    const phrase = `${TEST_KEYS.miner.mnemonic} extra`;
    await writeFile(file(), JSON.stringify({ secretPhrase: phrase }));
    await chmod(file(), 0o600);
    const error = await loadHotkey(file()).catch((reason: Error) => reason);
    expect((error as Error).message).not.toContain('height opera');
  });
});

describe('a Bittensor wallet', () => {
  it('is found where Bittensor keeps it', () => {
    expect(walletHotkeyFile({ name: 'w', hotkey: 'h', path: '/wallets' })).toBe('/wallets/w/hotkeys/h');
    expect(walletHotkeyFile({ name: 'w', path: '~/own' })).toBe(path.join(os.homedir(), 'own/w/hotkeys/default'));
    expect(walletHotkeyFile({})).toBe(path.join(os.homedir(), '.bittensor/wallets/default/hotkeys/default'));
  });

  it.each(['../other', 'a/b', '..', '', '.'])('has no name that leads elsewhere ("%s")', (name) => {
    expect(() => walletHotkeyFile({ name })).toThrow(/no plain name/);
    expect(() => walletHotkeyFile({ hotkey: name })).toThrow(/no plain name/);
  });
});

describe("the operator's hotkey", () => {
  const NAMES = ['FLYWHEEL_HOTKEY_FILE', 'FLYWHEEL_WALLET_NAME', 'FLYWHEEL_WALLET_HOTKEY', 'FLYWHEEL_HOTKEY_MNEMONIC'];
  beforeEach(() => {
    for (const name of NAMES) vi.stubEnv(name, '');
  });
  afterEach(() => vi.unstubAllEnvs());

  it('comes from a wallet named on the command line, whatever the environment says', async () => {
    const made = await createHotkey(path.join(dir, 'w', 'hotkeys', 'h'));
    vi.stubEnv('FLYWHEEL_HOTKEY_MNEMONIC', TEST_KEYS.miner.mnemonic);
    expect((await operatorHotkey({ walletName: 'w', walletHotkey: 'h', walletPath: dir }))?.address).toBe(made.address);
  });

  it('comes from words in the environment, which no process started later inherits', async () => {
    vi.stubEnv('FLYWHEEL_HOTKEY_MNEMONIC', TEST_KEYS.miner.mnemonic);
    expect((await operatorHotkey({}, true))?.address).toBe(TEST_KEYS.miner.ss58);
    expect(process.env.FLYWHEEL_HOTKEY_MNEMONIC).toBeUndefined();
  });

  it('is not guessed when two are named, and there is none when none is', async () => {
    await expect(operatorHotkey({ hotkeyFile: file(), walletName: 'w' })).rejects.toThrow(/Two hotkeys are named/);
    vi.stubEnv('FLYWHEEL_HOTKEY_FILE', file());
    vi.stubEnv('FLYWHEEL_HOTKEY_MNEMONIC', TEST_KEYS.miner.mnemonic);
    const error = await operatorHotkey().catch((reason: Error) => reason);
    expect((error as Error).message).toMatch(/names several hotkeys/);
    expect((error as Error).message).not.toContain(TEST_KEYS.miner.mnemonic);
    for (const name of NAMES) vi.stubEnv(name, '');
    expect(await operatorHotkey()).toBeNull();
  });
});
