/** What a command writes to the terminal, caught by spies that vitest restores. */
import { afterEach, beforeEach, vi, type MockInstance } from 'vitest';

/** A `write` of a stream that hands its text to `add` and calls back, as the real one does. */
function capture(add: (text: string) => void) {
  return (text: unknown, ...more: unknown[]): boolean => {
    add(String(text));
    (more.find((item) => typeof item === 'function') as (() => void) | undefined)?.();
    return true;
  };
}

/** @returns the spies, for whoever restores them alone */
export function captureTerminal(stdout: (text: string) => void, stderr: (text: string) => void): MockInstance[] {
  return [
    vi.spyOn(process.stdout, 'write').mockImplementation(capture(stdout)),
    vi.spyOn(process.stderr, 'write').mockImplementation(capture(stderr)),
  ];
}

/** What the commands of each test of the file write; the terminal and the exit code are as before after each. */
export function caughtTerminal(): { readonly out: string; readonly err: string } {
  const caught = { out: '', err: '' };
  beforeEach(() => {
    Object.assign(caught, { out: '', err: '' });
    captureTerminal(
      (text) => (caught.out += text),
      (text) => (caught.err += text),
    );
  });
  afterEach(() => {
    vi.restoreAllMocks();
    process.exitCode = undefined;
  });
  return caught;
}
