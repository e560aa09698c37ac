/** One inference process as its parent sees it: started, fed, watched, ended. */
import { fork, type ChildProcess } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { BadInputError, ObjectCorruptError } from '../../domain/errors.js';
import { compiledEntry } from '../entry.js';
import type { FromChild, ModelInput, OneResult, StartMessage, ToChild, Urgency } from './messages.js';
import { chooseProviders, machineProbe, tensorrtEnvironment, type Provider } from './providers.js';

/** Loading and warming up of a large ensemble on a slow disk. */
const START_MS = 300_000;
/** Bytes of the child's error output that are kept for a message. */
const STDERR_KEPT = 4000;
/** How long the rest of a dead child's error output may take to arrive. */
const STDERR_MS = 200;

export interface ChildEvents {
  onResult(id: number, results: OneResult[], batchMs: number, batchSize: number): void;
  /** called once, however it ended; `stderr` is the end of what it wrote there */
  onExit(reason: string): void;
}

export class InferenceChild {
  private readonly exited: Promise<string>;

  private constructor(
    private readonly process_: ChildProcess,
    exited: Promise<string>,
    private readonly ready: Extract<FromChild, { type: 'ready' }>,
  ) {
    this.exited = exited;
  }

  /** Inference of one image alone when it was warmed up, ms. */
  get perImageMs(): number {
    return this.ready.perImageMs;
  }

  get batchLimit(): number {
    return this.ready.batchLimit;
  }

  get provider(): Provider {
    return this.ready.provider;
  }

  /** Providers that were wanted and are not there, and why. */
  get passedOver(): { provider: Provider; reason: string }[] {
    return this.ready.passedOver;
  }

  /** Resident memory after the warm-up, bytes. */
  get rssBytes(): number {
    return this.ready.rssBytes;
  }

  get pid(): number {
    return this.process_.pid ?? -1;
  }

  /**
   * Forks, loads, warms up.
   * @param engineCache folder for TensorRT's engines, made when TensorRT is there
   * @throws BadInputError or ObjectCorruptError when the bundle is refused, Error when the process dies or is too slow
   */
  static async start(
    options: Omit<StartMessage, 'type'>,
    events: ChildEvents,
    engineCache: string = path.join(os.tmpdir(), 'flywheel-tensorrt'),
  ): Promise<InferenceChild> {
    const file = compiledEntry('platform/inference/process');
    if (!existsSync(file))
      throw new BadInputError(
        `${file} is missing: the inference process runs from the compiled code. Run "npm run build" and start again.`,
      );
    let env = process.env;
    if (chooseProviders(options.providers, machineProbe()).order.includes('tensorrt')) {
      mkdirSync(engineCache, { recursive: true, mode: 0o755 });
      env = { ...process.env, ...tensorrtEnvironment(engineCache) };
    }
    // execArgv empty: a test runner's or a debugger's flags are not meant for this process.
    const child = fork(file, [], { serialization: 'advanced', stdio: ['ignore', 'ignore', 'pipe', 'ipc'], execArgv: [], env });
    let stderr = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      stderr = (stderr + text).slice(-STDERR_KEPT);
    });
    let ready = false;
    const exited = new Promise<string>((resolve) => {
      child.once('error', (error) => resolve(`it could not be started: ${error.message}`));
      // 'close' would come after the last of its error output, but never comes when we disconnected first: so the end of
      // that output is waited for here, and not for long, since a grandchild could hold it open.
      child.once('exit', (code, signal) => {
        const tell = (): void => {
          const tail = stderr.trim().split('\n').slice(-3).join(' | ');
          resolve(`it ended with ${signal ?? `code ${code ?? '?'}`}${tail === '' ? '' : `: ${tail}`}`);
        };
        if (child.stderr === null || child.stderr.readableEnded) tell();
        else {
          child.stderr.once('end', tell);
          setTimeout(tell, STDERR_MS);
        }
      });
    });
    void exited.then((reason) => {
      if (ready) events.onExit(reason);
    });
    // Writing to a child that just died; its end is told by 'exit'.
    child.on('error', () => undefined);

    const outcome = await new Promise<Extract<FromChild, { type: 'ready' | 'failed' }>>((resolve, reject) => {
      const timer = setTimeout(() => {
        child.kill('SIGKILL');
        reject(new Error(`the inference process for ${options.bundleDir} was not ready within ${START_MS / 1000} s and was ended`));
      }, START_MS);
      timer.unref();
      void exited.then((reason) => {
        clearTimeout(timer);
        reject(new Error(`the inference process for ${options.bundleDir} ended before it was ready: ${reason}`));
      });
      child.on('message', (message: FromChild) => {
        if (message.type === 'result') {
          events.onResult(message.id, message.results, message.batchMs, message.batchSize);
        } else {
          clearTimeout(timer);
          ready = message.type === 'ready';
          resolve(message);
        }
      });
      const start: StartMessage = { type: 'start', ...options };
      child.send(start, (error) => {
        if (error) reject(new Error(`the inference process could not be told what to load: ${error.message}`));
      });
    });
    if (outcome.type === 'failed') {
      await exited;
      if (outcome.name === 'ObjectCorruptError') throw new ObjectCorruptError(outcome.message);
      if (outcome.name === 'BadInputError') throw new BadInputError(outcome.message);
      throw new BadInputError(
        `The bundle ${options.bundleDir} cannot be run: ${outcome.message}. What was served before goes on being served.`,
      );
    }
    return new InferenceChild(child, exited, outcome);
  }

  /** Hands a group over; its answer comes to `onResult`. A dead child takes it silently: `onExit` tells. */
  predict(id: number, inputs: ModelInput[], urgency?: Urgency): void {
    const message: ToChild = { type: 'predict', id, inputs, ...(urgency === undefined ? {} : { urgency }) };
    if (this.process_.connected) this.process_.send(message, () => undefined);
  }

  /** Ends it at once. Resolves when it is gone. */
  async kill(): Promise<void> {
    this.process_.kill('SIGKILL');
    await this.exited;
  }

  /** Lets it go (it ends itself when disconnected); by force after `graceMs`. Resolves when it is gone. */
  async end(graceMs = 5000): Promise<void> {
    if (this.process_.connected) this.process_.disconnect();
    const timer = setTimeout(() => this.process_.kill('SIGKILL'), graceMs);
    await this.exited;
    clearTimeout(timer);
  }
}
