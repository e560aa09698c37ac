/** Runs a command to its end: output to callers line by line, a time limit, an abort that ends its children too. */
import { spawn } from 'node:child_process';
import { accessSync, constants, statSync } from 'node:fs';
import path from 'node:path';

export interface CommandResult {
  /** null when a signal ended it or it could not be started */
  code: number | null;
  /** standard output and error, in order of arrival; the last 64 kB */
  output: string;
  /** standard output alone; the last 64 kB */
  stdout: string;
  timedOut: boolean;
}

/**
 * Never throws for a failing command: look at `code`.
 * @param options.timeoutMs then the command and its children are ended; none when absent
 * @param options.onLine each line of its output as it comes
 */
export function runCommand(
  command: string,
  args: readonly string[],
  options: { cwd?: string; env?: NodeJS.ProcessEnv; timeoutMs?: number; onLine?: (line: string) => void; signal?: AbortSignal } = {},
): Promise<CommandResult> {
  return new Promise((resolve) => {
    // A process group of its own, so that compilers and installers started by it end with it.
    const child = spawn(command, args, {
      cwd: options.cwd,
      env: options.env ?? process.env,
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
    });
    let output = '';
    let stdout = '';
    let timedOut = false;
    const endGroup = (): void => {
      if (child.pid === undefined) return;
      try {
        process.kill(-child.pid, 'SIGKILL');
      } catch {
        // already gone
      }
    };
    const onExit = (): void => {
      endGroup();
    };
    process.once('exit', onExit);
    const timer =
      options.timeoutMs === undefined
        ? undefined
        : setTimeout(() => {
            timedOut = true;
            endGroup();
          }, options.timeoutMs);
    options.signal?.addEventListener('abort', endGroup, { once: true });
    if (options.signal?.aborted === true) endGroup();
    for (const stream of [child.stdout, child.stderr]) {
      let rest = '';
      stream.setEncoding('utf8');
      stream.on('data', (chunk: string) => {
        output = (output + chunk).slice(-65_536);
        if (stream === child.stdout) stdout = (stdout + chunk).slice(-65_536);
        const lines = (rest + chunk).split(/\r?\n|\r/);
        rest = lines.pop() ?? '';
        for (const line of lines) if (line.trim() !== '') options.onLine?.(line);
      });
      stream.on('end', () => {
        if (rest.trim() !== '') options.onLine?.(rest);
      });
    }
    const finish = (code: number | null, extra = ''): void => {
      clearTimeout(timer);
      process.removeListener('exit', onExit);
      options.signal?.removeEventListener('abort', endGroup);
      resolve({ code, output: output + extra, stdout, timedOut });
    };
    child.once('error', (error) => {
      finish(null, error.message);
    });
    child.once('close', (code) => {
      finish(code);
    });
  });
}

/** @returns absolute path of an executable file on PATH, or null */
export function findOnPath(name: string, searchPath = process.env.PATH ?? ''): string | null {
  for (const folder of searchPath.split(path.delimiter)) {
    if (folder === '') continue;
    const file = path.join(folder, process.platform === 'win32' ? `${name}.exe` : name);
    if (isExecutable(file)) return file;
  }
  return null;
}

/** @returns whether the path is a file that this user may execute */
export function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return statSync(file).isFile();
  } catch {
    return false;
  }
}

/** The last lines of an output, for an error message. */
export function tail(text: string, lines = 12): string {
  return text.trimEnd().split('\n').slice(-lines).join('\n');
}
