/**
 * Which execution provider runs the sessions: TensorRT, CUDA, CPU, in the order wanted, less what is not there. The CPU is
 * always the last resort. Looking is by an injected probe, so that the choice is tested where there is no GPU.
 */
import { existsSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

export const PROVIDERS = ['tensorrt', 'cuda', 'cpu'] as const;
export type Provider = (typeof PROVIDERS)[number];

/** What can be seen of the machine. */
export interface ProviderProbe {
  /** back-ends this build of onnxruntime-node knows; null: not asked (that loads the native library) */
  backends(): readonly string[] | null;
  /** whether onnxruntime's own library for the provider lies beside the binding: it comes with a separate download */
  library(provider: Provider): boolean;
  /** NVIDIA GPUs with a loaded driver */
  gpus(): number;
}

export interface ProviderChoice {
  /** to be tried in this order; `cpu` is always there, last unless it was wanted earlier */
  order: Provider[];
  passedOver: { provider: Provider; reason: string }[];
  gpus: number;
}

/** @param wanted in the order of preference; none or only unknown ones: CPU */
export function chooseProviders(wanted: readonly Provider[], probe: ProviderProbe): ProviderChoice {
  const gpus = probe.gpus();
  const backends = probe.backends();
  const choice: ProviderChoice = { order: [], passedOver: [], gpus };
  for (const provider of new Set(wanted)) {
    let reason: string | null = null;
    if (provider !== 'cpu') {
      if (gpus === 0) reason = 'no NVIDIA driver or no GPU was found';
      else if (backends !== null && !backends.includes(provider)) reason = 'this build of onnxruntime-node does not have it';
      else if (!probe.library(provider))
        reason =
          "onnxruntime's library for it is not installed (run the install script of onnxruntime-node, which this project skips by .npmrc)";
    }
    if (reason === null) choice.order.push(provider);
    else choice.passedOver.push({ provider, reason });
    // What is wanted after the CPU would never be tried.
    if (provider === 'cpu') break;
  }
  if (choice.order.at(-1) !== 'cpu') choice.order.push('cpu');
  return choice;
}

/**
 * Providers of one session as onnxruntime-node takes them: the chosen one, then what runs the nodes it leaves.
 * @param order as chosen; the providers after the first are its fallbacks
 */
export function sessionProviders(
  order: readonly Provider[],
  deviceId: number,
): (string | { name: 'tensorrt' | 'cuda'; deviceId: number })[] {
  return order.map((provider) => (provider === 'cpu' ? 'cpu' : { name: provider, deviceId }));
}

/**
 * TensorRT builds an engine for minutes the first time: it is kept in this folder. Through the environment, since the
 * Node binding hands on nothing but the device (onnxruntime `js/node/src/session_options_helper.cc`).
 */
export function tensorrtEnvironment(cacheDir: string): Record<string, string> {
  return {
    ORT_TENSORRT_ENGINE_CACHE_ENABLE: '1',
    ORT_TENSORRT_CACHE_PATH: cacheDir,
    ORT_TENSORRT_TIMING_CACHE_ENABLE: '1',
    ORT_TENSORRT_FP16_ENABLE: '0',
  };
}

/** The machine itself. @param backends as onnxruntime-node lists them, where it is loaded anyhow */
export function machineProbe(backends: readonly string[] | null = null): ProviderProbe {
  return {
    backends: () => backends,
    library(provider) {
      const dir = bindingDir();
      const file = process.platform === 'win32' ? `onnxruntime_providers_${provider}.dll` : `libonnxruntime_providers_${provider}.so`;
      return dir !== null && existsSync(path.join(dir, file));
    },
    gpus() {
      if (process.platform === 'win32') {
        return existsSync(path.join(process.env.SystemRoot ?? 'C:\\Windows', 'System32', 'nvcuda.dll')) ? 1 : 0;
      }
      if (process.platform !== 'linux' || !existsSync('/proc/driver/nvidia/version')) return 0;
      const { CUDA_VISIBLE_DEVICES: visible } = process.env;
      if (visible !== undefined) return visible.split(',').filter((id) => id.trim() !== '' && id.trim() !== '-1').length;
      return readdirSync('/dev').filter((name) => /^nvidia\d+$/.test(name)).length;
    },
  };
}

/** Folder of onnxruntime-node's binding for this platform, or null. */
function bindingDir(): string | null {
  try {
    const main = createRequire(import.meta.url).resolve('onnxruntime-node');
    const bin = path.join(main.slice(0, main.lastIndexOf('onnxruntime-node') + 'onnxruntime-node'.length), 'bin');
    const napi = readdirSync(bin).find((name) => name.startsWith('napi-'));
    return napi === undefined ? null : path.join(bin, napi, process.platform, process.arch);
  } catch {
    return null;
  }
}
