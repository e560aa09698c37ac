/**
 * The supervisor of `flywheel up`: starts child processes, waits until they are ready, starts dead ones again with
 * growing pauses, and ends them in reverse order. Children are noted by id and start time, so that the next start ends
 * what a killed supervisor left.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { EventEmitter } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { tail } from '../platform/command.js';
import { readTail } from '../platform/fsutil.js';
import { type HomePaths, readServices, type Services, writeServices } from '../platform/home.js';
import { rotate } from '../platform/log.js';
import { endProcess, isAlive, type ProcessIdentity, processStart, signal } from '../platform/process.js';
import { ChildFailedError, EXIT } from './exit.js';
import type { ReadyMessage } from './service.js';

export interface ChildSpec {
  /** names the log file and the note */
  name: string;
  command: string;
  args: readonly string[];
  env?: NodeJS.ProcessEnv;
  /** a Node process that reports through its channel, see service.ts */
  ipc?: boolean;
  /** resolves when the child serves; given its id. Without it and with `ipc` the child's own word counts */
  ready?: (alive: () => boolean) => Promise<void>;
  readyWithinMs?: number;
  /** between SIGTERM and SIGKILL */
  graceMs?: number;
}

/** What happened to a child after it had been ready once. */
export interface ChildEvent {
  name: string;
  kind: 'ended' | 'restarted';
  /** how it ended, or after how long it was ready again */
  detail: string;
}

interface Running {
  spec: ChildSpec;
  process: ChildProcess | null;
  identity: ProcessIdentity | null;
  stopping: boolean;
  loop: Promise<void> | null;
  cancelPause: AbortController;
}

const READY_WITHIN_MS = 120_000;
const GRACE_MS = 15_000;
const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 30_000;
/** A child that lived this long starts over with the shortest pause. */
const SETTLED_MS = 60_000;
/** A child that never gets ready is tried this often before `start` gives up. */
const FIRST_TRIES = 3;

/** Exit codes that another try does not mend. */
const PERMANENT: readonly number[] = [EXIT.badInput, EXIT.busy, EXIT.misfit];

/** Events: `child` with a ChildEvent. */
export class Supervisor extends EventEmitter<{ child: [ChildEvent] }> {
  private readonly children = new Map<string, Running>();
  private services: Services;
  private writing: Promise<void> = Promise.resolve();
  private stopped = false;

  constructor(private readonly paths: Pick<HomePaths, 'services' | 'logs'>) {
    super();
    this.services = { up: null, temporal: null, miner: null, children: {} };
  }

  /**
   * Ends what a previous instance left running. Call with the home's lock held: then whatever is noted is a leftover.
   * @returns the names of the children ended
   */
  async endLeftovers(): Promise<string[]> {
    const before = readServices(this.paths);
    const ended: string[] = [];
    for (const [name, note] of Object.entries(before.children).reverse()) {
      if (!(await isAlive(note.pid, note.start))) continue;
      await endProcess(note, { graceMs: GRACE_MS });
      ended.push(name);
    }
    await this.note({ up: null, temporal: null, miner: null, children: {} });
    return ended;
  }

  /** Notes more of the running instance, e.g. addresses. */
  async note(part: Partial<Services>): Promise<void> {
    this.services = { ...this.services, ...part };
    const snapshot = this.services;
    this.writing = this.writing.then(() => writeServices(this.paths, snapshot));
    await this.writing;
  }

  /**
   * Starts a child and keeps it running.
   * @returns what the child said when it was ready ({} without a channel)
   * @throws ChildFailedError when it does not get ready; then it is not running
   */
  async start(spec: ChildSpec): Promise<Record<string, unknown>> {
    if (this.stopped) throw new Error(`${spec.name} cannot be started: everything is being stopped.`);
    if (this.children.has(spec.name)) throw new Error(`A child named ${spec.name} is already there.`);
    const running: Running = { spec, process: null, identity: null, stopping: false, loop: null, cancelPause: new AbortController() };
    this.children.set(spec.name, running);
    rotate(this.logFile(spec.name));
    let pause = FIRST_PAUSE_MS;
    for (let attempt = 1; ; attempt++) {
      const failed = await this.launch(running);
      if ('info' in failed) {
        running.loop = this.keep(running);
        return failed.info;
      }
      if (running.stopping || failed.permanent !== null || attempt === FIRST_TRIES) {
        this.children.delete(spec.name);
        const log = this.logFile(spec.name);
        throw new ChildFailedError(
          `${spec.name} did not start: ${failed.why}. Its log (${log}) ends:\n${tail(await readTail(log, 4_000), 12)}`,
          failed.permanent ?? EXIT.unavailable,
        );
      }
      await this.pause(running, pause);
      pause *= 2;
    }
  }

  /** The process of a child, while it runs. */
  pid(name: string): number | null {
    return this.children.get(name)?.identity?.pid ?? null;
  }

  /** Ends one child for good. Ending what is gone is no error. */
  async stop(name: string): Promise<void> {
    const running = this.children.get(name);
    if (running === undefined) return;
    running.stopping = true;
    running.cancelPause.abort();
    await this.end(running);
    await running.loop;
    this.children.delete(name);
    await this.noteChild(name, null);
  }

  /** Ends all children, the last started first. */
  async stopAll(): Promise<void> {
    this.stopped = true;
    // None is to be started again while another one is being ended.
    for (const running of this.children.values()) running.stopping = true;
    for (const name of [...this.children.keys()].reverse()) await this.stop(name);
    await this.note({ up: null, temporal: null, miner: null });
  }

  /** Ends everything at once, without a grace: the second Ctrl-C. */
  killAll(): void {
    this.stopped = true;
    for (const running of this.children.values()) {
      running.stopping = true;
      running.cancelPause.abort();
      if (running.identity !== null) signal(-running.identity.pid, 'SIGKILL');
    }
  }

  private logFile(name: string): string {
    return path.join(this.paths.logs, `${name}.out.log`);
  }

  private async launch(running: Running): Promise<{ info: Record<string, unknown> } | { why: string; permanent: number | null }> {
    const { spec } = running;
    const fd = openSync(this.logFile(spec.name), 'a', 0o600);
    let child: ChildProcess;
    try {
      child = spawn(spec.command, spec.args, {
        env: spec.env ?? process.env,
        stdio: spec.ipc === true ? ['ignore', fd, fd, 'ipc'] : ['ignore', fd, fd],
        // A group of its own: the terminal's Ctrl-C reaches this process alone, which then ends its children in order.
        detached: true,
      });
    } finally {
      closeSync(fd);
    }
    running.process = child;
    let endedAs: string | null = null;
    const ended = new Promise<void>((resolve) => {
      child.once('error', (error) => {
        endedAs ??= `cannot be started: ${error.message}`;
        resolve();
      });
      child.once('exit', (code, name) => {
        endedAs ??= name === null ? `ended with code ${code}` : `ended by ${name}`;
        resolve();
      });
    });
    const pid = child.pid;
    if (pid === undefined) {
      await ended;
      running.process = null;
      return { why: endedAs ?? 'cannot be started', permanent: null };
    }
    const identity = { pid, start: (await processStart(pid)) ?? 'gone' };
    running.identity = identity;
    await this.noteChild(spec.name, identity);

    const within = spec.readyWithinMs ?? READY_WITHIN_MS;
    const limit = new AbortController();
    let info: Record<string, unknown> = {};
    const ready =
      spec.ready === undefined
        ? spec.ipc === true
          ? this.saysReady(child).then((said) => void (info = said))
          : Promise.resolve()
        : spec.ready(() => endedAs === null);
    const outcome = await Promise.race([
      ready.then(
        () => 'ready' as const,
        (error: unknown) => ({ failed: (error as Error).message }),
      ),
      ended.then(() => 'ended' as const),
      sleep(within, 'late' as const, { signal: limit.signal }).catch(() => 'late' as const),
    ]);
    limit.abort();
    if (outcome === 'ready' && !running.stopping) return { info };
    await this.end(running);
    await this.noteChild(spec.name, null);
    const permanent = child.exitCode !== null && PERMANENT.includes(child.exitCode) ? child.exitCode : null;
    // It had its time; another try would only let the operator wait longer.
    if (outcome === 'late') return { why: `not ready after ${Math.round(within / 1000)} s`, permanent: permanent ?? EXIT.unavailable };
    if (typeof outcome === 'object') return { why: outcome.failed, permanent };
    return { why: endedAs ?? 'stopped', permanent };
  }

  private saysReady(child: ChildProcess): Promise<Record<string, unknown>> {
    return new Promise((resolve) => {
      child.on('message', (message: unknown) => {
        if (typeof message === 'object' && message !== null && (message as ReadyMessage).type === 'ready')
          resolve((message as ReadyMessage).info);
      });
    });
  }

  /** Waits for its end and starts it again, until it is stopped. */
  private async keep(running: Running): Promise<void> {
    let pause = FIRST_PAUSE_MS;
    for (;;) {
      const since = performance.now();
      const how = await this.exitOf(running);
      running.identity = null;
      if (running.stopping) return;
      this.emit('child', { name: running.spec.name, kind: 'ended', detail: how });
      await this.noteChild(running.spec.name, null);
      if (performance.now() - since > SETTLED_MS) pause = FIRST_PAUSE_MS;
      const down = performance.now();
      for (;;) {
        await this.pause(running, pause);
        if (running.stopping) return;
        pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
        const result = await this.launch(running);
        if ('info' in result) break;
        if (running.stopping) return;
        this.emit('child', { name: running.spec.name, kind: 'ended', detail: result.why });
      }
      this.emit('child', {
        name: running.spec.name,
        kind: 'restarted',
        detail: `after ${((performance.now() - down) / 1000).toFixed(1)} s`,
      });
    }
  }

  private exitOf(running: Running): Promise<string> {
    const child = running.process;
    if (child === null) return Promise.resolve('gone');
    return new Promise((resolve) => {
      const say = (code: number | null, name: NodeJS.Signals | null): void => {
        // What it had started itself must not outlive it in its group.
        if (child.pid !== undefined) signal(-child.pid, 'SIGKILL');
        resolve(name === null ? `ended with code ${code}` : `ended by ${name}`);
      };
      if (child.exitCode !== null || child.signalCode !== null) say(child.exitCode, child.signalCode);
      else child.once('exit', say);
    });
  }

  private async end(running: Running): Promise<void> {
    const { identity } = running;
    if (identity === null) return;
    await endProcess(identity, { graceMs: running.spec.graceMs ?? GRACE_MS });
    signal(-identity.pid, 'SIGKILL');
    running.identity = null;
  }

  private async pause(running: Running, ms: number): Promise<void> {
    await sleep(ms, undefined, { signal: running.cancelPause.signal }).catch(() => undefined);
  }

  private async noteChild(name: string, identity: ProcessIdentity | null): Promise<void> {
    const children = { ...this.services.children };
    if (identity === null) delete children[name];
    else children[name] = identity;
    await this.note({ children });
  }
}
