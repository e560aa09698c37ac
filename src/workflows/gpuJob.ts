/**
 * One job on one machine: reserve -> launch or adopt -> watch -> collect -> end. The machine is named by this
 * workflow's id before it is created, so a retry adopts it instead of buying a second one, and it is ended in a scope
 * that no cancellation reaches.
 */
import { ApplicationFailure, CancellationScope, log, setCurrentDetails, workflowInfo } from '@temporalio/workflow';
import { quick, watch } from './proxies.js';
import type { GpuJobInput, GpuJobResult } from './types.js';

/** Starts after an interruption or a loss of the machine; each goes on from the last checkpoint. */
const MAX_ATTEMPTS = 8;

export async function gpuJob(job: GpuJobInput): Promise<GpuJobResult> {
  const name = workflowInfo().workflowId;
  setCurrentDetails(job.summary);
  // Written down before it is bought: a budget that does not cover it refuses here, at no cost.
  await quick.reserveJob({ name, kind: job.kind, maxSeconds: job.maxSeconds });
  try {
    let why = '';
    for (let attempt = 1; attempt <= MAX_ATTEMPTS; attempt++) {
      await quick.launchJob.executeWithOptions({ summary: attempt === 1 ? job.summary : `${job.summary} (start ${attempt}: ${why})` }, [
        { name, kind: job.kind, input: job.input, maxSeconds: job.maxSeconds, turn: job.turn },
      ]);
      const end = await watch.watchJob.executeWithOptions({ summary: job.summary }, [{ name, turn: job.turn, kind: job.kind }]);
      if (end.outcome === 'done') {
        const { output, seconds } = await quick.collectJob({ name, kind: job.kind });
        return { output, seconds, attempts: attempt };
      }
      if (end.outcome === 'bad-input' || end.outcome === 'out-of-memory') {
        throw ApplicationFailure.nonRetryable(`${job.kind} job ${name}: ${end.message}`, 'JobFailedError');
      }
      why = end.message;
      log.warn('job ended early and is started again from its checkpoint', { name, attempt, why });
    }
    throw ApplicationFailure.nonRetryable(
      `${job.kind} job ${name} did not finish in ${MAX_ATTEMPTS} starts; the last end: ${why}. Its folder with logs and checkpoint is kept.`,
      'JobFailedError',
    );
  } finally {
    await CancellationScope.nonCancellable(() => quick.endJob({ name }));
  }
}
