/**
 * Inference: the one path from encoded image to prediction that miner, evaluation and parity checks share.
 * Bundles on disk, Pillow-exact preprocessing, ONNX sessions in child processes, the pool that feeds them.
 * Nothing here speaks HTTP or Bittensor, and nothing here decides which bundle is served.
 */
export * from './batching.js';
export * from './bundle.js';
export * from './ensemble.js';
export * from './evaluate.js';
export * from './memory.js';
export * from './pool.js';
export * from './preprocess.js';
export * from './providers.js';
export * from './sizing.js';
