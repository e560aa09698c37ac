/** Files through which the lifecycle and the miner speak: the pointer, the shadow order, the journal. */
import { z } from 'zod';
import { Digest } from './common.js';

/** `<home>/champion.json`: written by the lifecycle only, by rename; the miner refuses an older generation. */
export const ChampionPointer = z.object({
  generation: z.number().int().min(1),
  digest: Digest,
  previous: Digest.nullable(),
});
export type ChampionPointer = z.infer<typeof ChampionPointer>;

/** `<home>/shadow.json`: absent when no trial runs. */
export const ShadowOrder = z.object({
  trial: z.string(),
  digest: Digest,
  /** share of requests that also run on the candidate, chosen by hash of the request, [0, 1] */
  share: z.number().min(0).max(1),
  /** share of requests that the candidate *answers* (canary), chosen by hash likewise, [0, 1]; absent: none */
  canary: z.number().min(0).max(1).optional(),
});
export type ShadowOrder = z.infer<typeof ShadowOrder>;

/** One line of `<home>/journal/segments/*.jsonl`; image bytes are at `<home>/journal/images/<first two hex>/<digest>`. */
export const JournalRecord = z.object({
  v: z.literal(1),
  /** unique: request uuid hash, nonce and hotkey hashed together */
  id: z.string(),
  /** milliseconds since the epoch, when the answer was sent */
  at: z.number(),
  image: Digest,
  bytes: z.number().int(),
  prediction: z.number().min(0).max(1),
  /** calibrated ensemble apart: each member's own probability */
  votes: z.record(z.string(), z.number()),
  /** request received to answer ready, ms */
  latencyMs: z.number(),
  validator: z.string(),
  /** SHA-256 of the uuid that the validator's dendrite gave itself: tells its processes apart. Absent in old records */
  uuidHash: z.string().optional(),
  model: Digest,
  generation: z.number().int(),
  shadow: z
    .object({
      trial: z.string(),
      model: Digest,
      prediction: z.number().nullable(),
      votes: z.record(z.string(), z.number()),
      latencyMs: z.number(),
      error: z.string().nullable(),
    })
    .nullable(),
});
export type JournalRecord = z.infer<typeof JournalRecord>;

/** What the miner answers on its loopback control port at GET /readyz. */
export const MinerStatus = z.object({
  ready: z.boolean(),
  hotkey: z.string(),
  url: z.string(),
  pid: z.number().int(),
  serving: ChampionPointer.nullable(),
  shadow: ShadowOrder.nullable(),
  /** shadow candidate loaded and answering */
  shadowReady: z.boolean(),
  /** the previous champion, kept loaded so that a rollback is immediate; null when none is */
  warm: Digest.nullable().optional(),
  /** last reason a pointer or shadow order was refused, null when none */
  refused: z.string().nullable(),
  answered: z.number().int(),
  journalled: z.number().int(),
  journalDropped: z.number().int(),
  /** why the journal does not write at the moment (the disk is full), null when it does */
  journalPaused: z.string().nullable().default(null),
  /** why the metagraph cannot be renewed, null when all is well; the last good list holds */
  metagraphProblem: z.string().nullable().default(null),
  /** how the address that validators are sent to stands on the chain; null when nothing is advertised */
  chainAddress: z.string().nullable().default(null),
  /** how far validators' clocks are ahead of this machine's, ms; null without genuine requests of late */
  clockSkewMs: z.number().nullable().default(null),
});
export type MinerStatus = z.infer<typeof MinerStatus>;
