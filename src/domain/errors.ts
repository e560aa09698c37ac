/** Errors with a name that workflows and the command line decide on. Messages say what happened, what was kept, and what to do. */

/** Bad input of the operator or a data set; retrying cannot mend it. */
export class BadInputError extends Error {
  override name = 'BadInputError';
}
/** A derived image would carry evidence from one pool into another. */
export class LeakError extends Error {
  override name = 'LeakError';
}
export class ObjectMissingError extends Error {
  override name = 'ObjectMissingError';
}
/** Bytes do not hash to their name. */
export class ObjectCorruptError extends Error {
  override name = 'ObjectCorruptError';
}
/** Another writer moved the champion first. */
export class StaleGenerationError extends Error {
  override name = 'StaleGenerationError';
}
/** The month's budget does not cover the job; nothing was bought. */
export class BudgetExceededError extends Error {
  override name = 'BudgetExceededError';
}
/** A GPU job ended in a way that retrying cannot mend. */
export class JobFailedError extends Error {
  override name = 'JobFailedError';
}
/** Names of errors that no retry mends: given to every retry policy as `nonRetryableErrorTypes`. */
export const NON_RETRYABLE = [
  'BadInputError',
  'LeakError',
  'ObjectCorruptError',
  'StaleGenerationError',
  'BudgetExceededError',
  'JobFailedError',
  'ZodError',
];
