/**
 * The miner: answers validators with the champion, journals what it saw, runs the shadow, follows the pointer.
 * Serves on when Temporal, the store and the catalog are down: it knows only its home folder.
 * No catalog, no workflows, no environment variables here; inference and wire format are the platform's.
 */
export { openAxon } from './axon.js';
export { MAX_BODY_BYTES } from './body.js';
export { Journal } from './journal.js';
export { Permits } from './metagraph.js';
export { chosen, PortError, runMiner, type Miner, type MinerLogger, type MinerOptions } from './run.js';
export { NonceLog, NonceTable } from './nonces.js';
export { requestId, Verifier } from './verify.js';
