/**
 * Whose miner this is: the operator's hotkey and metagraph where they are configured, otherwise keys made for this home
 * and a metagraph that lists the built-in validator, so that the whole loop runs with no chain at all.
 */
import { existsSync } from 'node:fs';
import { BadInputError } from '../domain/errors.js';
import {
  hotkeyFromMnemonic,
  loadHotkey,
  loadOrCreateHotkey,
  readableByOthers,
  walletHotkeyFile,
  type Hotkey,
} from '../platform/bittensor/keys.js';
import { writeJsonAtomic } from '../platform/fsutil.js';
import type { HomePaths } from '../platform/home.js';

export interface Identity {
  hotkey: Hotkey;
  metagraphFile: string;
  /** address of the built-in validator */
  validator: string;
  /** true: made for development in this home */
  development: boolean;
  /** what the operator should know of the key's file; null: all is well */
  warning: string | null;
}

const named = (name: string): string | null => {
  const value = process.env[name];
  return value === undefined || value === '' ? null : value;
};

/** Where the operator's hotkey is, as said on the command line. */
export interface KeyOptions {
  hotkeyFile?: string;
  walletName?: string;
  walletHotkey?: string;
  walletPath?: string;
}

/**
 * Which hotkey the operator names, in this order: a file or wallet named on the command line; FLYWHEEL_HOTKEY_FILE (an
 * unencrypted hotkey file as btcli writes it); FLYWHEEL_WALLET_NAME and FLYWHEEL_WALLET_HOTKEY (Bittensor's folders); the words
 * in FLYWHEEL_HOTKEY_MNEMONIC.
 * @returns null when none is named
 * @throws BadInputError when two are named at the same level
 */
export function namedKey(options: KeyOptions = {}): { file: string } | { words: string } | null {
  const { hotkeyFile, walletName, walletHotkey, walletPath } = options;
  const wallet = walletName !== undefined || walletHotkey !== undefined || walletPath !== undefined;
  if (hotkeyFile !== undefined && wallet)
    throw new BadInputError('Two hotkeys are named: --hotkey-file and a wallet. Nothing was started. Give one of them.');
  if (hotkeyFile !== undefined) return { file: hotkeyFile };
  if (wallet) return { file: walletHotkeyFile({ name: walletName, hotkey: walletHotkey, path: walletPath }) };
  const words = named('FLYWHEEL_HOTKEY_MNEMONIC');
  const file = named('FLYWHEEL_HOTKEY_FILE');
  const [name, hotkey] = [named('FLYWHEEL_WALLET_NAME'), named('FLYWHEEL_WALLET_HOTKEY')];
  const sources = [file, name ?? hotkey, words].filter((source) => source !== null);
  if (sources.length > 1)
    throw new BadInputError(
      'The environment names several hotkeys. Nothing was started. Keep one of FLYWHEEL_HOTKEY_FILE, FLYWHEEL_WALLET_NAME with FLYWHEEL_WALLET_HOTKEY, FLYWHEEL_HOTKEY_MNEMONIC.',
    );
  if (file !== null) return { file };
  if (name !== null || hotkey !== null) return { file: walletHotkeyFile({ name: name ?? undefined, hotkey: hotkey ?? undefined }) };
  return words === null ? null : { words };
}

/**
 * The hotkey that `namedKey` finds.
 * @param forget take words out of the environment, whoever is named, so that no process started from here inherits them
 * @throws BadInputError as `namedKey`, or when the one that is named cannot be used
 */
export async function operatorHotkey(options: KeyOptions = {}, forget = false): Promise<Hotkey | null> {
  let key: ReturnType<typeof namedKey>;
  try {
    key = namedKey(options);
  } finally {
    if (forget) delete process.env.FLYWHEEL_HOTKEY_MNEMONIC;
  }
  if (key === null) return null;
  return 'file' in key ? loadHotkey(key.file) : hotkeyFromMnemonic(key.words);
}

/** Address of the hotkey of this home, without making one. @returns null when there is none yet @throws BadInputError as `operatorHotkey` does */
export async function ownHotkey(paths: HomePaths): Promise<string | null> {
  const own = await operatorHotkey();
  if (own !== null) return own.address;
  return existsSync(paths.minerKey) ? (await loadHotkey(paths.minerKey)).address : null;
}

/**
 * The operator's hotkey, else one made for this home; FLYWHEEL_METAGRAPH_FILE names the operator's own metagraph.
 * @param forget take a mnemonic out of the environment: for a process that starts none that needs it
 * @throws BadInputError when what is named there cannot be used
 */
export async function ensureIdentity(paths: HomePaths, options: KeyOptions = {}, forget = false): Promise<Identity> {
  const key = namedKey(options);
  const own = await operatorHotkey(options, forget);
  const hotkey = own ?? (await loadOrCreateHotkey(paths.minerKey));
  const validator = await loadOrCreateHotkey(paths.validatorKey);
  const ownMetagraph = named('FLYWHEEL_METAGRAPH_FILE');
  if (ownMetagraph === null) {
    await writeJsonAtomic(paths.metagraph, {
      neurons: [
        { uid: 0, hotkey: validator.address, stake: 10_000, validatorPermit: true },
        { uid: 1, hotkey: hotkey.address, stake: 0, validatorPermit: false },
      ],
    });
  }
  return {
    hotkey,
    metagraphFile: ownMetagraph ?? paths.metagraph,
    validator: validator.address,
    development: own === null,
    warning: key !== null && 'words' in key ? null : await readableByOthers(key?.file ?? paths.minerKey),
  };
}
