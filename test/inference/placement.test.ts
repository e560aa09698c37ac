import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import { allowedCpus, bindProcess, placement } from '../../src/platform/inference/placement.js';

const pids: number[] = [];
afterEach(() => {
  for (const pid of pids.splice(0)) process.kill(pid, 'SIGKILL');
});

describe('cores of inference processes', () => {
  it('reads which CPUs may be used, ranges and gaps, and none where the system does not tell', () => {
    expect(allowedCpus('Name:\tnode\nCpus_allowed_list:\t0-2,5,8-9\n')).toEqual([0, 1, 2, 5, 8, 9]);
    expect(allowedCpus('Name:\tnode\n')).toEqual([]);
    expect(allowedCpus(null)).toEqual([]);
  });

  it('gives each process cores of its own, and binds nothing where there are not enough or one process is alone', () => {
    expect(placement([0, 1, 4, 5], 2, 2)).toEqual([
      [0, 1],
      [4, 5],
    ]);
    expect(placement([3, 7, 9], 2, 1)).toEqual([[3], [7]]);
    expect(placement([0, 1], 1, 1)).toBeNull();
    expect(placement([0, 1], 3, 1)).toBeNull();
    expect(placement([], 2, 1)).toBeNull();
  });

  it.runIf(process.platform === 'linux')('binds every thread of a process, and says so when there is no such CPU', async () => {
    const child = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000); console.log(1)'], { stdio: ['ignore', 'pipe', 'ignore'] });
    const pid = child.pid as number;
    pids.push(pid);
    await new Promise((resolve) => child.stdout.once('data', resolve));
    const [cpu] = allowedCpus();
    await bindProcess(pid, [cpu as number]);
    expect(allowedCpus(readFileSync(`/proc/${pid}/status`, 'utf8'))).toEqual([cpu]);
    await expect(bindProcess(pid, [99_999])).rejects.toThrow();
  });
});
