/** How commands end: one table of exit codes, and the errors behind them. */
import { setTimeout as sleep } from 'node:timers/promises';

/** Exit codes of `flywheel`; printed by `flywheel --help`. */
export const EXIT = {
  /** done (also when the verdict was to keep the champion) */
  ok: 0,
  /** a fault of the program: please report it */
  unexpected: 1,
  /** wrong usage, configuration or data */
  badInput: 2,
  /** a stage of the turn failed; its name and the link to Temporal are printed */
  stageFailed: 3,
  /** a service or prerequisite is missing: Temporal, Python, a port */
  unavailable: 4,
  /** another instance holds the home */
  busy: 5,
  /** open workflows or the catalog do not fit this version's code */
  misfit: 6,
  /** SIGINT (Ctrl-C) before the work was done */
  interrupted: 130,
  /** SIGTERM before the work was done */
  terminated: 143,
} as const;

export const EXIT_HELP = `
Exit codes:
  0    done (also when the verdict is to keep the champion)
  1    unexpected error
  2    wrong usage, configuration or data
  3    a stage of the turn failed
  4    a service or prerequisite is missing (see \`flywheel doctor\`)
  5    another instance holds the home folder
  6    open workflows or the catalog do not fit this version; nothing was started
  130  interrupted by Ctrl-C, 143 by SIGTERM`;

/** A child process ended for good before it served; its own exit code says why. */
export class ChildFailedError extends Error {
  override name = 'ChildFailedError';
  constructor(
    message: string,
    readonly exitCode: number,
  ) {
    super(message);
  }
}

/** The operator ended it. */
export class InterruptedError extends Error {
  override name = 'InterruptedError';
  constructor(readonly signal: 'SIGINT' | 'SIGTERM') {
    super(`Interrupted by ${signal}. What was done is kept: the next start goes on from there.`);
  }
}

const BY_NAME: Record<string, number> = {
  BadInputError: EXIT.badInput,
  LeakError: EXIT.badInput,
  ObjectCorruptError: EXIT.badInput,
  ObjectMissingError: EXIT.badInput,
  CommanderError: EXIT.badInput,
  ZodError: EXIT.badInput,
  StageFailedError: EXIT.stageFailed,
  ServiceUnavailableError: EXIT.unavailable,
  StorageFullError: EXIT.unavailable,
  PortError: EXIT.unavailable,
  HomeLockedError: EXIT.busy,
  CatalogLockedError: EXIT.busy,
  OpenHistoryMismatchError: EXIT.misfit,
  CatalogTooNewError: EXIT.misfit,
};

/** @returns the exit code of an error; by its name, so that it holds across module copies and processes */
export function exitCodeOf(error: unknown): number {
  if (error instanceof ChildFailedError) return error.exitCode;
  if (error instanceof InterruptedError) return error.signal === 'SIGINT' ? EXIT.interrupted : EXIT.terminated;
  return error instanceof Error ? (BY_NAME[error.name] ?? EXIT.unexpected) : EXIT.unexpected;
}

/** Stage and link of a failed stage (thrown by the turn's client), null for any other error. */
function failedStage(error: Error): { stage: string; link: string | null } | null {
  if (error.name !== 'StageFailedError') return null;
  const { stage, link } = error as Error & { stage?: unknown; link?: unknown };
  return { stage: String(stage), link: typeof link === 'string' ? link : null };
}

/** What the operator reads. The stack only for a fault of the program. */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const lines = [
    exitCodeOf(error) === EXIT.unexpected || process.env.FLYWHEEL_DEBUG === '1' ? (error.stack ?? error.message) : error.message,
  ];
  const failed = failedStage(error);
  if (failed !== null) {
    lines.unshift(`Stage "${failed.stage}" failed; what was done before it is kept.`);
    lines.push(failed.link === null ? 'Look for the workflow in Temporal.' : `See ${failed.link}`);
  }
  return lines.join('\n');
}

/** As JSON, for --json. */
export function errorJson(error: unknown): Record<string, unknown> {
  const named = error instanceof Error ? error : new Error(String(error));
  return { error: { name: named.name, message: named.message, ...failedStage(named) }, exitCode: exitCodeOf(error) };
}

/** Writes and waits until it is out, so that an exit right after loses nothing. */
export async function writeOut(stream: NodeJS.WriteStream, text: string): Promise<void> {
  await Promise.race([
    new Promise<void>((resolve) => {
      stream.write(text, () => {
        resolve();
      });
    }),
    sleep(2_000, undefined, { ref: false }),
  ]);
}
