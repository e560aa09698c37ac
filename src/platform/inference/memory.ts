/**
 * How much memory is left, and how much a bundle will take: so that a second set of inference processes is only started
 * where it fits. Linux reads /proc and the cgroup (a container's limit is not the machine's); elsewhere Node's own figures.
 */
import { readFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { graphBytes, type Bundle } from '../../domain/contracts/bundle.js';

/** Reads a small text file; null when there is none. Injected in tests. */
export type ReadText = (file: string) => string | null;

const readText: ReadText = (file) => {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return null;
  }
};

/** Never used up: for the front, the journal and whatever else the machine does, bytes. */
export const RESERVE_BYTES = 256 * 1024 * 1024;
/** A process without the weights: onnxruntime, sharp, a decoded image, activations; measured 150 to 190 MiB. */
const PROCESS_BYTES = 200 * 1024 * 1024;
/** Memory at the peak of loading for a byte of ONNX: the file's bytes and the weights packed for the kernels are there at once. */
const BYTES_PER_ONNX_BYTE = 2.5;

/** @returns bytes that can still be taken: the machine's, or what the tightest cgroup leaves */
export function availableBytes(read: ReadText = readText, platform: NodeJS.Platform = process.platform): number {
  if (platform !== 'linux') return os.freemem();
  const meminfo = /^MemAvailable:\s+(\d+) kB/m.exec(read('/proc/meminfo') ?? '');
  const machine = meminfo === null ? os.freemem() : Number(meminfo[1]) * 1024;
  return Math.min(machine, ...cgroupRooms(read));
}

/** Room left in each cgroup above this process that has a limit, bytes. Cached file pages that are not in use count as room. */
function cgroupRooms(read: ReadText): number[] {
  const rooms: number[] = [];
  const number = (file: string): number | null => {
    const text = read(file)?.trim();
    return text === undefined || !/^\d+$/.test(text) ? null : Number(text);
  };
  const room = (dir: string, limit: string, used: string, cache: string): void => {
    const [most, now] = [number(path.join(dir, limit)), number(path.join(dir, used))];
    // Version 1 writes "no limit" as a number near 2^63.
    if (most === null || now === null || most > 2 ** 60) return;
    const inactive = new RegExp(`^${cache} (\\d+)$`, 'm').exec(read(path.join(dir, 'memory.stat')) ?? '');
    rooms.push(Math.max(0, most - now + Number(inactive?.[1] ?? 0)));
  };
  const lines = (read('/proc/self/cgroup') ?? '').split('\n');
  for (const line of lines) {
    const [, controllers = '', own = '/'] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
    const v2 = line.startsWith('0::');
    if (!v2 && !controllers.split(',').includes('memory')) continue;
    const root = v2 ? '/sys/fs/cgroup' : '/sys/fs/cgroup/memory';
    // A limit further up binds as well. In a container the own path may not be visible; the root then is the container's.
    for (let at = own; ; at = path.posix.dirname(at)) {
      if (v2) room(path.posix.join(root, at), 'memory.max', 'memory.current', 'inactive_file');
      else room(path.posix.join(root, at), 'memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file');
      if (at === '/' || at === '.' || at === '') break;
    }
  }
  return rooms;
}

/** Resident memory of processes, bytes; those that are gone, or other systems than Linux, count 0. */
export function residentBytes(pids: readonly number[], read: ReadText = readText): number {
  let sum = 0;
  for (const pid of pids) {
    const rss = /^VmRSS:\s+(\d+) kB/m.exec(read(`/proc/${pid}/status`) ?? '');
    sum += Number(rss?.[1] ?? 0) * 1024;
  }
  return sum;
}

/** What the processes of a bundle will take at most while they load and answer, bytes; an estimate from the files' sizes. */
export function bundleNeedsBytes(bundle: Pick<Bundle, 'members'>, processes: number): number {
  const files = new Map(bundle.members.map((member) => [member.onnx.path, graphBytes(member)]));
  const onnx = [...files.values()].reduce((sum, bytes) => sum + bytes, 0);
  return processes * (PROCESS_BYTES + BYTES_PER_ONNX_BYTE * onnx);
}
