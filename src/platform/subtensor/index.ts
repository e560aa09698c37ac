/**
 * The Bittensor chain (subtensor): who is on the subnet, and where this miner is to be found.
 * `metagraph.ts` and `axon.ts` say what is read and sent, `follow.ts` keeps at it, in a thread of its own (`thread.ts`),
 * `source.ts` is what the miner sees. No rules of the subnet here, and no key: signing is asked of its owner.
 * Storage and calls follow opentensor/subtensor (pallets/subtensor) and bittensor 9.12.2 (core/extrinsics/serving.py).
 */
export { endpointName, publicAddress, type PublicAddress } from './address.js';
export { isCurrent, probeAxon, type AxonOnChain, type ProbeResult } from './axon.js';
export { cacheFile } from './cache.js';
export { ChainError } from './errors.js';
export type { AdvertiseState } from './follow.js';
export { askAxon, chainMetagraph, type ChainMetagraphOptions, type ChainMetagraphSource } from './source.js';
