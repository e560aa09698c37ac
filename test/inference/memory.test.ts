import { describe, expect, it } from 'vitest';
import { availableBytes, bundleNeedsBytes, residentBytes } from '../../src/platform/inference/memory.js';
import { bundleFiles } from '../support/bundle.js';

const GIB = 2 ** 30;
const files = (entries: Record<string, string>) => (file: string) => entries[file] ?? null;
const meminfo = (kib: number) => ({ '/proc/meminfo': `MemTotal: 99999999 kB\nMemFree: 1 kB\nMemAvailable:   ${kib} kB\n` });

describe('memory', () => {
  it("is the machine's where no cgroup limits it", () => {
    expect(availableBytes(files(meminfo(4 * 2 ** 20)), 'linux')).toBe(4 * GIB);
    expect(
      availableBytes(
        files({
          ...meminfo(4 * 2 ** 20),
          '/proc/self/cgroup': '0::/user.slice\n',
          '/sys/fs/cgroup/user.slice/memory.max': 'max\n',
          '/sys/fs/cgroup/user.slice/memory.current': '123\n',
        }),
        'linux',
      ),
    ).toBe(4 * GIB);
  });

  it("is what a container's limit leaves, cached files apart", () => {
    expect(
      availableBytes(
        files({
          ...meminfo(20 * 2 ** 20),
          '/proc/self/cgroup': '0::/\n',
          '/sys/fs/cgroup/memory.max': `${2 * GIB}\n`,
          '/sys/fs/cgroup/memory.current': `${1.5 * GIB}\n`,
          '/sys/fs/cgroup/memory.stat': `anon 5\ninactive_file ${0.25 * GIB}\n`,
        }),
        'linux',
      ),
    ).toBe(0.75 * GIB);
  });

  it('heeds a limit further up the tree, and version 1 of cgroups', () => {
    expect(
      availableBytes(
        files({
          ...meminfo(20 * 2 ** 20),
          '/proc/self/cgroup': '0::/kube/pod/box\n',
          '/sys/fs/cgroup/kube/pod/box/memory.max': 'max\n',
          '/sys/fs/cgroup/kube/memory.max': `${GIB}\n`,
          '/sys/fs/cgroup/kube/memory.current': `${0.5 * GIB}\n`,
        }),
        'linux',
      ),
    ).toBe(GIB - 0.5 * GIB);
    expect(
      availableBytes(
        files({
          ...meminfo(20 * 2 ** 20),
          '/proc/self/cgroup': '5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n',
          '/sys/fs/cgroup/memory/memory.limit_in_bytes': `${3 * GIB}\n`,
          '/sys/fs/cgroup/memory/memory.usage_in_bytes': `${GIB}\n`,
        }),
        'linux',
      ),
    ).toBe(2 * GIB);
  });

  it('of this machine is read', () => {
    expect(availableBytes()).toBeGreaterThan(0);
    if (process.platform === 'linux') expect(residentBytes([process.pid, 2 ** 22 + 1])).toBeGreaterThan(20e6);
  });

  it('that a bundle will need grows with its files and its processes', async () => {
    const { bundle } = await bundleFiles();
    const [member] = bundle.members;
    const big = { members: [{ ...member!, onnx: { ...member!.onnx, bytes: 400e6 } }] };
    expect(bundleNeedsBytes(big, 2)).toBeCloseTo(2 * bundleNeedsBytes(big, 1), 0);
    expect(bundleNeedsBytes(big, 1) - bundleNeedsBytes(bundle, 1)).toBeGreaterThan(800e6);
  });
});
