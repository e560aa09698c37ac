/**
 * The Bittensor wire: sr25519 hotkeys, what a dendrite signs and an axon expects, and a dendrite of our own.
 * Knows nothing of models, images or the miner's state; no chain access.
 * Facts follow bittensor 9.12.2 (`core/dendrite.py`, `core/axon.py`, `core/synapse.py`).
 */
export * from './dendrite.js';
export * from './keys.js';
export * from './protocol.js';
