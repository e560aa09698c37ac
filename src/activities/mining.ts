/** Hard cases, synthetic images and their labels. */
import sharp from 'sharp';
import { z } from 'zod';
import { Digest, ImageRow, type Label } from '../domain/contracts/common.js';
import { ChallengeRow, type JobInput } from '../domain/contracts/jobs.js';
import { figures, type Figure, type FigureRow } from '../domain/figures.js';
import { decideLabels as decide } from '../domain/consensus.js';
import { hardness, rankHardCases, type HardCase } from '../domain/hardness.js';
import { assertNoLeak, inherit } from '../domain/provenance.js';
import { PredictionRow } from './models.js';
import { sorted } from './dataset.js';
import { beating, type ActivityDeps } from './deps.js';
import { byImage } from './traffic.js';
import { configOf } from './turns.js';

export const VoteRow = z.object({ digest: Digest, votes: z.array(z.object({ member: z.string(), p: z.number().min(0).max(1) })) });

/** Votes are rounded before they are ranked: the order of a batch may move the last bits, and the same turn must find the same cases. */
const ROUND = 1e4;
const round = (p: number) => Math.round(p * ROUND) / ROUND;

export interface HardCasesFound {
  count: number;
  /** manifest of the hard cases to synthesise from */
  failures: Digest;
  /** manifest of labelled photographs and hard traffic that neighbours are looked up in */
  corpus: Digest;
  /** wrong where truth is known (out of fold) */
  fromTruth: number;
  /** unsure, unstable or split where it is not */
  fromTraffic: number;
  hardest: { digest: Digest; hardness: number; why: string }[];
  considered: { truth: number; traffic: number };
  /** accuracy on labelled photographs by voters that never saw their clip: what a new camera or city may bring */
  unseen: Figure[];
}

export function miningActivities(deps: ActivityDeps) {
  const { catalog, objects } = deps;

  return {
    /** Augmented views of what this turn's traffic showed. Journaled challenges of the held-out pool stay out. */
    async viewsInput(input: { config: Digest; turn: string; set: Digest; seed: number }): Promise<JobInput<'challenges'>> {
      const config = await configOf(deps, input.config);
      const rows = await journaledRows(input.turn);
      return {
        manifest: await objects.putJsonl(sorted(rows)),
        profile: config.profile,
        mode: 'variants',
        count: config.hardCases.views,
        seed: input.seed,
        flips: false,
      };
    },

    async mineHardCases(input: {
      turn: string;
      config: Digest;
      set: Digest;
      viewSet: Digest;
      viewPredictions: Digest;
      outOfFold: Digest;
    }): Promise<HardCasesFound> {
      const beat = beating();
      const { hardCases } = await configOf(deps, input.config);
      const earlier = await earlierFailures(input.turn);

      const predictionOf = new Map(
        (await objects.getJsonl(input.viewPredictions, (r) => PredictionRow.parse(r))).map((r) => [r.digest, r.prediction]),
      );
      const views = new Map<string, number[]>();
      for (const view of await objects.getJsonl(input.viewSet, (r) => ChallengeRow.parse(r))) {
        const p = predictionOf.get(view.digest);
        if (p !== undefined) views.set(view.parent, [...(views.get(view.parent) ?? []), round(p)]);
      }
      beat();

      const cases: HardCase[] = [];
      const traffic = byImage((await turnTraffic(input.turn)).filter((r) => !earlier.has(r.image)));
      for (const row of traffic) {
        const seen = hardness(
          { prediction: round(row.prediction), votes: mapValues(row.votes, round), views: views.get(row.image) ?? [], label: null },
          hardCases,
        );
        cases.push({ digest: row.image, ...seen });
      }
      const photographs = new Map((await catalog.images({ pools: ['train'] })).map((r) => [r.digest, r]));
      const unseen: FigureRow[] = [];
      const votes = await objects.getJsonl(input.outOfFold, (r) => VoteRow.parse(r));
      for (const row of votes) {
        const photograph = photographs.get(row.digest);
        if (!photograph || photograph.label === null) continue;
        const prediction = row.votes.reduce((sum, v) => sum + v.p, 0) / row.votes.length;
        unseen.push({ label: photograph.label, prediction, group: photograph.group, source: photograph.source });
      }
      const oof = votes.filter((r) => !earlier.has(r.digest));
      for (const row of oof) {
        const label = photographs.get(row.digest)?.label ?? null;
        const prediction = round(row.votes.reduce((sum, v) => sum + v.p, 0) / row.votes.length);
        const seen = hardness(
          { prediction, votes: Object.fromEntries(row.votes.map((v) => [v.member, round(v.p)])), views: [], label },
          hardCases,
        );
        if (seen.failure) cases.push({ digest: row.digest, ...seen });
      }
      const ranked = rankHardCases(
        cases.filter((c) => c.failure),
        hardCases.maxFailures,
      );

      // Traffic that was hard becomes images of the catalog, with their provenance.
      const journaled = new Map((await journaledRows(input.turn)).map((r) => [r.digest, r]));
      const hardTraffic = ranked.flatMap((c) => journaled.get(c.digest) ?? []);
      await catalog.addImages(hardTraffic, deps.clock());
      const failures = ranked
        .map((c) => journaled.get(c.digest) ?? photographs.get(c.digest))
        .filter((r): r is ImageRow => r !== undefined);
      const corpus = [...[...photographs.values()].filter((r) => r.parents.length === 0 && r.label !== null), ...hardTraffic];
      return {
        count: failures.length,
        failures: await objects.putJsonl(sorted(failures)),
        corpus: await objects.putJsonl(sorted(corpus)),
        fromTruth: failures.length - hardTraffic.length,
        fromTraffic: hardTraffic.length,
        hardest: ranked.slice(0, 5).map((c) => ({ digest: c.digest, hardness: c.hardness, why: whyHard(c) })),
        considered: { truth: oof.length, traffic: traffic.length },
        unseen: figures(unseen, deps.config.seed),
      };
    },

    /** Checks every parent's pool before a derived image is registered: a leak is refused, whole. */
    async registerSynthetic(input: { turn: string; manifest: Digest }): Promise<{ added: number; known: number }> {
      const rows = await objects.getJsonl(input.manifest, (r) => ImageRow.parse(r));
      const parents = new Map((await catalog.images({ digests: [...new Set(rows.flatMap((r) => r.parents))] })).map((r) => [r.digest, r]));
      assertNoLeak(rows, (digest) => parents.get(digest) ?? null);
      return catalog.addImages(rows, deps.clock());
    },

    async labelCandidates(input: { turn: string; synthetic: Digest; hard: Digest }): Promise<{ manifest: Digest; count: number }> {
      const synthetic = await objects.getJsonl(input.synthetic, (r) => ImageRow.parse(r));
      const hard = (await objects.getJsonl(input.hard, (r) => ImageRow.parse(r))).filter((r) => r.label === null);
      const rows = sorted([...new Map([...synthetic, ...hard].map((r) => [r.digest, r])).values()]);
      return { manifest: await objects.putJsonl(rows), count: rows.length };
    },

    async decideLabels(input: {
      turn: string;
      config: Digest;
      candidates: Digest;
      votes: Digest;
      seed: number;
    }): Promise<{ consensus: number; rejected: number; toVerify: number }> {
      const { labels } = await configOf(deps, input.config);
      const rows = new Map((await objects.getJsonl(input.candidates, (r) => ImageRow.parse(r))).map((r) => [r.digest, r]));
      const votes = await objects.getJsonl(input.votes, (r) => VoteRow.parse(r));
      const decided = decide(
        votes.map((v) => ({ digest: v.digest, votes: v.votes, intent: rows.get(v.digest)?.intent ?? null })),
        { confidence: labels.confidence, verifyShare: labels.verifyShare, seed: input.seed },
      );
      const at = deps.clock();
      const members = [...new Set(votes.flatMap((v) => v.votes.map((m) => m.member)))].join('+');
      await catalog.addLabels(
        decided.consensus.map((c) => ({
          digest: c.digest,
          label: c.label,
          kind: 'consensus' as const,
          provenance: `${input.turn}: ${members}`,
          weight: labels.unreviewedWeight,
          at,
        })),
      );
      const votesOf = new Map(votes.map((v) => [v.digest, Object.fromEntries(v.votes.map((m) => [m.member, m.p]))]));
      await catalog.askReview(
        decided.review.map((r) => ({
          digest: r.digest,
          turn: input.turn,
          reason: r.reason,
          proposed: r.proposed,
          votes: votesOf.get(r.digest) ?? {},
          askedAt: at,
        })),
      );
      return { consensus: decided.consensus.length, rejected: decided.rejected.length, toVerify: decided.review.length };
    },
  };

  /** Answers journaled since the previous turn began, without our own challenges of the held-out pool. */
  async function turnTraffic(turn: string) {
    const turns = await catalog.turns(1_000_000);
    const now = turns.find((t) => t.id === turn);
    const before = turns.filter((t) => t.id !== turn && t.startedAt < (now?.startedAt ?? Infinity)).map((t) => t.startedAt);
    const sinceMs = before.length > 0 ? Math.max(...before) : 0;
    return (await catalog.traffic({ sinceMs })).filter((r) => r.challenge === null || r.challenge.pool === 'traffic');
  }

  async function journaledRows(turn: string): Promise<ImageRow[]> {
    const rows = byImage(await turnTraffic(turn));
    const parents = new Map(
      (await catalog.images({ digests: rows.flatMap((r) => (r.challenge ? [r.challenge.parent] : [])) })).map((r) => [r.digest, r]),
    );
    return Promise.all(
      rows.map(async (row): Promise<ImageRow> => {
        const { width, height } = await sharp(await objects.get(row.image)).metadata();
        const parent = row.challenge ? parents.get(row.challenge.parent) : undefined;
        const inherited = parent ? inherit([parent]) : { pool: 'traffic' as const, group: `traffic-${row.image.slice(0, 16)}` };
        return {
          digest: row.image,
          label: null, // the validator knows; the flywheel does not
          truth: 'none',
          ...inherited,
          source: parent?.source ?? 'validators',
          parents: parent ? [parent.digest] : [],
          provider: parent ? 'challenge' : null,
          intent: null,
          weight: 1,
          width,
          height,
        };
      }),
    );
  }

  async function earlierFailures(turn: string): Promise<Set<string>> {
    const seen = new Set<string>();
    for (const other of await catalog.turns(1_000_000)) {
      if (other.id === turn) continue;
      const found = other.summary['hardCases'] as HardCasesFound | undefined;
      if (found) for (const row of await objects.getJsonl(found.failures, (r) => ImageRow.parse(r))) seen.add(row.digest);
    }
    return seen;
  }
}

function whyHard(c: HardCase): string {
  const { error, disagreement, instability, lowConfidence } = c.parts;
  if (error !== null) return `error ${error.toFixed(2)}`;
  const parts: [string, number][] = [
    ['members disagree', disagreement],
    ['unstable under augmentation', instability],
    ['unsure', lowConfidence],
  ];
  parts.sort((a, b) => b[1] - a[1]);
  return `${parts[0]![0]} (${parts[0]![1].toFixed(2)})`;
}

function mapValues(record: Record<string, number>, f: (n: number) => number): Record<string, number> {
  return Object.fromEntries(Object.entries(record).map(([k, v]) => [k, f(v)]));
}

export type { Label };
