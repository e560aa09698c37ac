/** What `flywheel doctor` says of the miner's hotkey: which it is, and whether others on the machine could read it. */
import { existsSync } from 'node:fs';
import path from 'node:path';
import { hotkeyFromMnemonic, loadHotkey, readableByOthers } from '../platform/bittensor/keys.js';
import type { Finding } from './doctor.js';
import { namedKey } from './identity.js';

const NAME = 'Hotkey';

/** The miner's hotkey as the environment names it, else the one of the home. @returns null when there is none yet */
export async function minerHotkey(home: string): Promise<{ address: string; file: string | null } | null> {
  const named = namedKey();
  if (named !== null && 'words' in named) return { address: (await hotkeyFromMnemonic(named.words)).address, file: null };
  const file = named?.file ?? path.join(home, 'keys', 'miner.json');
  if (named === null && !existsSync(file)) return null;
  return { address: (await loadHotkey(file)).address, file };
}

export async function hotkeyFinding(home: string): Promise<Finding> {
  const finding = (state: Finding['state'], detail: string): Finding => ({ name: NAME, state, version: null, detail });
  try {
    const key = await minerHotkey(home);
    if (key === null) return finding('later', '`flywheel up` makes one for development; FLYWHEEL_HOTKEY_FILE names your own');
    const warning = key.file === null ? null : await readableByOthers(key.file);
    return warning === null
      ? finding('found', `${key.address} (${key.file ?? 'FLYWHEEL_HOTKEY_MNEMONIC'})`)
      : finding('warning', `${key.address}: ${warning}`);
  } catch (error) {
    return finding('missing', (error as Error).message);
  }
}
