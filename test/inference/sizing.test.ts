import { describe, expect, it } from 'vitest';
import { deriveSizes } from '../../src/platform/inference/sizing.js';

describe('the sizes of a pool', () => {
  it('give one process to each GPU', () => {
    expect(deriveSizes(0, 0, { cores: 16, gpus: 2 })).toEqual({ processes: 2, threads: 7 });
    expect(deriveSizes(3, 0, { cores: 16, gpus: 1 })).toEqual({ processes: 3, threads: 5 });
    expect(deriveSizes(0, 0, { cores: 16, gpus: 1, graphBytes: 13e6 })).toEqual({ processes: 1, threads: 15 });
  });

  it('fit the cores, and are what they are told to be', () => {
    expect(deriveSizes(0, 0, { cores: 1 })).toEqual({ processes: 1, threads: 1 });
    expect(deriveSizes(0, 0, { cores: 2 })).toEqual({ processes: 1, threads: 2 });
    expect(deriveSizes(0, 0, { cores: 16 })).toEqual({ processes: 3, threads: 5 });
    expect(deriveSizes(2, 0, { cores: 8 })).toEqual({ processes: 2, threads: 3 });
    expect(deriveSizes(3, 1, { cores: 2 })).toEqual({ processes: 3, threads: 1 });
  });

  it('are processes of one thread for a small model, and no more of them than are of use', () => {
    const small = (cores: number, processes = 0, threads = 0) => deriveSizes(processes, threads, { cores, graphBytes: 13e6 });
    expect(small(1)).toEqual({ processes: 1, threads: 1 });
    expect(small(2)).toEqual({ processes: 2, threads: 1 });
    expect(small(4)).toEqual({ processes: 3, threads: 1 });
    expect(small(64)).toEqual({ processes: 4, threads: 1 });
    expect(small(8, 2)).toEqual({ processes: 2, threads: 1 });
    expect(small(8, 0, 3)).toEqual({ processes: 2, threads: 3 });
  });
});
