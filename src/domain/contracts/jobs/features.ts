/** Jobs on features of images: neighbours, label, embed. */
import { z } from 'zod';
import { Digest, Metrics } from '../common.js';
import { MemberSpec } from './training.js';

/** Nearest neighbours by embedding: an exact batched matrix product over cached features. */
export const NeighboursInput = z.object({
  queries: Digest,
  corpus: Digest,
  k: z.number().int().positive(),
  member: MemberSpec,
});
export const NeighboursOutput = z.object({
  /** JSON Lines of {query: digest, neighbours: [{digest, score}]}; score is cosine similarity, best first; the query itself is left out */
  neighbours: Digest,
  queries: z.number().int(),
  corpus: z.number().int(),
});

/** Votes of two members, each from the fold that was not trained on the image's own group. */
export const LabelInput = z.object({
  candidates: Digest,
  /** labelled manifest that the voting heads are trained on; a `test` row is refused */
  train: Digest,
  members: z.array(MemberSpec).min(2),
  folds: z.number().int().min(2),
  seed: z.number().int().min(0),
});
export const LabelOutput = z.object({
  /** JSON Lines of {digest, votes: [{member, p}]} sorted by digest */
  votes: Digest,
  count: z.number().int(),
  /** quality of each voter on the training images it was held out from */
  outOfFold: z.array(z.object({ member: z.string(), metrics: Metrics })),
  /** phi correlation of the two voters' errors, out of fold */
  errorCorrelation: z.number(),
});

/** Features of a manifest's images by one backbone, as an object. */
export const EmbedInput = z.object({
  manifest: Digest,
  member: MemberSpec,
  /** challenge views of each image beside the image itself */
  views: z.number().int().min(0).default(0),
  /** rows scaled to length 1, so that a dot product is the cosine similarity */
  unit: z.boolean().default(true),
});
export const EmbedOutput = z.object({
  /** safetensors: `embeddings` float32 [n, 1 + views, d]; rows in the order of `index` */
  embeddings: Digest,
  /** JSON Lines of {digest}, sorted */
  index: Digest,
  count: z.number().int(),
  dimensions: z.number().int(),
  /** names the feature space: embeddings compare only where it is equal */
  space: z.string(),
});
