/**
 * Workflows: the durable order of things. Deterministic: they import src/domain and *types* of activities, nothing else.
 * One file a workflow, read top to bottom; payloads are references and numbers, never images, vectors or secrets.
 */
export { gpuJob } from './gpuJob.js';
export { dailyTurn } from './dailyTurn.js';
export { shadowTrial } from './shadowTrial.js';
export { lifecycle } from './lifecycle.js';
export { answerReviews } from './answerReviews.js';
export { importImages } from './importImages.js';
