/** Takes a person's answers to the review list (`flywheel review --answers FILE`), and tells the turn that waits for them. */
import { getExternalWorkflowHandle, log } from '@temporalio/workflow';
import type { ReviewsTaken } from '../activities/index.js';
import { reviewsAnswered } from './messages.js';
import { quick } from './proxies.js';

export interface AnswerReviewsInput {
  /** object of the answers, a row an image */
  answers: string;
  /** a turn that waits goes on even where images of its list are unanswered */
  goOn: boolean;
}

export async function answerReviews(input: AnswerReviewsInput): Promise<ReviewsTaken> {
  // Catalog first: whatever is lost after this line, the answers count in the next snapshot.
  const taken = await quick.answerReviews.executeWithOptions({ summary: "a person's answers become verified labels" }, [
    { answers: input.answers },
  ]);
  for (const turn of input.goOn ? taken.turns : taken.finished) {
    try {
      await getExternalWorkflowHandle(turn).signal(reviewsAnswered);
    } catch (error) {
      log.info('the turn has ended already: the answers count in the next one', { turn, error: String(error) });
    }
  }
  return taken;
}
