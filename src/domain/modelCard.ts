/** `model_card.json` of a published model, as the subnet's application server checks it. */
import { z } from 'zod';
import type { Bundle } from './contracts/bundle.js';
import { Digest, GateResult, Metrics, type TruthKind, type ImageRow } from './contracts/common.js';
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

/** What stands behind the model, for whoever downloads it. The subnet reads the fields above it alone. */
export const ModelCardDetails = z.object({
  /** SHA-256 of bundle.json; of the manifest learned from; of the images, labels and weights in it; of the parent's bundle */
  digests: z.object({ bundle: Digest, snapshot: Digest, trained: Digest, data: Digest.nullable(), parent: Digest.nullable() }),
  /** photographs by source, with the licences that the sources gave them under; `null` stands for images without one */
  sources: z.array(
    z.object({
      source: z.string(),
      licences: z.array(z.string().nullable()),
      images: z.number().int(),
      truth: z.record(z.string(), z.number().int()),
    }),
  ),
  /** images made from them, by generator */
  synthetic: z.record(z.string(), z.number().int()),
  members: z.array(
    z.object({
      name: z.string(),
      backbone: z.string(),
      weight: z.number(),
      parameters: z.number().int(),
      precision: z.string(),
      /** what the precision costs against fp32; null: not measured, or fp32 */
      loss: z.object({ n: z.number().int(), accuracy: z.number(), reward: z.number() }).nullable(),
    }),
  ),
  /** how the precisions were chosen, and what the ensemble loses against fp32; null: an older bundle */
  export: z
    .object({ precision: z.string(), loss: z.object({ n: z.number().int(), accuracy: z.number(), reward: z.number() }).nullable() })
    .nullable(),
  metrics: z.object({ validate: Metrics }),
  gates: z.array(GateResult),
});
export type ModelCardDetails = z.infer<typeof ModelCardDetails>;

/**
 * @param images rows of the training snapshot; empty where it is gone
 * @param licenceOf what the source of an image said; null where it said nothing
 */
export function modelCardDetails(input: {
  bundle: Bundle;
  digest: Digest;
  data: Digest | null;
  images: readonly Pick<ImageRow, 'digest' | 'source' | 'provider' | 'truth'>[];
  licenceOf: (digest: Digest) => string | null;
  gates: readonly GateResult[];
}): ModelCardDetails {
  const { bundle, images } = input;
  const photographs = images.filter((row) => row.provider === null);
  const count = (keys: readonly string[]): Record<string, number> =>
    Object.fromEntries([...new Set(keys)].sort().map((key) => [key, keys.filter((other) => other === key).length]));
  return {
    digests: {
      bundle: input.digest,
      snapshot: bundle.training.snapshot,
      trained: bundle.training.trained,
      data: input.data,
      parent: bundle.training.parent,
    },
    sources: [...new Set(photographs.map((row) => row.source))].sort().map((source) => {
      const rows = photographs.filter((row) => row.source === source);
      const licences = [...new Set(rows.map((row) => input.licenceOf(row.digest)))];
      return {
        source,
        licences: licences.sort((a, b) => (a ?? '').localeCompare(b ?? '', 'en')),
        images: rows.length,
        truth: count(rows.map((row) => row.truth satisfies TruthKind)),
      };
    }),
    synthetic: count(images.flatMap((row) => (row.provider === null ? [] : [row.provider]))),
    members: bundle.members.map((member) => ({
      name: member.name,
      backbone: member.backbone,
      weight: member.weight,
      parameters: member.parameters,
      precision: member.precision ?? 'fp32',
      loss: member.variants?.find((variant) => variant.chosen && variant.precision !== 'fp32')?.loss ?? null,
    })),
    export: bundle.export ? { precision: bundle.export.precision, loss: bundle.export.loss } : null,
    metrics: { validate: bundle.metrics.validate },
    gates: [...input.gates],
  };
}

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
    details: ModelCardDetails.optional(),
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
  details?: ModelCardDetails;
}): ModelCard {
  const card = ModelCard.safeParse({
    model_name: input.modelName,
    description: input.description,
    version: input.version,
    submitted_by: input.submittedBy,
    submission_time: Math.floor(input.submissionTimeMs / 1000),
    ...(input.details ? { details: input.details } : {}),
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
