/** Models: registration, evaluation through the production path, verdicts. */
import { z } from 'zod';
import { setTimeout as sleep } from 'node:timers/promises';
import { graphBytes } from '../domain/contracts/bundle.js';
import { Digest, type ImageRow, Label, TruthKind } from '../domain/contracts/common.js';
import { ChallengeRow, type TrainInput } from '../domain/contracts/jobs.js';
import { BadInputError } from '../domain/errors.js';
import { figures } from '../domain/figures.js';
import { answeredOrWrong, gateRefusal, measuredByTruth, type Measured } from '../domain/gates.js';
import { metricsOf, NO_ANSWER } from '../domain/metrics.js';
import { profileOf } from '../domain/profiles/index.js';
import { candidateAlpha, QUARTER_DAYS } from '../domain/spending.js';
import { quantile } from '../domain/statistics.js';
import { judge, type PairedRow } from '../domain/verdict.js';
import type { ModelRecord } from '../platform/ports.js';
import { materialise, loadBundle } from '../platform/inference/bundle.js';
import { evaluate } from '../platform/inference/evaluate.js';
import path from 'node:path';
import type { Evaluation, ModelRef, VerdictNumbers } from '../workflows/types.js';
import { beating, type ActivityDeps } from './deps.js';
import { freshImages, recordedGates, recordGates } from './gates.js';
import { byImage, type ShadowStatistics } from './traffic.js';
import { configOf } from './turns.js';

export const PredictionRow = z.object({
  digest: Digest,
  prediction: z.number().min(0).max(1),
  votes: z.record(z.string(), z.number()),
  ms: z.number(),
});

/** Bundles whose predictions are kept in memory: champion, candidate, and one each before them. */
const BUNDLES_REMEMBERED = 4;
/** Above the limit a candidate may be this much slower than the champion at the same time on the same machine. */
const BUSY_ALLOWANCE = 1.2;

/** What evaluation needs of a manifest's or challenge set's row. */
const Judged = z.object({ digest: Digest, label: Label.nullable(), group: z.string(), source: z.string(), truth: TruthKind });

/** What matters here of an image that a model was trained on. */
const Trained = z.object({ provider: z.string().nullable().default(null) });

/** What is kept of a look beside its verdict, for the looks after it. */
const LookRecord = z.object({
  trial: z.string().nullable().default(null),
  champion: Digest.nullable().default(null),
  sets: z.array(z.object({ set: Digest, champion: Digest, candidate: Digest })).default([]),
  spending: z.object({ spent: z.number() }).nullable().default(null),
});
const LOOK = /^trial look (\d+)$/;
const DAY_MS = 86_400_000;

export interface ShadowEvidence extends ShadowStatistics {
  /** share of journaled images where champion and candidate fall on different sides of 0.5 */
  disagreement: number;
  replayed: number;
}

export function modelActivities(deps: ActivityDeps) {
  const { catalog, objects, home } = deps;

  /** A bundle and an image never change, so what one says of the other need not be asked twice. */
  const remembered = new Map<Digest, Map<Digest, z.infer<typeof PredictionRow>>>();

  /** Predictions of a bundle over a list of images, in its own process, with the miner's own code. */
  async function predictions(turn: string, bundle: Digest, digests: Digest[]): Promise<z.infer<typeof PredictionRow>[]> {
    const beat = beating();
    const bundleDir = path.join(home.bundles, bundle);
    await materialise(objects, bundle, bundleDir);
    const unique = [...new Set(digests)];
    const known = remembered.get(bundle) ?? new Map<Digest, z.infer<typeof PredictionRow>>();
    const fresh = unique.filter((digest) => !known.has(digest));
    const abort = new AbortController();
    const ticking = setInterval(() => {
      try {
        beat();
      } catch (error) {
        abort.abort(error);
      }
    }, 2000);
    try {
      const made = await evaluate({
        bundleDir,
        images: fresh.map((digest) => ({ digest, path: objects.path(digest) })),
        threads: deps.threads,
        signal: abort.signal,
        engineCache: path.join(home.cache, 'tensorrt'),
        onProgress: (done, total) => beat({ turn, what: 'evaluating', done, total, unit: 'images' }),
      });
      for (const row of made) known.set(row.digest, row);
      remembered.delete(bundle);
      remembered.set(bundle, known);
      for (const oldest of remembered.keys()) {
        if (remembered.size <= BUNDLES_REMEMBERED) break;
        remembered.delete(oldest);
      }
      return unique.flatMap((digest) => known.get(digest) ?? []);
    } finally {
      clearInterval(ticking);
    }
  }

  return {
    /** Verifies every digest of the bundle and makes it a model of the catalog. */
    async registerModel(input: {
      turn: string;
      bundle: Digest;
      trained: Digest;
      parent: Digest | null;
      name: string;
      training: unknown;
    }): Promise<ModelRef> {
      const dir = path.join(home.bundles, input.bundle);
      await materialise(objects, input.bundle, dir);
      await loadBundle(dir);
      const known = await catalog.model(input.bundle);
      if (known) return { id: known.id, bundle: known.bundle, trained: known.trained };
      await catalog.addModel({
        id: input.name,
        bundle: input.bundle,
        trained: input.trained,
        parent: input.parent,
        turn: input.turn,
        status: 'candidate',
        createdAt: deps.clock(),
        evidence: { training: input.training },
      });
      return { id: input.name, bundle: input.bundle, trained: input.trained };
    },

    async findModel(input: { model: string }): Promise<ModelRef> {
      const found = await catalog.model(input.model);
      if (!found) throw new BadInputError(`no model "${input.model}" in the catalog; "flywheel status" lists them`);
      return { id: found.id, bundle: found.bundle, trained: found.trained };
    },

    async rejectModel(input: { model: string; reason: string }): Promise<void> {
      await catalog.setModelStatus(input.model, 'rejected', { rejected: input.reason });
    },

    /** The production inference path over a manifest or a challenge set. */
    async evaluateModel(input: { turn: string; bundle: Digest; manifest: Digest }): Promise<Evaluation> {
      const rows = await objects.getJsonl(input.manifest, (r) => Judged.parse(r));
      if (rows.length === 0) throw new BadInputError(`manifest ${input.manifest} has no images to evaluate on`);
      const made = await predictions(
        input.turn,
        input.bundle,
        rows.map((r) => r.digest),
      );
      const of = new Map(made.map((p) => [p.digest, p]));
      const labelled = rows.flatMap((r) => {
        const p = of.get(r.digest);
        return r.label === null ? [] : [{ label: r.label, prediction: p?.prediction ?? NO_ANSWER, group: r.group, source: r.source }];
      });
      // one that it cannot answer is one that it has wrong
      const judged = answeredOrWrong(labelled);
      return {
        predictions: await objects.putJsonl(made.map((p) => PredictionRow.parse(p))),
        metrics: judged.length > 0 ? metricsOf(judged) : null,
        figures: figures(judged, deps.config.seed),
        n: rows.length,
        failed: rows.filter((r) => !of.has(r.digest)).length,
        p99Ms:
          made.length === 0
            ? 0
            : quantile(
                made.map((p) => p.ms).sort((a, b) => a - b),
                0.99,
              ),
      };
    },

    /** The candidate over every image journaled since the trial opened: where it would have answered otherwise. */
    async replayTraffic(input: {
      turn: string;
      trial: string;
      bundle: Digest;
      sinceMs: number;
    }): Promise<{ n: number; disagreement: number }> {
      const rows = byImage(await catalog.traffic({ sinceMs: input.sinceMs }));
      if (rows.length === 0) return { n: 0, disagreement: 0 };
      const made = new Map(
        (
          await predictions(
            input.turn,
            input.bundle,
            rows.map((r) => r.image),
          )
        ).map((p) => [p.digest, p.prediction]),
      );
      const both = rows.filter((r) => made.has(r.image));
      const differ = both.filter((r) => r.prediction > 0.5 !== (made.get(r.image) ?? 0) > 0.5).length;
      return { n: both.length, disagreement: both.length > 0 ? differ / both.length : 0 };
    },

    /** Champion against candidate on the same challenges: the pure verdict over the evidence. */
    async judgePair(input: {
      turn: string;
      config: Digest;
      sets: { set: Digest; champion: Evaluation; candidate: Evaluation }[];
      candidate: Digest;
      shadow: ShadowEvidence | null;
      look: number;
      seed: number;
      /** the trial this look is of; absent in the gate, which refuses but never promotes, and in trials begun by an older version */
      trial?: { id: string; last: boolean; late: boolean };
      /** bundle of the champion; absent in turns and trials begun by an older version */
      champion?: Digest;
      /** the candidate on the held-out photographs, in the gate; absent in trials, and in turns begun by an older version */
      heldOut?: Evaluation;
    }): Promise<VerdictNumbers> {
      const beat = beating();
      const config = await configOf(deps, input.config);
      const model = await catalog.model(input.candidate);
      const key = input.shadow ? `trial look ${input.look}` : 'gate';
      const before = looksBefore(model?.evidence, key);
      const { trial, champion: against = null } = input;
      const now = input.sets.map(({ set, champion, candidate }) => ({
        set,
        champion: champion.predictions,
        candidate: candidate.predictions,
      }));
      // A trial's evidence adds up: earlier looks of this trial, against this champion, count with this one.
      const earlier = trial ? before.filter((l) => l.trial === trial.id && l.champion === against).flatMap((l) => l.sets) : [];
      const sets = [...new Map([...earlier, ...now].map((s) => [s.set, s])).values()];
      const rows: PairedRow[] = [];
      for (const { set, champion, candidate } of sets) {
        const one = new Map((await objects.getJsonl(champion, (r) => PredictionRow.parse(r))).map((p) => [p.digest, p.prediction]));
        const two = new Map((await objects.getJsonl(candidate, (r) => PredictionRow.parse(r))).map((p) => [p.digest, p.prediction]));
        for (const row of await objects.getJsonl(set, (r) => ChallengeRow.parse(r))) {
          if (row.label === null) continue;
          // -1 where a model gave no answer: it counts against it, as on the wire
          rows.push({
            group: row.group,
            label: row.label,
            champion: one.get(row.digest) ?? -1,
            candidate: two.get(row.digest) ?? -1,
            truth: row.truth,
            source: row.source,
            level: row.level,
            generator: row.synthetic ? (row.provider ?? 'unknown') : null,
            labelledBy: row.labelledBy,
          });
        }
        beat();
      }
      const trainedOn = rows.some((r) => r.generator !== null) ? await generatorsOf([input.candidate, against]) : undefined;
      beat();
      await sleep(0);
      const bundle = await loadBundle(path.join(home.bundles, input.candidate));
      const bytes = bundle.members.reduce((sum, m) => sum + graphBytes(m), 0);
      const quarter = { earlier: model ? await judgedBefore(model) : 0, planned: config.verdict.candidates };
      const verdict = judge({
        rows,
        gates: {
          latencyP99Ms: Math.max(input.shadow?.p99Ms ?? 0, ...input.sets.map((s) => s.candidate.p99Ms)),
          // A machine that is busy with something else slows the champion as well: that is not held against the candidate.
          maxLatencyP99Ms: Math.max(
            config.gate.maxLatencyP99Ms,
            ...[input.shadow?.championP99Ms ?? 0, ...input.sets.map((s) => s.champion.p99Ms)].map((ms) => ms * BUSY_ALLOWANCE),
          ),
          bundleBytes: bytes,
          maxBundleBytes: config.gate.maxBundleBytes,
          errors: (input.shadow?.errors ?? 0) + input.sets.reduce((sum, s) => sum + s.candidate.failed, 0),
          answers: (input.shadow?.answers ?? 0) + input.sets.reduce((sum, s) => sum + s.candidate.n, 0),
          maxErrorShare: config.trial.maxErrorShare,
          shadowAnswers: input.shadow?.answers ?? null,
          minShadowAnswers: config.trial.minShadowAnswers,
        },
        // The gate refuses and never promotes: it spends nothing, and tells its bound at all that the candidate has.
        config: input.shadow ? config.verdict : { ...config.verdict, alpha: candidateAlpha(config.verdict.alpha, quarter) },
        resamples: config.gate.resamples,
        seed: input.seed + input.look,
        profile: profileOf(config.profile),
        ...(input.shadow
          ? { sequence: { ...quarter, spent: Math.max(0, ...before.map((l) => l.spending?.spent ?? 0)), last: trial?.last ?? false } }
          : {}),
        late: trial?.late ?? false,
        models: [input.candidate, ...(against === null ? [] : [against])],
        ...(trainedOn ? { trainedOn } : {}),
      });
      // Gates are measured in the turn; a trial's looks keep to what was found there.
      const gates = !model
        ? []
        : input.shadow
          ? recordedGates(model)
          : await recordGates(deps, model, config, {
              heldOut: input.heldOut?.metrics ?? null,
              freshSynthetic: await onFresh(input.turn, input.candidate, rows),
            });
      const refusal = gateRefusal(gates, config.gates.enforce);
      if (refusal !== null) {
        verdict.decision = 'keep';
        verdict.reasons = [refusal, ...verdict.reasons];
        verdict.reason = `${refusal} Against the champion: ${verdict.reason}`;
      }
      if (model)
        await catalog.setModelStatus(model.id, model.status, {
          [key]: { ...verdict, trial: trial?.id ?? null, champion: against, sets: now },
        });
      const { decision, reason, predictedReward, accuracy, groups, needGroups, n } = verdict;
      return {
        decision,
        reason,
        predictedReward: { champion: predictedReward.champion, candidate: predictedReward.candidate, ci95: predictedReward.ci95 },
        accuracy: { champion: accuracy.champion, candidate: accuracy.candidate, difference: accuracy.difference, ci95: accuracy.ci95 },
        groups,
        needGroups,
        n,
      };
    },
  };

  /**
   * A candidate on synthetic images that it never saw: those that its turn held back, or else labelled synthetic challenges of the
   * gate, which were made after it was trained.
   */
  async function onFresh(turn: string, candidate: Digest, challenges: readonly PairedRow[]): Promise<Measured> {
    const images = await freshImages(deps, turn);
    if (images.length === 0)
      return measuredByTruth(
        challenges.flatMap((r) =>
          r.generator !== null && r.truth !== 'none' ? [{ label: r.label, prediction: r.candidate, truth: r.truth }] : [],
        ),
      );
    const made = new Map(
      (
        await predictions(
          turn,
          candidate,
          images.map((r) => r.digest),
        )
      ).map((p) => [p.digest, p.prediction]),
    );
    // one that it cannot answer is one that it has wrong
    return measuredByTruth(
      images.flatMap(({ digest, label, truth }) => (label === null ? [] : [{ label, prediction: made.get(digest) ?? 1 - label, truth }])),
    );
  }

  /** Records of the trial's other looks; the gate spends nothing, since it never promotes. A repeated look does not see itself. */
  function looksBefore(evidence: unknown, key: string): z.infer<typeof LookRecord>[] {
    if (typeof evidence !== 'object' || evidence === null || key === 'gate') return [];
    return Object.entries(evidence)
      .filter(([name]) => LOOK.test(name) && name !== key)
      .flatMap(([, value]) => {
        const record = LookRecord.safeParse(value);
        return record.success ? [record.data] : [];
      });
  }

  /** Candidates of the 90 days before this one that a gate or trial judged: each has had its part of the error probability. */
  async function judgedBefore(model: ModelRecord): Promise<number> {
    const since = model.createdAt - QUARTER_DAYS * DAY_MS;
    return (await catalog.models()).filter((other) => {
      const judged =
        typeof other.evidence === 'object' &&
        other.evidence !== null &&
        Object.keys(other.evidence).some((k) => k === 'gate' || LOOK.test(k));
      const first = other.createdAt < model.createdAt || (other.createdAt === model.createdAt && other.id < model.id);
      return judged && first && other.createdAt >= since;
    }).length;
  }

  /** Generator families in the training snapshots of the models; undefined when one of them is not known, so that nothing synthetic counts. */
  async function generatorsOf(bundles: readonly (Digest | null)[]): Promise<string[] | undefined> {
    const families = new Set<string>();
    for (const digest of bundles) {
      if (digest === null) return undefined;
      const { training } = await loadBundle(path.join(home.bundles, digest));
      if (!(await objects.has(training.snapshot))) return undefined;
      for (const row of await objects.getJsonl(training.snapshot, (r) => Trained.parse(r)))
        if (row.provider !== null) families.add(row.provider);
    }
    return [...families].sort();
  }
}

export type { ImageRow, TrainInput };
