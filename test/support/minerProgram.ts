/** `flywheel miner` as it is shipped: the built program in a process of its own. */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { packageRoot } from '../../src/platform/entry.js';

export interface MinerProgram {
  info: { url: string; controlUrl: string; hotkey: string; validatorUrl?: string };
  /** what it wrote so far: standard output, error output, and the log files of its home */
  said(): string;
  /** Ends it with SIGTERM. @returns its exit code */
  stop(): Promise<number | null>;
}

/** It ended instead of serving. */
export class MinerEnded extends Error {
  constructor(
    readonly code: number | null,
    readonly said: string,
  ) {
    super(`flywheel miner ended with ${code}: ${said}`);
  }
}

/**
 * Starts it on free loopback ports. Nothing of the caller's own FLYWHEEL_ settings reaches it.
 * @throws MinerEnded
 */
export async function startProgram(home: string, args: readonly string[], env: Record<string, string> = {}): Promise<MinerProgram> {
  const clean = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('FLYWHEEL_')));
  const child = fork(path.join(packageRoot, 'bin', 'flywheel.js'), ['miner', '--home', home, ...args], {
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    execArgv: [],
    env: { ...clean, ...env },
  });
  let text = '';
  for (const stream of [child.stdout, child.stderr]) stream!.on('data', (piece: Buffer) => (text += piece.toString()));
  const closed = once(child, 'close').then(() => null);
  const said = (): string => {
    const logs = path.join(home, 'logs');
    return (
      text +
      readdirSync(logs)
        .map((file) => readFileSync(path.join(logs, file), 'utf8'))
        .join('\n')
    );
  };
  const ready = (await Promise.race([once(child, 'message'), closed])) as [{ info: MinerProgram['info'] }] | null;
  if (ready === null) throw new MinerEnded(child.exitCode, text);
  return {
    info: ready[0].info,
    said,
    async stop() {
      child.kill('SIGTERM');
      await closed;
      return child.exitCode;
    },
  };
}
