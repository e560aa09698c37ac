/** Temporal for tests: the time-skipping server, and a real dev server; both on loopback, both ended by `teardown`. */
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { TestWorkflowEnvironment } from '@temporalio/testing';
import { DefaultLogger, Runtime } from '@temporalio/worker';
import { afterAll, beforeAll } from 'vitest';
import { startTemporal } from '../../src/platform/temporal/server.js';
import { timeSkippingServerPath } from '../../src/platform/temporal/testServer.js';

// One runtime a process, and only its warnings: a test's output is its claims.
Runtime.install({ logger: new DefaultLogger('WARN') });

/** Time passes as fast as nothing happens. It has no Schedules and no search by attributes. */
export async function createTimeSkippingEnv(): Promise<TestWorkflowEnvironment> {
  const executable = timeSkippingServerPath();
  if (executable === null)
    throw new Error('The time-skipping server is not installed: run `npm test` or `node scripts/test-setup.mjs` once.');
  return TestWorkflowEnvironment.createTimeSkipping({ server: { executable: { type: 'existing-path', path: executable } } });
}

export interface TimeSkipping {
  /** the file's server, or within `onOwnServer` that one */
  readonly env: TestWorkflowEnvironment;
  /** Time skips only while nothing else is open, so a test of long waits has a server of its own. */
  onOwnServer(body: () => Promise<void>): Promise<void>;
}

/** A time-skipping server for the tests of a file or a `describe`, from before the first to after the last. */
export function timeSkipping(): TimeSkipping {
  let env: TestWorkflowEnvironment;
  beforeAll(async () => {
    env = await createTimeSkippingEnv();
  });
  // Of a server that did not start there is nothing to end.
  afterAll(() => (env as TestWorkflowEnvironment | undefined)?.teardown());
  return {
    get env() {
      return env;
    },
    async onOwnServer(body) {
      const shared = env;
      env = await createTimeSkippingEnv();
      try {
        await body();
      } finally {
        await env.teardown();
        env = shared;
      }
    },
  };
}

export interface LocalEnv {
  env: TestWorkflowEnvironment;
  address: string;
  teardown(): Promise<void>;
}

/** A real dev server with a database of its own, ports chosen freely; needs a `temporal` program (found or cached). */
export async function createLocalEnv(): Promise<LocalEnv> {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'flywheel-temporal-'));
  const server = await startTemporal({
    dbFile: path.join(folder, 'temporal.db'),
    logFile: path.join(folder, 'temporal.log'),
    useEnvironment: false,
  });
  const env = await TestWorkflowEnvironment.createFromExistingServer({ address: server.address, namespace: server.namespace });
  return {
    env,
    address: server.address,
    teardown: async () => {
      await env.teardown();
      await server.stop();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
