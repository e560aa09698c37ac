/** What the lifecycle commits: champion, pointer, publication, trials, reminders. Catalog first, then the world. */
import { copyFile, mkdir, rename, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { z } from 'zod';
import { Digest, ImageRow } from '../domain/contracts/common.js';
import type { ChampionPointer } from '../domain/contracts/miner.js';
import { buildModelCard, modelCardDetails, type ModelCardDetails } from '../domain/modelCard.js';
import { licenceIn } from '../domain/provenance.js';
import { BadInputError } from '../domain/errors.js';
import { writeFileAtomic } from '../platform/fsutil.js';
import { memberFiles, type Bundle } from '../domain/contracts/bundle.js';
import { loadBundle, materialise } from '../platform/inference/bundle.js';
import type { ModelRef, VerdictNumbers } from '../workflows/types.js';
import type { ActivityDeps } from './deps.js';
import { recordedGates } from './gates.js';

export function lifecycleActivities(deps: ActivityDeps) {
  const { catalog, home, objects } = deps;

  return {
    /** Compare-and-set of the champion. Done twice with the same arguments it is done once. */
    async moveChampion(input: { hotkey: string; model: ModelRef; expected: number; at: number }): Promise<ChampionPointer> {
      const before = await catalog.champion(input.hotkey);
      if (before && before.pointer.generation === input.expected + 1 && before.pointer.digest === input.model.bundle) return before.pointer;
      const pointer: ChampionPointer = {
        generation: input.expected + 1,
        digest: input.model.bundle,
        previous: before?.pointer.digest ?? null,
      };
      const now = await catalog.setChampion(
        { hotkey: input.hotkey, pointer, modelId: input.model.id, promotedAt: input.at, submittedAt: input.at },
        input.expected,
      );
      if (before) await catalog.setModelStatus(before.modelId, 'retired');
      await catalog.setModelStatus(input.model.id, 'champion');
      return now.pointer;
    },

    /** Writes the file that the miner watches, from the catalog. */
    async writePointer(input: { hotkey: string }): Promise<void> {
      const champion = await catalog.champion(input.hotkey);
      if (!champion) throw new BadInputError(`no champion of ${input.hotkey} in the catalog`);
      await materialise(objects, champion.pointer.digest, path.join(home.bundles, champion.pointer.digest));
      await writeFileAtomic(home.champion, JSON.stringify(champion.pointer));
    },

    /**
     * Writes the publishable folder (weights, config, model_card.json), hands it to the hub and registers it with the
     * subnet. The version follows the champion's generation, so that a repeated run publishes the same one.
     */
    async publishModel(input: {
      hotkey: string;
      model: ModelRef;
      at: number;
    }): Promise<{ version: string; folder: string; repo: string; submittedAt: number }> {
      const champion = await catalog.champion(input.hotkey);
      const generation = champion?.pointer.generation ?? 1;
      const version = `1.${generation - 1}.0`;
      const folder = path.join(home.published, version);
      const source = path.join(home.bundles, input.model.bundle);
      const bundle = await loadBundle(source);
      const half = `${folder}.partial`;
      await rm(half, { recursive: true, force: true });
      await mkdir(half, { recursive: true });
      for (const member of bundle.members) {
        for (const file of memberFiles(member)) {
          await mkdir(path.dirname(path.join(half, file.path)), { recursive: true });
          await copyFile(path.join(source, file.path), path.join(half, file.path));
        }
      }
      await copyFile(path.join(source, 'bundle.json'), path.join(half, 'bundle.json'));
      const config = {
        architectures: bundle.members.map((m) => m.backbone),
        id2label: { 0: 'none', 1: 'roadwork' },
        members: bundle.members.map(({ name, backbone, features, weight, preprocess }) => ({
          name,
          backbone,
          features,
          weight,
          preprocess,
        })),
        calibration: bundle.calibration,
      };
      await writeFile(path.join(half, 'config.json'), `${JSON.stringify(config, null, 2)}\n`);
      const card = buildModelCard({
        modelName: bundle.name,
        description: `StreetVision roadwork detector, an ensemble of ${bundle.members.map((m) => m.name).join(' and ')}.`,
        version,
        submittedBy: input.hotkey,
        submissionTimeMs: input.at,
        details: await detailsOf(input.model.bundle, bundle),
      });
      await writeFile(path.join(half, 'model_card.json'), `${JSON.stringify(card, null, 2)}\n`);
      await rm(folder, { recursive: true, force: true });
      await rename(half, folder);
      const { repo } = await deps.hub.publish(folder, version);
      const answer = await deps.registry.register({ hotkey: input.hotkey, repo, version, submittedAt: input.at });
      await catalog.setSubmitted(input.hotkey, input.at);
      await deps.notifier.notify({
        kind: 'promotion',
        title: `${input.model.id} is champion`,
        text: `version ${version}, ${repo}: ${answer.detail}`,
        at: input.at,
      });
      return { version, folder, repo, submittedAt: input.at };
    },

    async openTrial(input: {
      trial: string;
      hotkey: string;
      champion: Digest;
      candidate: Digest;
      simulated: boolean;
      openedAt: number;
    }): Promise<void> {
      await catalog.openTrial({
        id: input.trial,
        hotkey: input.hotkey,
        champion: input.champion,
        candidate: input.candidate,
        openedAt: input.openedAt,
        closedAt: null,
        simulated: input.simulated,
        decision: null,
        evidence: null,
      });
      const model = await catalog.model(input.candidate);
      if (model) await catalog.setModelStatus(model.id, 'trial');
    },

    async closeTrial(input: {
      trial: string;
      decision: 'promote' | 'keep';
      verdict: VerdictNumbers | null;
      reason?: string;
    }): Promise<void> {
      await catalog.closeTrial(
        input.trial,
        input.decision,
        { verdict: input.verdict, reason: input.reason ?? input.verdict?.reason ?? '' },
        deps.clock(),
      );
    },

    /** Once for each submission and day, whatever is retried. */
    async remind(input: { hotkey: string; submittedAt: number; day: number; model: string; at: number }): Promise<void> {
      if (!(await catalog.recordReminder(input.hotkey, input.submittedAt, input.day, input.at))) return;
      await deps.notifier.notify({
        kind: 'reminder',
        title: `day ${input.day} of ${input.model}`,
        text: `The model submitted on ${new Date(input.submittedAt).toISOString().slice(0, 10)} is ${input.day} days old; its reward decays with age. A retrained model resets the clock.`,
        at: input.at,
      });
    },
  };

  /** What the catalog and the snapshot know of a model. A home that was restored without its objects still publishes. */
  async function detailsOf(digest: Digest, bundle: Bundle): Promise<ModelCardDetails> {
    const model = await catalog.model(digest);
    const { snapshot } = bundle.training;
    const images = (await objects.has(snapshot)) ? await objects.getJsonl(snapshot, (row) => ImageRow.parse(row)) : [];
    const licences = new Map<Digest, string | null>();
    for (const { digest: image, kind, provenance } of await catalog.labels(images.map((row) => row.digest)))
      if (kind === 'truth') licences.set(image, licenceIn(provenance) ?? licences.get(image) ?? null);
    const gates = recordedGates(model);
    return modelCardDetails({
      bundle,
      digest,
      data: dataOf(model?.evidence),
      images,
      licenceOf: (image) => licences.get(image) ?? null,
      gates: gates.length > 0 ? gates : (bundle.gates ?? []),
    });
  }
}

const Reproduced = z.object({ training: z.object({ reproduce: z.object({ data: Digest }) }) });

/** The digest of what was learned from, chosen on and calibrated on, as the train job told it. */
function dataOf(evidence: unknown): Digest | null {
  return Reproduced.safeParse(evidence).data?.training.reproduce.data ?? null;
}
