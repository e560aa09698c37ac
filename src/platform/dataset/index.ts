/**
 * Data sets on disk: which images there are and what is said of them, their bytes into the object store, and which of them
 * are the same picture. Pools are assigned in the domain; nothing here writes to the catalog.
 */
export { scanDataset, parseLabel, describeProblems, type DatasetProblem, type DatasetRow, type DatasetScan } from './scan.js';
export { readImages, type ReadImage, type ReadOptions, type ReadReport } from './read.js';
export { imageHashes, hammingHex, hammingPairs, type ImageHashes } from './phash.js';
export { nearDuplicates, NEAR_DEFAULTS, type NearOptions, type NearReport } from './near.js';
