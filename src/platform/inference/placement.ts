/**
 * Keeps inference processes of one or few threads on cores of their own. Left to itself Linux may let two of them share a
 * core for seconds while another is idle (measured: p99 at half load 91 ms instead of 56, docs/benchmarks-miner.md).
 */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { promisify } from 'node:util';

/** CPUs that this process may use, by the kernel's numbers; none where the system does not tell. */
export function allowedCpus(status: string | null = ownStatus()): number[] {
  const list = /^Cpus_allowed_list:\s+(\S+)$/m.exec(status ?? '')?.[1] ?? '';
  return list.split(',').flatMap((range) => {
    const [first, last = first] = range.split('-').map(Number);
    if (first === undefined || last === undefined || range === '' || Number.isNaN(first + last)) return [];
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  });
}

/**
 * CPUs of each process: `threads` of its own.
 * @returns null when there are not enough for all, or a single process has nothing to be kept apart from
 */
export function placement(cpus: readonly number[], processes: number, threads: number): number[][] | null {
  if (processes < 2 || cpus.length < processes * threads) return null;
  return Array.from({ length: processes }, (_, i) => cpus.slice(i * threads, (i + 1) * threads));
}

/**
 * Binds all threads of a process, and those it will start.
 * @throws Error when util-linux's `taskset` is missing or the CPU may not be used; a process that is gone is passed over
 */
export async function bindProcess(pid: number, cpus: readonly number[]): Promise<void> {
  await promisify(execFile)('taskset', ['--all-tasks', '--cpu-list', '--pid', cpus.join(','), String(pid)]);
}

function ownStatus(): string | null {
  try {
    return readFileSync('/proc/self/status', 'utf8');
  } catch {
    return null;
  }
}
