/** The review list: what a person says of an image becomes a verified label. */
import { z } from 'zod';
import { Digest, Label } from '../domain/contracts/common.js';
import type { ActivityDeps } from './deps.js';

/** One answer of a person, a row of the object that `flywheel review --answers` stores. */
export const ReviewAnswer = z.object({ digest: Digest, label: Label });
export type ReviewAnswer = z.infer<typeof ReviewAnswer>;

/** Digests shown of those that nobody asked about. */
const UNASKED_SHOWN = 10;

export interface ReviewsTaken {
  /** answers that said something new */
  taken: number;
  /** answers that were known already */
  known: number;
  /** images of the file that are on no review list; nothing was learned of them */
  notAsked: number;
  notAskedFirst: Digest[];
  /** images that still wait for an answer, of all turns */
  open: number;
  /** turns of these images that have no open image left */
  finished: string[];
  /** all turns of these images */
  turns: string[];
}

export function reviewActivities(deps: ActivityDeps) {
  const { catalog, objects } = deps;

  return {
    /** Takes a person's answers. Done twice it is done once, and says the same of the turns. */
    async answerReviews(input: { answers: Digest }): Promise<ReviewsTaken> {
      const answers = await objects.getJsonl(input.answers, (row) => ReviewAnswer.parse(row));
      const asked = new Map((await catalog.reviews()).map((item) => [item.digest, item]));
      const at = deps.clock();
      let taken = 0;
      const notAsked: Digest[] = [];
      const turns = new Set<string>();
      for (const { digest, label } of answers) {
        const item = asked.get(digest);
        if (!item) {
          notAsked.push(digest);
          continue;
        }
        turns.add(item.turn);
        if (await catalog.answerReview(digest, label, at)) taken += 1;
      }
      const open = await catalog.reviews({ open: true });
      const waiting = new Set(open.map((item) => item.turn));
      return {
        taken,
        known: answers.length - notAsked.length - taken,
        notAsked: notAsked.length,
        notAskedFirst: notAsked.slice(0, UNASKED_SHOWN),
        open: open.length,
        finished: [...turns].filter((turn) => !waiting.has(turn)).sort(),
        turns: [...turns].sort(),
      };
    },
  };
}
