/** Finds or starts Temporal. `up` supervises the command made here; tests and tools use `startTemporal`. */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { findTemporal, ensureTemporal, type OnProgress } from './binary.js';
import { type TemporalAddress, temporalFromEnvironment, waitHealthy } from './connect.js';
import { choosePort } from '../network.js';
import { endProcess, processStart } from '../process.js';
import { tail } from '../command.js';
import { ServiceUnavailableError } from '../unavailable.js';

export { connectTemporal, connectWorker, locateTemporal, temporalFromEnvironment, waitHealthy } from './connect.js';
export type { TemporalAddress } from './connect.js';
export { ensureTemporal, findTemporal } from './binary.js';

const HOST = '127.0.0.1';
/** How long a fresh server may take; it makes its database first. */
export const HEALTHY_WITHIN_MS = 120_000;

export interface TemporalCommand extends TemporalAddress {
  command: string;
  args: string[];
}

/**
 * The dev server's command line with ports chosen: 7233 and 8233 where free, otherwise free ones.
 * @param options.port, options.uiPort asked for by name: taken ones are an error
 * @throws ServiceUnavailableError when a port asked for is taken
 */
export async function temporalCommand(options: {
  binary: string;
  dbFile: string | null;
  port?: number;
  uiPort?: number;
  namespace?: string;
}): Promise<TemporalCommand> {
  const port = await choosePort(HOST, options.port ?? 7233, options.port !== undefined, 'by name for the Temporal server');
  let uiPort = await choosePort(HOST, options.uiPort ?? 8233, options.uiPort !== undefined, "by name for Temporal's web UI");
  while (uiPort === port) uiPort = await choosePort(HOST, 0, false, "by name for Temporal's web UI");
  const namespace = options.namespace ?? 'default';
  const args = ['server', 'start-dev', '--ip', HOST, '--port', String(port), '--ui-port', String(uiPort), '--namespace', namespace];
  if (options.dbFile !== null) args.push('--db-filename', options.dbFile);
  args.push('--log-level', 'error', '--log-format', 'json');
  return { command: options.binary, args, address: `${HOST}:${port}`, namespace, ui: `http://${HOST}:${uiPort}` };
}

export interface RunningTemporal extends TemporalAddress {
  /** null when the server is not ours */
  pid: number | null;
  /** ends the server when it is ours */
  stop(): Promise<void>;
}

/**
 * TEMPORAL_ADDRESS when set, else a dev server of our own, healthy when this resolves.
 * @param options.logFile standard output and error of the server
 * @throws ServiceUnavailableError when there is none to be had or it does not become healthy; then nothing is left running
 */
export async function startTemporal(options: {
  dbFile: string | null;
  logFile: string;
  port?: number;
  uiPort?: number;
  namespace?: string;
  useEnvironment?: boolean;
  onProgress?: OnProgress;
}): Promise<RunningTemporal> {
  const given = options.useEnvironment === false ? null : temporalFromEnvironment();
  if (given !== null) {
    await waitHealthy(given, 15_000);
    return { ...given, pid: null, stop: () => Promise.resolve() };
  }
  const binary = findTemporal() ?? (await ensureTemporal(options.onProgress));
  for (let attempt = 1; ; attempt++) {
    const command = await temporalCommand({ ...options, binary: binary.path });
    const child = spawnLogged(command.command, command.args, options.logFile);
    const pid = child.pid;
    if (pid === undefined) throw new ServiceUnavailableError(`${command.command} could not be started. See ${options.logFile}.`);
    const note = { pid, start: (await processStart(pid)) ?? 'gone' };
    const stop = async (): Promise<void> => {
      await endProcess(note, { graceMs: 10_000 });
    };
    try {
      await waitHealthy(command, HEALTHY_WITHIN_MS, () => child.exitCode === null && child.signalCode === null);
      return { address: command.address, namespace: command.namespace, ui: command.ui, pid, stop };
    } catch (error) {
      await stop();
      // Between choosing a port and opening it another process may have taken it.
      if (
        child.exitCode !== null &&
        attempt < 3 &&
        options.port === undefined &&
        /address already in use|can't set frontend port/.test(readFileSync(options.logFile, 'utf8'))
      )
        continue;
      throw new ServiceUnavailableError(
        `${(error as Error).message} Its log (${options.logFile}) ends:\n${tail(readFileSync(options.logFile, 'utf8'), 8)}`,
      );
    }
  }
}

function spawnLogged(command: string, args: readonly string[], logFile: string): ChildProcess {
  const fd = openSync(logFile, 'a', 0o600);
  try {
    const child = spawn(command, args, { stdio: ['ignore', fd, fd], detached: true });
    child.on('error', () => undefined);
    return child;
  } finally {
    closeSync(fd);
  }
}
