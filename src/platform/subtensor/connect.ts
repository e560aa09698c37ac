/** One connection to one node: made whole or not at all, ended when it breaks. Coming back is `follow.ts`'s business. */
import { ApiPromise, WsProvider } from '@polkadot/api';
import { endpointName } from './address.js';
import { ChainError, explainRpcError } from './errors.js';

export interface Chain {
  readonly api: ApiPromise;
  /** 0x and 64 hex digits: which chain this is */
  readonly genesis: string;
  /** resolves when the connection is lost or closed */
  readonly lost: Promise<void>;
  /** Safe to call twice. */
  close(): Promise<void>;
}

/**
 * The runtime's fee extension under the name it has had since 2025 (opentensor/subtensor,
 * runtime/src/transaction_payment_wrapper.rs): @polkadot/api 16.5 does not know it, would leave out the byte of the tip,
 * and the runtime would then read the rest of the transaction one byte off and reject it.
 */
const SIGNED_EXTENSIONS = { ChargeTransactionPaymentWrapper: { extrinsic: { tip: 'Compact<u64>' }, payload: {} } };

/** @throws ChainError after `ms`; `what` completes 'The node did not ... in time' */
export async function withTimeout<T>(promise: Promise<T>, ms: number, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  try {
    return await Promise.race([
      promise,
      new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(new ChainError(`The node did not ${what} within ${Math.round(ms / 100) / 10} s.`)), ms);
      }),
    ]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * @param endpoint ws:// or wss://
 * @param timeoutMs for connecting and learning the runtime's metadata together (some hundred kilobytes), ms
 * @param signal gives up while it is being made
 * @throws ChainError when it cannot be done in time; nothing is left open then
 */
export async function connectChain(endpoint: string, timeoutMs: number, signal?: AbortSignal): Promise<Chain> {
  const name = endpointName(endpoint);
  // Not self-connecting: a broken connection is thrown away as a whole, so that no half-initialised state comes back.
  const provider = new WsProvider(endpoint, false, {}, timeoutMs, 0);
  let failed: ((error: Error) => void) | null = null;
  let isLost: () => void = () => undefined;
  const lost = new Promise<void>((resolve) => (isLost = resolve));
  const broken = new Promise<never>((_, reject) => (failed = reject));
  broken.catch(() => undefined);
  provider.on('disconnected', () => {
    isLost();
    failed?.(new ChainError(`No connection to ${name}: it was refused or closed.`));
  });
  provider.on('error', () => failed?.(new ChainError(`No connection to ${name}: nothing answers there.`)));
  const giveUp = (): void => failed?.(signal?.reason as Error);
  signal?.addEventListener('abort', giveUp, { once: true });
  let api: ApiPromise | null = null;
  let closing: Promise<void> | null = null;
  const close = (): Promise<void> =>
    (closing ??= (async () => {
      isLost();
      try {
        await (api === null ? provider.disconnect() : api.disconnect());
      } catch {
        // It was open no longer.
      }
    })());
  try {
    const ready = (async () => {
      await provider.connect();
      await provider.isReady;
      api = new ApiPromise({ provider, signedExtensions: SIGNED_EXTENSIONS, noInitWarn: true, throwOnConnect: true });
      await api.isReadyOrError;
      return api;
    })();
    ready.catch(() => undefined);
    const made = await withTimeout(Promise.race([ready, broken]), timeoutMs, 'introduce itself');
    return { api: made, genesis: made.genesisHash.toHex(), lost, close };
  } catch (error) {
    await close();
    throw error instanceof ChainError ? error : new ChainError(`${name}: ${explainRpcError(error).message}`, null, { cause: error });
  } finally {
    signal?.removeEventListener('abort', giveUp);
  }
}
