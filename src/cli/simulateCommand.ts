/**
 * `flywheel simulate`: plays a validator. Draws challenges as the profile does, asks the running miner over signed HTTP,
 * and scores it exactly as a validator would. The answers are journaled like any other traffic, so challenges are drawn
 * from the pool `traffic` alone.
 */
import { randomInt } from 'node:crypto';
import { ChallengeRow, ChallengesOutput } from '../domain/contracts/jobs.js';
import { BadInputError } from '../domain/errors.js';
import { metricsOf, NO_ANSWER } from '../domain/metrics.js';
import { record, reward, type MinerWindow, type ScoredAnswer } from '../domain/reward.js';
import { connectDendrite } from '../platform/bittensor/dendrite.js';
import { loadHotkey } from '../platform/bittensor/keys.js';
import { openCatalogReadOnly } from '../platform/catalog/index.js';
import { readServices } from '../platform/home.js';
import { FileObjectStore } from '../platform/objects/index.js';
import { connectTemporal, locateTemporal } from '../platform/temporal/server.js';
import { ServiceUnavailableError } from '../platform/unavailable.js';
import type { gpuJob } from '../workflows/index.js';
import { TASK_QUEUE } from '../workflows/types.js';
import type { CommandContext } from './context.js';

/** @throws ServiceUnavailableError when no miner runs; BadInputError when there is nothing to draw from */
export async function simulateCommand(context: CommandContext, options: { challenges?: number; seed?: number }): Promise<void> {
  const { paths, config, progress } = context;
  const { miner } = readServices(paths);
  if (miner === null) throw new ServiceUnavailableError(`No miner runs on ${paths.root}. Start one with \`flywheel up\`.`);
  const count = options.challenges ?? config.traffic.challenges;
  const seed = options.seed ?? randomInt(2 ** 31);
  const objects = new FileObjectStore(paths.objects);
  const set = await drawChallenges(context, objects, count, seed);
  const rows = (await objects.getJsonl(set, (row) => ChallengeRow.parse(row))).filter((row) => row.label !== null);

  const dendrite = connectDendrite({ hotkey: await loadHotkey(paths.validatorKey) });
  const stage = progress.stage('challenges');
  const answers: (ScoredAnswer | null)[] = rows.map(() => null);
  const latencies: number[] = [];
  const errors = new Map<string, number>();
  let window: MinerWindow | null = null;
  let next = 0;
  let done = 0;
  try {
    const ask = async (): Promise<void> => {
      for (let i = next++; i < rows.length; i = next++) {
        const row = rows[i];
        if (row === undefined || row.label === null) continue;
        const image = await objects.get(row.digest);
        const answer = await dendrite.ask({
          url: miner.url,
          axonHotkey: miner.hotkey,
          image,
          timeoutSeconds: config.traffic.timeoutSeconds,
        });
        answers[i] = { label: row.label, prediction: answer.prediction ?? NO_ANSWER };
        if (answer.prediction === null)
          errors.set(answer.error ?? `status ${answer.status}`, (errors.get(answer.error ?? `status ${answer.status}`) ?? 0) + 1);
        else latencies.push(answer.latencyMs);
        stage.update({ done: ++done, total: rows.length, message: `${done}/${rows.length}` });
      }
    };
    await Promise.all(Array.from({ length: config.traffic.concurrency }, ask));
  } finally {
    await dendrite.close();
  }
  const given = answers.filter((answer) => answer !== null);
  for (const answer of given) window = record(window, miner.hotkey, answer);
  stage.done(`${latencies.length} answered`);
  progress.close();

  const metrics = metricsOf(given.filter((answer) => answer.prediction !== NO_ANSWER));
  latencies.sort((a, b) => a - b);
  const quantile = (share: number): number | null =>
    latencies[Math.min(latencies.length - 1, Math.floor(share * latencies.length))] ?? null;
  const result = {
    simulated: true,
    seed,
    asked: given.length,
    answered: latencies.length,
    errors: Object.fromEntries(errors),
    metrics,
    reward: window === null ? 0 : reward(window.answers),
    latencyMs: { p50: quantile(0.5), p99: quantile(0.99) },
  };
  await context.print(
    [
      `Simulated validator, ${result.asked} challenges, seed ${seed}:`,
      `  answered  ${result.answered}${errors.size > 0 ? ` (${[...errors].map(([why, n]) => `${n} x ${why}`).join('; ')})` : ''}`,
      `  accuracy  ${(metrics.accuracy * 100).toFixed(1)}%   MCC ${metrics.mcc.toFixed(3)}   Brier ${metrics.brier.toFixed(3)}`,
      `  reward    ${result.reward.toFixed(3)} (the newest 100 answers, as a validator counts)`,
      `  latency   ${result.latencyMs.p50?.toFixed(0) ?? '-'} ms in the middle, ${result.latencyMs.p99?.toFixed(0) ?? '-'} ms at p99`,
    ].join('\n'),
  );
  await context.result(result);
}

/** @returns digest of the challenge set, made by the job that makes all of them */
async function drawChallenges(context: CommandContext, objects: FileObjectStore, count: number, seed: number): Promise<string> {
  const { paths, config, progress } = context;
  const catalog = await openCatalogReadOnly(paths.catalog);
  let images;
  try {
    images = await catalog.images({ pools: ['traffic'], provider: null });
  } finally {
    await catalog.close();
  }
  const labelled = images.filter((row) => row.label !== null);
  if (!labelled.some((row) => row.label === 0) || !labelled.some((row) => row.label === 1)) {
    throw new BadInputError(
      'The pool "traffic" holds no labelled images of both classes yet, so there is nothing to ask about. Import a data set first: `flywheel import DIR`.',
    );
  }
  const manifest = await objects.putJsonl(labelled.sort((a, b) => (a.digest < b.digest ? -1 : 1)));
  const stage = progress.stage('draw');
  const client = await connectTemporal(await locateTemporal(paths));
  try {
    const { output } = await client.workflow.execute<typeof gpuJob>('gpuJob', {
      taskQueue: TASK_QUEUE,
      workflowId: `simulate-${seed}-${manifest.slice(0, 8)}-${count}`,
      workflowIdConflictPolicy: 'USE_EXISTING',
      staticSummary: `${count} challenges for \`flywheel simulate\``,
      args: [
        {
          kind: 'challenges',
          input: { manifest, profile: config.profile, mode: 'draw', count, seed },
          turn: 'simulate',
          summary: 'challenges for `flywheel simulate`',
          maxSeconds: config.gpu.maxJobSeconds,
        },
      ],
    });
    stage.done();
    return ChallengesOutput.parse(output).set;
  } catch (error) {
    stage.fail('failed');
    throw error;
  } finally {
    await client.connection.close();
  }
}
