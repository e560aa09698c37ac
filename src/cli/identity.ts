/**
 * Whose miner this is: the operator's hotkey and metagraph where they are configured, otherwise keys made for this home
 * and a metagraph that lists the built-in validator, so that the whole loop runs with no chain at all.
 */
import { existsSync } from 'node:fs';
import { loadHotkey, loadOrCreateHotkey, type Hotkey } from '../platform/bittensor/keys.js';
import { writeJsonAtomic } from '../platform/fsutil.js';
import type { HomePaths } from '../platform/home.js';

export interface Identity {
  hotkey: Hotkey;
  metagraphFile: string;
  /** true: made for development in this home */
  development: boolean;
}

const named = (name: string): string | null => {
  const value = process.env[name];
  return value === undefined || value === '' ? null : value;
};

/** Address of the hotkey of this home, without making one. @returns null when there is none yet @throws BadInputError as `loadHotkey` does */
export async function ownHotkey(paths: HomePaths): Promise<string | null> {
  const file = named('FLYWHEEL_HOTKEY_FILE') ?? paths.minerKey;
  return existsSync(file) ? (await loadHotkey(file)).address : null;
}

/**
 * FLYWHEEL_HOTKEY_FILE (an unencrypted hotkey file as btcli writes it) and FLYWHEEL_METAGRAPH_FILE name the operator's own.
 * @throws BadInputError when a file named there cannot be used
 */
export async function ensureIdentity(paths: HomePaths): Promise<Identity> {
  const ownKey = named('FLYWHEEL_HOTKEY_FILE');
  const hotkey = ownKey === null ? await loadOrCreateHotkey(paths.minerKey) : await loadHotkey(ownKey);
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
  return { hotkey, metagraphFile: ownMetagraph ?? paths.metagraph, development: ownKey === null };
}
