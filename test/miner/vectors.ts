/**
 * Golden vectors made with bittensor 9.12.2 itself: test keys (never funded), signatures by its own `Keypair`, and what its
 * `verify` says of each.
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

interface Vectors {
  keys: Record<'miner' | 'validator' | 'nonvalidator' | 'stranger', { mnemonic: string; ss58: string; public_key: string }>;
  signatures: {
    signer: 'miner' | 'validator' | 'nonvalidator' | 'stranger';
    message: string;
    signature: string;
    bittensor_verify: boolean;
    why?: string;
  }[];
  ss58_invalid: { input: string; bittensor: string }[];
  body_hash: { required_hash_fields: string[]; hash: string }[];
}

export const VECTORS = JSON.parse(
  readFileSync(path.join(path.dirname(fileURLToPath(import.meta.url)), '..', 'fixtures', 'bittensor-9.12.2.json'), 'utf8'),
) as Vectors;
export const TEST_KEYS = VECTORS.keys;
