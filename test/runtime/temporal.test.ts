import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from '@temporalio/worker';
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest';
import { connectTemporal, startTemporal, temporalCommand } from '../../src/platform/temporal/server.js';
import { temporalCredentials, temporalFromEnvironment, waitHealthy } from '../../src/platform/temporal/connect.js';
import { ensureTemporal } from '../../src/platform/temporal/binary.js';
import { ensureTimeSkippingServer } from '../../src/platform/temporal/testServer.js';
import { isAlive, portFree, processStart } from '../../src/platform/process.js';
import { createLocalEnv, createTimeSkippingEnv } from '../support/temporal.js';
import { sleepFor } from './fixtures/sleepWorkflow.js';

const workflowsPath = fileURLToPath(new URL('./fixtures/sleepWorkflow.ts', import.meta.url));
const folder = mkdtempSync(path.join(os.tmpdir(), 'flywheel-runtime-'));
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

afterEach(() => {
  vi.unstubAllEnvs();
});

describe('the time-skipping server', () => {
  it('lets 180 days pass in a workflow', { timeout: 60_000 }, async () => {
    const env = await createTimeSkippingEnv();
    try {
      const before = await env.currentTimeMs();
      const worker = await Worker.create({ connection: env.nativeConnection, taskQueue: 'sleepers', workflowsPath });
      const result = await worker.runUntil(
        env.client.workflow.execute(sleepFor, { args: [180], taskQueue: 'sleepers', workflowId: 'long' }),
      );
      const passed = (await env.currentTimeMs()) - before;
      expect(result).toBe('slept 180 days');
      expect(passed).toBeGreaterThanOrEqual(180 * 86_400_000);
    } finally {
      await env.teardown();
    }
  });
});

describe('the dev server', () => {
  it('answers a workflow through a connection of ours, keeps it in its file, and is gone after stop', { timeout: 120_000 }, async () => {
    const dbFile = path.join(folder, 'temporal.db');
    const logFile = path.join(folder, 'temporal.log');
    const first = await startTemporal({ dbFile, logFile, useEnvironment: false });
    const pid = first.pid ?? 0;
    const start = (await processStart(pid)) ?? '';
    const client = await connectTemporal(first);
    await client.workflow.start('never', { taskQueue: 'nobody', workflowId: 'kept' });
    await client.connection.close();
    await first.stop();
    expect(await isAlive(pid, start)).toBe(false);
    expect(await portFree(Number(first.address.split(':')[1]))).toBe(true);

    const second = await startTemporal({ dbFile, logFile, useEnvironment: false });
    try {
      const again = await connectTemporal(second);
      expect((await again.workflow.getHandle('kept').describe()).status.name).toBe('RUNNING');
      await again.connection.close();
    } finally {
      await second.stop();
    }
  });

  it('serves a worker in tests on ports of its own beside another one', { timeout: 120_000 }, async () => {
    const [one, two] = await Promise.all([createLocalEnv(), createLocalEnv()]);
    try {
      expect(one.address).not.toBe(two.address);
      const worker = await Worker.create({ connection: two.env.nativeConnection, taskQueue: 'sleepers', workflowsPath });
      const result = await worker.runUntil(
        two.env.client.workflow.execute(sleepFor, { args: [0], taskQueue: 'sleepers', workflowId: 'short' }),
      );
      expect(result).toBe('slept 0 days');
    } finally {
      await Promise.all([one.teardown(), two.teardown()]);
    }
  });

  it('takes another port when the usual one is in use, and refuses when that one was asked for by name', async () => {
    const taken = net.createServer();
    const port = await new Promise<number>((resolve) => {
      taken.listen(0, '127.0.0.1', () => {
        resolve((taken.address() as net.AddressInfo).port);
      });
    });
    try {
      await expect(temporalCommand({ binary: 'temporal', dbFile: null, port })).rejects.toThrow(
        `Port ${port} of 127.0.0.1, asked for by name for the Temporal server, is in use`,
      );
      const free = await temporalCommand({ binary: 'temporal', dbFile: null });
      expect(free.address).not.toBe(`127.0.0.1:${port}`);
      expect(free.args).toContain('--ui-port');
    } finally {
      taken.close();
    }
  });

  it('says that nobody answers instead of waiting for ever', async () => {
    await expect(waitHealthy({ address: '127.0.0.1:1', namespace: 'default', ui: null }, 500)).rejects.toThrow(
      '127.0.0.1:1 (namespace default) is not healthy',
    );
  });
});

describe('a machine with nothing on it', () => {
  it('is told all four ways to a Temporal server', async () => {
    for (const name of ['PATH', 'TMPDIR', 'FLYWHEEL_CACHE_DIR']) vi.stubEnv(name, path.join(folder, 'empty'));
    vi.stubEnv('FLYWHEEL_TEMPORAL', '');
    vi.stubEnv('FLYWHEEL_OFFLINE', '1');
    const error = (await ensureTemporal().catch((caught: unknown) => caught)) as Error;
    expect(error.name).toBe('ServiceUnavailableError');
    for (const way of ['1. TEMPORAL_ADDRESS=', '2. the `temporal` program on PATH', "3. the SDK's own download", '4. Go 1.24'])
      expect(error.message).toContain(way);
  });

  it('is told what the time-skipping server needs', async () => {
    for (const name of ['PATH', 'FLYWHEEL_CACHE_DIR']) vi.stubEnv(name, path.join(folder, 'empty'));
    vi.stubEnv('FLYWHEEL_OFFLINE', '1');
    await expect(ensureTimeSkippingServer()).rejects.toThrow(/`java` 17 and `mvn` is missing.*Install Java 17 and Maven/s);
  });

  it('is told when the program named for Temporal is none', async () => {
    vi.stubEnv('FLYWHEEL_TEMPORAL', path.join(folder, 'none'));
    await expect(ensureTemporal()).rejects.toThrow('which is not an executable file');
  });
});

describe('the environment', () => {
  it('names a server of the operator with its namespace', () => {
    expect(temporalFromEnvironment({ TEMPORAL_ADDRESS: 'ns.acct.tmprl.cloud:7233', TEMPORAL_NAMESPACE: 'ns.acct' })).toEqual({
      address: 'ns.acct.tmprl.cloud:7233',
      namespace: 'ns.acct',
      ui: 'https://cloud.temporal.io',
    });
  });

  it('refuses an address with a scheme', () => {
    expect(() => temporalFromEnvironment({ TEMPORAL_ADDRESS: 'http://localhost:7233' })).toThrow('TEMPORAL_ADDRESS: host:port expected');
  });

  it('refuses a client certificate without its key', () => {
    expect(() => temporalCredentials({ TEMPORAL_TLS_CLIENT_CERT_PATH: fileURLToPath(import.meta.url) })).toThrow('belong together');
  });

  it('turns TLS on for an API key', () => {
    expect(temporalCredentials({ TEMPORAL_API_KEY: 'k' })).toEqual({ tls: true, apiKey: 'k' });
  });
});
