/** `model_card.json` of a published model, as the subnet's application server checks it. */
import { z } from 'zod';
import { BadInputError } from './errors.js';

const ALPHABET = '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz';
/** Bittensor's SS58 network prefix. */
const SS58_PREFIX = 42;
/** prefix, 32 bytes of public key, 2 bytes of checksum */
const SS58_BYTES = 35;

/**
 * Shape of a Bittensor SS58 address: base58, 35 bytes, network prefix 42. The checksum needs blake2b and is verified
 * where keys are loaded.
 */
export function looksLikeSs58(address: string): boolean {
  if (address.length < 40 || address.length > 60) return false;
  let value = 0n;
  for (const char of address) {
    const digit = ALPHABET.indexOf(char);
    if (digit < 0) return false;
    value = value * 58n + BigInt(digit);
  }
  const hex = value.toString(16);
  return Math.ceil(hex.length / 2) === SS58_BYTES && value >> BigInt(8 * (SS58_BYTES - 1)) === BigInt(SS58_PREFIX);
}

/** Version X.Y.Z of whole numbers without leading zeros. */
const Version = z.string().regex(/^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$/, 'a version X.Y.Z of whole numbers');

export const ModelCard = z
  .object({
    model_name: z.string().trim().min(1),
    description: z.string().trim().min(1),
    version: Version,
    /** SS58 address of the hotkey that signs the registration */
    submitted_by: z.string().refine(looksLikeSs58, 'an SS58 address of a hotkey (prefix 42)'),
    /** whole seconds since the epoch */
    submission_time: z
      .number()
      .int()
      .positive()
      // Milliseconds given by mistake would lie some 50,000 years ahead.
      .max(100_000_000_000, 'seconds since the epoch, not milliseconds'),
  })
  .strict();
export type ModelCard = z.infer<typeof ModelCard>;

/** @param submissionTimeMs milliseconds since the epoch @throws BadInputError naming each field that is wrong */
export function buildModelCard(input: {
  modelName: string;
  description: string;
  version: string;
  submittedBy: string;
  submissionTimeMs: number;
}): ModelCard {
  const card = ModelCard.safeParse({
    model_name: input.modelName,
    description: input.description,
    version: input.version,
    submitted_by: input.submittedBy,
    submission_time: Math.floor(input.submissionTimeMs / 1000),
  });
  if (!card.success) {
    throw new BadInputError(
      `model_card.json would be refused: ${card.error.issues.map((i) => `${i.path.join('.')}: ${i.message}`).join('; ')}. Nothing was published.`,
    );
  }
  return card.data;
}

/** The next version to publish: 1.0.0 first, then a new minor number for every retrain. @throws BadInputError for a previous one that is no X.Y.Z */
export function nextVersion(previous: string | null): string {
  if (previous === null) return '1.0.0';
  if (!Version.safeParse(previous).success) throw new BadInputError(`"${previous}" is no version X.Y.Z; the next one cannot be told`);
  const [major, minor] = previous.split('.').map(Number);
  return `${major}.${(minor as number) + 1}.0`;
}
