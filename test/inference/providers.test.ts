import { describe, expect, it } from 'vitest';
import {
  chooseProviders,
  machineProbe,
  PROVIDERS,
  sessionProviders,
  tensorrtEnvironment,
  type ProviderProbe,
} from '../../src/platform/inference/providers.js';

const probe = (change: Partial<ProviderProbe> = {}): ProviderProbe => ({
  backends: () => ['cpu', 'cuda', 'tensorrt'],
  library: () => true,
  gpus: () => 1,
  ...change,
});

describe('execution providers', () => {
  it('are TensorRT, CUDA and CPU, in that order, where all are there', () => {
    expect(chooseProviders(PROVIDERS, probe())).toEqual({ order: ['tensorrt', 'cuda', 'cpu'], passedOver: [], gpus: 1 });
  });

  it('are the CPU alone without a GPU, and it is said why', () => {
    const { order, passedOver } = chooseProviders(PROVIDERS, probe({ gpus: () => 0 }));
    expect(order).toEqual(['cpu']);
    expect(passedOver.map((one) => one.provider)).toEqual(['tensorrt', 'cuda']);
    expect(passedOver[0]?.reason).toMatch(/no GPU/);
  });

  it('pass over what is not installed and what the build does not have', () => {
    const choice = chooseProviders(PROVIDERS, probe({ library: (provider) => provider !== 'tensorrt' }));
    expect(choice.order).toEqual(['cuda', 'cpu']);
    expect(choice.passedOver).toEqual([{ provider: 'tensorrt', reason: expect.stringMatching(/not installed/) as string }]);
    expect(chooseProviders(PROVIDERS, probe({ backends: () => ['cpu', 'webgpu'] })).order).toEqual(['cpu']);
    expect(chooseProviders(PROVIDERS, probe({ backends: () => null })).order).toEqual(['tensorrt', 'cuda', 'cpu']);
  });

  it('are those that the operator names, with the CPU as the last resort', () => {
    expect(chooseProviders(['cuda'], probe()).order).toEqual(['cuda', 'cpu']);
    expect(chooseProviders(['cpu', 'cuda'], probe()).order).toEqual(['cpu']);
    expect(chooseProviders([], probe()).order).toEqual(['cpu']);
  });

  it('are handed to the session with their device, the fallbacks after the chosen one', () => {
    expect(sessionProviders(['tensorrt', 'cuda', 'cpu'], 1)).toEqual([
      { name: 'tensorrt', deviceId: 1 },
      { name: 'cuda', deviceId: 1 },
      'cpu',
    ]);
  });

  it("keep TensorRT's engines in the folder given", () => {
    expect(tensorrtEnvironment('/home/x/cache')).toMatchObject({
      ORT_TENSORRT_ENGINE_CACHE_ENABLE: '1',
      ORT_TENSORRT_CACHE_PATH: '/home/x/cache',
    });
  });

  it('can be looked for on this machine without harm', () => {
    expect(chooseProviders(PROVIDERS, machineProbe()).order.at(-1)).toBe('cpu');
  });
});
