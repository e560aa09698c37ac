/** Proxies of activities, one block per class of time-out and retry, each with its reason. */
import { proxyActivities, ActivityCancellationType } from '@temporalio/workflow';
import type { Activities } from '../activities/index.js';
import { NON_RETRYABLE } from '../domain/errors.js';

/**
 * Catalog rows and small files on local disk: milliseconds when all is well. Tried for ever: a locked or restarted
 * writer comes back, and every one of them is idempotent.
 */
export const quick = proxyActivities<Activities>({
  startToCloseTimeout: '1 minute',
  retry: { initialInterval: '500ms', backoffCoefficient: 2, maximumInterval: '10s', nonRetryableErrorTypes: NON_RETRYABLE },
});

/**
 * Reading, decoding, sending and predicting over many images: minutes, so they beat, and a dead worker is noticed
 * within the heartbeat's limit. Ten tries: what fails ten times in a row needs a person.
 */
export const heavy = proxyActivities<Activities>({
  startToCloseTimeout: '2 hours',
  heartbeatTimeout: '20s',
  retry: {
    initialInterval: '1s',
    backoffCoefficient: 2,
    maximumInterval: '30s',
    maximumAttempts: 10,
    nonRetryableErrorTypes: NON_RETRYABLE,
  },
});

/**
 * Watching a job on a machine that costs money: tried for ever, for an unwatched job goes on costing. Its own limit is
 * the dead-man timer on the machine.
 */
export const watch = proxyActivities<Activities>({
  startToCloseTimeout: '7 days',
  heartbeatTimeout: '20s',
  cancellationType: ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
  retry: { initialInterval: '1s', backoffCoefficient: 1.5, maximumInterval: '30s', nonRetryableErrorTypes: NON_RETRYABLE },
});
