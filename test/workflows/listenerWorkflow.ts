/** Stands where a lifecycle would, and remembers the reports it gets. */
import { condition, defineQuery, setHandler } from '@temporalio/workflow';
import { trialReport } from '../../src/workflows/messages.js';
import type { TrialReport } from '../../src/workflows/types.js';

export const reportsQuery = defineQuery<TrialReport[]>('reports');

export async function listener(): Promise<void> {
  const reports: TrialReport[] = [];
  setHandler(trialReport, (r) => void reports.push(r));
  setHandler(reportsQuery, () => reports);
  await condition(() => false);
}
