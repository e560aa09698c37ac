/**
 * Activities: what touches the world, a factory a capability over the ports in `src/platform/ports.ts`.
 * Every one is idempotent: it may run twice or die half-way. Workflows import only the types of this folder.
 */
import { datasetActivities } from './dataset.js';
import type { ActivityDeps } from './deps.js';
import { jobActivities } from './jobs.js';
import { lifecycleActivities } from './lifecycle.js';
import { miningActivities } from './mining.js';
import { modelActivities } from './models.js';
import { reviewActivities } from './reviews.js';
import { trafficActivities } from './traffic.js';
import { turnActivities } from './turns.js';

/** All activities of a worker. */
export function createActivities(deps: ActivityDeps) {
  return {
    ...turnActivities(deps),
    ...datasetActivities(deps),
    ...jobActivities(deps),
    ...trafficActivities(deps),
    ...miningActivities(deps),
    ...modelActivities(deps),
    ...lifecycleActivities(deps),
    ...reviewActivities(deps),
  };
}
export type Activities = ReturnType<typeof createActivities>;
export type { ActivityDeps } from './deps.js';
export type { ImportSummary, Manifests } from './dataset.js';
export type { ReviewsTaken } from './reviews.js';
