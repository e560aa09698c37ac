import { spawn } from 'node:child_process';
import net from 'node:net';
import { describe, expect, it } from 'vitest';
import { endProcess, freePort, isAlive, ownIdentity, portFree, processStart, processStartSync } from '../../src/platform/process.js';
import { atEnd, ended, startNode } from './support.js';

describe('processes', () => {
  it('knows this process by id and start time, and no other by them', async () => {
    const me = await ownIdentity();
    expect(await isAlive(me.pid, me.start)).toBe(true);
    expect(await isAlive(me.pid, `${me.start}0`)).toBe(false);
    expect(processStartSync(me.pid)).toBe(me.start);
    expect(await processStart(2 ** 22 + 1)).toBeNull();
  });

  it('ends a process that does not listen', async () => {
    const { child } = await startNode(`process.on('SIGTERM', () => {}); console.log('up'); setInterval(() => {}, 1000);`);
    const start = (await processStart(child.pid!))!;
    await endProcess({ pid: child.pid!, start }, { graceMs: 100 });
    await ended(child);
    expect(child.signalCode).toBe('SIGKILL');
  });

  it('leaves a process alone that only has the same id', async () => {
    const child = spawn('sleep', ['600'], { stdio: 'ignore' });
    atEnd(() => void child.kill('SIGKILL'));
    await endProcess({ pid: child.pid!, start: 'another' }, { graceMs: 10 });
    expect(await processStart(child.pid!)).not.toBeNull();
  });

  it('tells a free port from a taken one', async () => {
    const port = await freePort();
    expect(await portFree(port)).toBe(true);
    const server = net.createServer().listen(port, '127.0.0.1');
    atEnd(() => new Promise<void>((resolve) => server.close(() => resolve())));
    await new Promise((resolve) => server.once('listening', resolve));
    expect(await portFree(port)).toBe(false);
  });
});
