/** Traffic: the built-in validator, the journal's way into the catalog, the shadow. */
import { rm } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { ApplicationFailure } from '@temporalio/activity';
import { ChallengeRow } from '../domain/contracts/jobs.js';
import type { Digest } from '../domain/contracts/common.js';
import { BadInputError } from '../domain/errors.js';
import { type ShadowOrder } from '../domain/contracts/miner.js';
import { quantileAtLeast } from '../domain/statistics.js';
import { readJournal } from '../platform/journal.js';
import { writeFileAtomic } from '../platform/fsutil.js';
import type { TrafficRow } from '../platform/ports.js';
import { beating, type ActivityDeps } from './deps.js';
import { configOf } from './turns.js';

/** A challenge that met a restarting miner is asked again: simulated traffic is for learning, not for a score. */
const TRIES = 20;
const BETWEEN_TRIES_MS = 500;
/** The journal is written off the hot path: how long its last lines may take to appear. */
const JOURNAL_PATIENCE_MS = 10_000;
const POLL_MS = 250;
/** How long a miner may take to load a bundle before the stage says so. */
const SERVING_PATIENCE_MS = 5 * 60_000;

export interface ShadowStatistics {
  /** journaled answers that also ran on the candidate */
  answers: number;
  errors: number;
  /** what the 99th percentile surely is at least (95%): one slow answer of sixty refuses nobody, ms */
  p99Ms: number;
  /** the same of the champion's own answers to these requests, ms; absent in histories of older versions */
  championP99Ms?: number;
}

export function trafficActivities(deps: ActivityDeps) {
  const { catalog, objects, home } = deps;

  return {
    async registerChallenges(input: { set: Digest; turn: string; purpose: string; seed: number }): Promise<void> {
      const rows = await objects.getJsonl(input.set, (row) => ChallengeRow.parse(row));
      await catalog.addChallengeSet(
        { digest: input.set, profile: deps.config.profile, seed: input.seed, purpose: input.purpose, turn: input.turn, at: deps.clock() },
        rows,
      );
    },

    /**
     * Sends every challenge of the set that the catalog has no answer for, and ingests the journal.
     * Runs again where it broke off; `missing` counts challenges still without a journaled answer.
     */
    async sendTraffic(input: {
      set: Digest;
      config: Digest;
      round: number;
    }): Promise<{ asked: number; answered: number; failed: number; missing: number }> {
      const beat = beating();
      const config = await configOf(deps, input.config);
      const rows = await objects.getJsonl(input.set, (row) => ChallengeRow.parse(row));
      const todo = await unanswered();
      const validator = await deps.validator();
      let answered = 0;
      const failures = new Map<string, number>();
      try {
        const queue = [...todo];
        const worker = async () => {
          for (let row = queue.shift(); row; row = queue.shift()) {
            const image = await objects.get(row.digest);
            let answer = await validator.ask(image, config.traffic.timeoutSeconds);
            for (let i = 1; answer.prediction === null && i < TRIES; i++) {
              await sleep(BETWEEN_TRIES_MS);
              beat();
              answer = await validator.ask(image, config.traffic.timeoutSeconds);
            }
            if (answer.prediction !== null) answered += 1;
            else
              failures.set(answer.error ?? `status ${answer.status}`, (failures.get(answer.error ?? `status ${answer.status}`) ?? 0) + 1);
            beat({ turn: '', what: 'challenges', done: rows.length - queue.length, total: rows.length, unit: 'challenges' });
          }
        };
        await Promise.all(Array.from({ length: config.traffic.concurrency }, worker));
      } finally {
        await validator.close();
      }
      if (todo.length > 0 && answered === 0) {
        throw ApplicationFailure.retryable(
          `the miner answered none of ${todo.length} challenges: ${[...failures].map(([why, n]) => `${n} x ${why}`).join('; ')}`,
          'MinerSilent',
        );
      }
      let missing: number;
      const deadline = deps.clock() + JOURNAL_PATIENCE_MS;
      do {
        await ingest(beat);
        missing = (await unanswered()).length;
        if (missing > 0) await sleep(POLL_MS);
      } while (missing > 0 && deps.clock() < deadline);
      return { asked: rows.length, answered: rows.length - missing, failed: todo.length - answered, missing };

      async function unanswered() {
        await ingest(beat);
        const seen = new Set((await catalog.traffic({ set: input.set })).map((r) => r.image));
        return rows.filter((r) => !seen.has(r.digest));
      }
    },

    /** Waits until the miner serves this bundle. */
    async awaitServing(input: { hotkey: string; bundle: Digest }): Promise<void> {
      await awaitMiner('serve', input.bundle, (s) => s.ready && s.serving?.digest === input.bundle);
    },

    async openShadow(input: { trial: string; bundle: Digest; config: Digest }): Promise<void> {
      const { trial } = await configOf(deps, input.config);
      const order: ShadowOrder = { trial: input.trial, digest: input.bundle, share: trial.share };
      await writeFileAtomic(home.shadow, JSON.stringify(order));
    },

    async closeShadow(_input: { trial: string }): Promise<void> {
      await rm(home.shadow, { force: true });
    },

    async awaitShadow(input: { trial: string; bundle: Digest }): Promise<void> {
      await awaitMiner('run the shadow of', input.bundle, (s) => s.shadowReady && s.shadow?.digest === input.bundle);
    },

    async shadowStatistics(input: { trial: string; sinceMs: number }): Promise<ShadowStatistics> {
      await ingest(beating());
      const rows = (await catalog.traffic({ trial: input.trial })).flatMap((r) => (r.shadow ? [{ ...r.shadow, own: r.latencyMs }] : []));
      const answered = rows.filter((s) => s.error === null);
      const sure = (times: number[]): number =>
        quantileAtLeast(
          times.sort((a, b) => a - b),
          0.99,
        );
      return {
        answers: rows.length,
        errors: rows.length - answered.length,
        p99Ms: sure(answered.map((s) => s.latencyMs)),
        championP99Ms: sure(answered.map((s) => s.own)),
      };
    },

    /** Brings the journal up to date in the catalog; a job of its own so that it can be run at any time. */
    async ingestJournal(): Promise<{ added: number }> {
      return { added: await ingest(beating()) };
    },
  };

  async function ingest(beat: () => void): Promise<number> {
    let added = 0;
    const offsets = await catalog.journalOffsets();
    for (const part of await readJournal(home.journal, offsets)) {
      const kept: typeof part.records = [];
      for (const record of part.records) {
        if (!(await objects.has(record.image))) {
          try {
            await objects.putFile(path.join(home.journal, 'images', record.image.slice(0, 2), record.image));
          } catch (error) {
            if (!(error instanceof BadInputError)) throw error;
            // The journal is bounded: its oldest images go, whether they were ingested or not. The answer itself is kept out, too.
            deps.log.warn(
              { image: record.image, segment: part.segment },
              'journaled image is gone before it was ingested; its record is skipped',
            );
            continue;
          }
        }
        kept.push(record);
        beat();
      }
      for (const problem of part.problems) deps.log.warn({ segment: part.segment, ...problem }, 'journal line skipped');
      added += (await catalog.addTraffic(kept)).added;
      await catalog.setJournalOffset(part.segment, part.nextOffset);
    }
    return added;
  }

  async function awaitMiner(
    verb: string,
    bundle: Digest,
    good: (status: NonNullable<Awaited<ReturnType<ActivityDeps['minerStatus']>>>) => boolean,
  ): Promise<void> {
    const beat = beating();
    const deadline = deps.clock() + SERVING_PATIENCE_MS;
    let last: Awaited<ReturnType<ActivityDeps['minerStatus']>> = null;
    while (deps.clock() < deadline) {
      last = await deps.minerStatus();
      if (last && good(last)) return;
      beat();
      await sleep(POLL_MS);
    }
    throw ApplicationFailure.retryable(
      `the miner did not ${verb} ${bundle.slice(0, 12)} within ${SERVING_PATIENCE_MS / 1000} s: ${last === null ? 'it does not answer on its control port' : (last.refused ?? 'it gave no reason')}. What was served before goes on being served.`,
      'MinerNotServing',
    );
  }
}

/** Journaled images by digest, one row each: the first answer, so that repeats change nothing. */
export function byImage(rows: readonly TrafficRow[]): TrafficRow[] {
  const first = new Map<string, TrafficRow>();
  for (const row of rows) {
    const seen = first.get(row.image);
    if (!seen || row.at < seen.at || (row.at === seen.at && row.id < seen.id)) first.set(row.image, row);
  }
  return [...first.values()].sort((a, b) => (a.image < b.image ? -1 : 1));
}
