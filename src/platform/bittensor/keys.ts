/** Hotkeys: sr25519 key pairs in Bittensor's own key file format, readable by its owner alone, never overwritten. */
import { randomBytes } from 'node:crypto';
import { promises as fs } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { hexToU8a, isHex, u8aToHex } from '@polkadot/util';
import {
  cryptoWaitReady,
  encodeAddress,
  mnemonicGenerate,
  mnemonicToMiniSecret,
  mnemonicValidate,
  sr25519PairFromSeed,
  sr25519Sign,
} from '@polkadot/util-crypto';
import { BadInputError } from '../../domain/errors.js';

/** SS58 prefix of Bittensor (and of Substrate in general). */
export const SS58_PREFIX = 42;

/** A hotkey that can sign. The secret stays inside: printing or logging the object shows the address only. */
export interface Hotkey {
  /** SS58 address with prefix 42 */
  readonly address: string;
  /** 32 bytes */
  readonly publicKey: Uint8Array;
  /** @returns 64 bytes, sr25519 with signing context "substrate"; randomised, so two signatures of one message differ */
  sign(message: string | Uint8Array): Uint8Array;
}

/** Beginnings of the encrypted forms that Bittensor writes for coldkeys: NaCl, Ansible vault, Fernet. */
const ENCRYPTED = ['$NACL', '$ANSIBLE_VAULT', 'gAAAAA'];

function hotkeyFromSeed(seed: Uint8Array): Hotkey {
  const pair = sr25519PairFromSeed(seed);
  const address = encodeAddress(pair.publicKey, SS58_PREFIX);
  const sign = (message: string | Uint8Array): Uint8Array =>
    sr25519Sign(typeof message === 'string' ? Buffer.from(message, 'utf8') : message, pair);
  // Not enumerable: a logger that walks the object finds no secret, since the secret lives in the closure only.
  return Object.freeze({ address, publicKey: pair.publicKey, sign });
}

/**
 * @param phrase 12 to 24 words of the BIP-39 English list; no derivation path
 * @throws BadInputError when the words are no valid phrase; the words are not repeated in the message
 */
export async function hotkeyFromMnemonic(phrase: string): Promise<Hotkey> {
  await cryptoWaitReady();
  if (!mnemonicValidate(phrase))
    throw new BadInputError(
      'The secret phrase is not a valid BIP-39 phrase (12 to 24 English words with a checksum). Nothing was changed.',
    );
  return hotkeyFromSeed(mnemonicToMiniSecret(phrase));
}

/**
 * Makes a new hotkey and writes its file, mode 0600, whole or not at all. An existing file is never touched.
 * The format is Bittensor's: `btcli` and `bittensor_wallet` read it as an unencrypted hotkey.
 * @throws BadInputError when the file exists already
 */
export async function createHotkey(file: string): Promise<Hotkey> {
  await cryptoWaitReady();
  const phrase = mnemonicGenerate(12);
  const seed = mnemonicToMiniSecret(phrase);
  const hotkey = hotkeyFromSeed(seed);
  const publicKey = u8aToHex(hotkey.publicKey);
  const text = `${JSON.stringify({ accountId: publicKey, publicKey, secretPhrase: phrase, secretSeed: u8aToHex(seed), ss58Address: hotkey.address })}\n`;
  await fs.mkdir(path.dirname(file), { recursive: true, mode: 0o700 });
  const aside = path.join(path.dirname(file), `.tmp-${process.pid}-${randomBytes(6).toString('hex')}`);
  try {
    const handle = await fs.open(aside, 'wx', 0o600);
    try {
      await handle.chmod(0o600);
      await handle.writeFile(text);
      await handle.sync();
    } finally {
      await handle.close();
    }
    // A link fails where a rename would replace: of two creators one wins and the other says so.
    await fs.link(aside, file);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') {
      throw new BadInputError(
        `${file} exists already and was kept as it is: a key is never overwritten. Load it, or give another file name.`,
      );
    }
    throw error;
  } finally {
    await fs.rm(aside, { force: true });
  }
  return hotkey;
}

/**
 * Reads a hotkey file. The secret is taken from `secretPhrase` or `secretSeed` and must fit `ss58Address`.
 * @throws BadInputError for a missing or encrypted file, a coldkey, a public key only, or a secret that does not fit its address
 */
export async function loadHotkey(file: string): Promise<Hotkey> {
  await cryptoWaitReady();
  let text: string;
  try {
    text = await fs.readFile(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT')
      throw new BadInputError(`There is no key file ${file}. Nothing was changed. Make one with createHotkey, or give the right path.`);
    throw new BadInputError(`The key file ${file} cannot be read: ${(error as Error).message}. Nothing was changed.`);
  }
  const refuse = (why: string): never => {
    throw new BadInputError(`${file} ${why} The file was left as it is.`);
  };
  if (/^coldkey/i.test(path.basename(file)))
    refuse('is named as a coldkey. A coldkey holds the funds and must never be on a miner: give the hotkey file.');
  if (ENCRYPTED.some((prefix) => text.startsWith(prefix))) {
    refuse(
      'is encrypted, as coldkeys are. A miner signs without a person beside it and needs an unencrypted hotkey; a coldkey must never be on a miner.',
    );
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    refuse('is not a JSON key file.');
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) refuse('is not a JSON key file: an object was expected.');
  const fields = value as Record<string, unknown>;
  const text_ = (name: string): string | null => {
    const found = fields[name];
    if (found === undefined || found === null || found === '') return null;
    return typeof found === 'string' ? found : refuse(`has a field ${name} that is no text.`);
  };
  const phrase = text_('secretPhrase');
  const seedHex = text_('secretSeed');
  const address = text_('ss58Address');
  if (phrase === null && seedHex === null) {
    refuse(
      address === null
        ? 'has neither secretPhrase nor secretSeed.'
        : 'holds a public key only (like coldkeypub.txt): it cannot sign. Give the hotkey file.',
    );
  }
  let seed: Uint8Array;
  if (phrase !== null) {
    if (!mnemonicValidate(phrase)) refuse('has a secretPhrase that is no valid BIP-39 phrase.');
    seed = mnemonicToMiniSecret(phrase);
    if (seedHex !== null && seedHex.toLowerCase() !== u8aToHex(seed)) refuse('has a secretSeed that does not belong to its secretPhrase.');
  } else {
    const hex = seedHex?.startsWith('0x') ? seedHex : `0x${seedHex ?? ''}`;
    if (!isHex(hex, 256)) refuse('has a secretSeed that is not 32 bytes in hex.');
    seed = hexToU8a(hex);
  }
  const hotkey = hotkeyFromSeed(seed);
  if (address !== null && address !== hotkey.address) refuse(`says ss58Address ${address}, but its secret belongs to ${hotkey.address}.`);
  return hotkey;
}

/**
 * Whether others than the owner may read or change a key file. Windows has other means than modes: never there.
 * @returns what to tell the operator, with what mends it; null: all is well
 */
export async function readableByOthers(file: string): Promise<string | null> {
  if (process.platform === 'win32') return null;
  const mode = (await fs.stat(file)).mode & 0o777;
  return (mode & 0o077) === 0
    ? null
    : `other users of this machine may use the key file ${file} (mode ${mode.toString(8).padStart(4, '0')}): chmod 600 ${file}`;
}

/**
 * Where Bittensor keeps a wallet's hotkey: `<path>/<name>/hotkeys/<hotkey>`, by default in ~/.bittensor/wallets, `default`
 * and `default`.
 * @throws BadInputError for a name that is no plain folder or file name
 */
export function walletHotkeyFile(wallet: { name?: string | undefined; hotkey?: string | undefined; path?: string | undefined }): string {
  const plain = (what: string, value: string): string => {
    if (!/^[^/\\\0]+$/.test(value) || value === '.' || value === '..')
      throw new BadInputError(
        `The ${what} "${value}" is no plain name. Nothing was started. Give the name as btcli shows it; folders go into --wallet-path.`,
      );
    return value;
  };
  const root = (wallet.path ?? path.join(os.homedir(), '.bittensor', 'wallets')).replace(/^~(?=\/|$)/, os.homedir());
  return path.join(root, plain('wallet name', wallet.name ?? 'default'), 'hotkeys', plain('hotkey name', wallet.hotkey ?? 'default'));
}

/** Loads the file, or makes it when there is none. @throws BadInputError as `loadHotkey` does */
export async function loadOrCreateHotkey(file: string): Promise<Hotkey> {
  const there = await fs.access(file).then(
    () => true,
    () => false,
  );
  if (!there) {
    try {
      return await createHotkey(file);
    } catch (error) {
      // Another process made it in the meantime: that one holds.
      if (!(error instanceof BadInputError)) throw error;
    }
  }
  return loadHotkey(file);
}
