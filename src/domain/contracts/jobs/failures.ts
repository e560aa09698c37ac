/** How a job may fail, and what that means for whoever started it. */
import { z } from 'zod';

/**
 * What a failure means for whoever started the job.
 * `bad-input`: never tried again. `out-of-memory`: tried again with a smaller batch. `infrastructure`: tried again, elsewhere
 * where there is an elsewhere. `interrupted`: a checkpoint was written; tried again to go on.
 */
export const JobErrorKind = z.enum(['bad-input', 'out-of-memory', 'infrastructure', 'interrupted']);
export type JobErrorKind = z.infer<typeof JobErrorKind>;

/**
 * Every way `flywheel-job` may fail, with its exit code. Python raises them (`flywheel_jobs/errors.py`; a test compares the two
 * tables through `schema/job-failures.json`). The first four are the general case of their kind.
 */
export const JOB_FAILURES = {
  'bad-input': { exit: 65, kind: 'bad-input', what: 'the data is wrong' },
  'out-of-memory': { exit: 76, kind: 'out-of-memory', what: 'out of memory; a smaller batch may fit' },
  infrastructure: { exit: 71, kind: 'infrastructure', what: 'store out of reach, unreadable object, fault of the job' },
  interrupted: { exit: 75, kind: 'interrupted', what: 'SIGTERM; a checkpoint was written' },
  'wrong-spec': { exit: 64, kind: 'bad-input', what: 'spec unreadable, of another version, or outside the contract' },
  'unknown-backbone': { exit: 66, kind: 'bad-input', what: 'timm knows no such model' },
  'missing-weights': { exit: 67, kind: 'bad-input', what: 'no such file or package of weights, or they do not fit the backbone' },
  'corrupt-image': { exit: 68, kind: 'bad-input', what: 'an image can not be decoded' },
  'empty-split': { exit: 69, kind: 'bad-input', what: 'a manifest or one of its pools holds nothing' },
  'one-class': { exit: 70, kind: 'bad-input', what: 'a pool holds one class only' },
  'not-finite': { exit: 72, kind: 'bad-input', what: 'loss or result is NaN or infinite' },
  'disk-full': { exit: 73, kind: 'infrastructure', what: 'no space left on the device' },
  'weights-out-of-reach': { exit: 74, kind: 'infrastructure', what: 'the hub of the weights can not be reached' },
  'parity-lost': { exit: 77, kind: 'bad-input', what: 'the exported graph and PyTorch disagree' },
  'loss-above-limit': { exit: 78, kind: 'bad-input', what: 'the precision asked for loses more than its limit' },
  'one-image-too-big': { exit: 79, kind: 'out-of-memory', what: 'out of memory even at batch 1: only a bigger machine helps' },
} as const satisfies Record<string, { exit: number; kind: JobErrorKind; what: string }>;
export type JobFailureReason = keyof typeof JOB_FAILURES;
export const JobFailureReason = z.enum(Object.keys(JOB_FAILURES) as [JobFailureReason, ...JobFailureReason[]]);

/** The general exit codes; the rest are in JOB_FAILURES. */
export const JOB_EXIT = {
  ok: 0,
  badInput: JOB_FAILURES['bad-input'].exit,
  outOfMemory: JOB_FAILURES['out-of-memory'].exit,
  infrastructure: JOB_FAILURES.infrastructure.exit,
  interrupted: JOB_FAILURES.interrupted.exit,
} as const;

/** A shell's code for a process ended by SIGKILL: nobody here sends it to a job alone, but a kernel short of memory does. */
export const KILLED = 137;

/** Beyond this division of its batches a job that is out of memory is not tried again. */
export const MAX_BATCH_DIVISOR = 64;

/** The failure behind an exit code; null when it is none of the contract (a signal, a shell's own code). */
export function jobFailure(exitCode: number | null): { reason: JobFailureReason; kind: JobErrorKind } | null {
  for (const [reason, { exit, kind }] of Object.entries(JOB_FAILURES))
    if (exit === exitCode) return { reason: reason as JobFailureReason, kind };
  return null;
}

/** The exit code of a failed result. Results of older jobs carry no reason. */
export function exitOf(error: { kind: JobErrorKind; reason?: JobFailureReason | undefined }): number {
  return JOB_FAILURES[error.reason ?? error.kind].exit;
}
