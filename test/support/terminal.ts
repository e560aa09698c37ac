/** What a command writes to the terminal, caught by spies that vitest restores. */
import { vi, type MockInstance } from 'vitest';

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
