/** Gates of a candidate: images held back from its training, measured by the production path, and what a missed gate does. */
import path from 'node:path';
import { MockActivityEnvironment } from '@temporalio/testing';
import { describe, expect, it } from 'vitest';
import { datasetActivities } from '../../src/activities/dataset.js';
import type { ActivityDeps } from '../../src/activities/deps.js';
import { modelActivities } from '../../src/activities/models.js';
import { turnActivities } from '../../src/activities/turns.js';
import { type Digest, GateResult, type ImageRow } from '../../src/domain/contracts/common.js';
import { openCatalog } from '../../src/platform/catalog/index.js';
import { loadConfig } from '../../src/platform/config.js';
import { homePaths } from '../../src/platform/home.js';
import { materialise } from '../../src/platform/inference/bundle.js';
import { FileObjectStore } from '../../src/platform/objects/index.js';
import type { Evaluation } from '../../src/workflows/types.js';
import { atEnd, digest, image, temporaryFolder } from '../platform/support.js';
import { putBundle } from '../support/bundle.js';
import { greyJpeg } from '../support/images.js';

const TURN = 'turn-0001';
const SYNTHETIC = 40;

/** A home with a street, forty synthetic images of it in ten groups, and a candidate that calls bright images roadwork. */
async function world(gates: object) {
  const folder = await temporaryFolder();
  const home = homePaths(path.join(folder, 'home'));
  const catalog = await openCatalog(home.catalog);
  atEnd(() => catalog.close());
  const objects = new FileObjectStore(home.objects);
  const config = { ...loadConfig({}), gates: { ...loadConfig({}).gates, validation: 0.8, heldOut: 0.85, minImages: 5, ...gates } };
  const deps = { catalog, objects, home, config, threads: 1, clock: () => 2000 } as unknown as ActivityDeps;
  const streets = Array.from({ length: 10 }, (_, i) => image(`street ${i}`, { label: (i % 2) as 0 | 1 }));
  await catalog.addImages(streets, 1);
  const made: ImageRow[] = [];
  for (let n = 0; n < SYNTHETIC; n++) {
    const parent = streets[n % 10]!;
    const intent = (n % 2) as 0 | 1;
    made.push(
      image(`made ${n}`, {
        digest: await objects.put(await greyJpeg(intent === 1 ? 200 : 40, n, 64)),
        label: null,
        truth: 'none',
        intent,
        provider: 'composite',
        parents: [parent.digest],
        group: parent.group,
      }),
    );
  }
  await catalog.addImages(made, 1);
  const synthetic = await objects.putJsonl(made);
  // The first half have a consensus, of the rest the voters were unsure, and of the last four they were sure of the opposite.
  const consensus = made.slice(0, SYNTHETIC / 2);
  await catalog.addLabels(
    consensus.map((r) => ({ digest: r.digest, label: r.intent!, kind: 'consensus' as const, provenance: TURN, weight: 0.5, at: 1 })),
  );
  await catalog.askReview(
    made.slice(SYNTHETIC / 2).map((r, i, rest) => {
      const p = i >= rest.length - 4 ? 0.95 - 0.9 * r.intent! : 0.6;
      return { digest: r.digest, turn: TURN, reason: 'disagreement' as const, proposed: null, votes: { one: p, two: p }, askedAt: 1 };
    }),
  );
  const { digest: candidate } = await putBundle(objects, { name: 'candidate', members: [{ model: 'bright', weight: 1 }] });
  const { digest: champion } = await putBundle(objects, { name: 'champion', members: [{ model: 'bright', weight: 1 }] });
  for (const one of [candidate, champion]) await materialise(objects, one, path.join(home.bundles, one));
  await catalog.addModel({
    id: 'candidate',
    bundle: candidate,
    trained: digest('trained'),
    parent: champion,
    turn: TURN,
    status: 'candidate',
    createdAt: 1,
    evidence: { training: { validate: { accuracy: 0.9, mcc: 0.8, brier: 0.1, n: 43 } } },
  });
  const planned = await objects.put(Buffer.from(JSON.stringify(config)));
  await catalog.startTurn(TURN, 1);
  const build = () => datasetActivities(deps).buildSnapshot({ turn: TURN, config: planned, synthetic });
  /** The gate's verdict on ten challenges that both have right, with so many of twenty held-out photographs right. */
  async function gate(heldOutRight: number) {
    const rows = Array.from({ length: 10 }, (_, i) => ({ digest: digest(`c${i}`), label: (i % 2) as 0 | 1 }));
    const metrics = { accuracy: heldOutRight / 20, mcc: 0, brier: 0.1, n: 20 };
    const answers: Evaluation = {
      predictions: await objects.putJsonl(rows.map((r) => ({ digest: r.digest, prediction: r.label, votes: {}, ms: 1 }))),
      metrics,
      figures: [],
      n: 10,
      failed: 0,
      p99Ms: 1,
    };
    const common = { parent: digest('p'), source: 's', pool: 'test', truth: 'truth', level: 0, synthetic: false };
    const set = await objects.putJsonl(rows.map((r, i) => ({ ...common, ...r, group: `g${i}` })));
    const verdict = await new MockActivityEnvironment().run(modelActivities(deps).judgePair, {
      turn: TURN,
      config: planned,
      sets: [{ set, champion: answers, candidate: answers }],
      candidate,
      shadow: null,
      look: 1,
      seed: 1,
      champion,
      heldOut: { ...answers, metrics },
    });
    return verdict as Awaited<ReturnType<ReturnType<typeof modelActivities>['judgePair']>>;
  }
  const gates_ = async () => GateResult.array().parse(((await catalog.model('candidate'))?.evidence as { gates?: unknown }).gates);
  return { deps, catalog, objects, made, build, gate, gates: gates_, candidate };
}

describe('synthetic images of a turn', () => {
  it('are held back from its training in whole groups, with labels, and without those that voters are sure were not meant so', async () => {
    const { objects, made, build } = await world({ freshSynthetic: 0.85, freshShare: 0.3 });
    const out = await build();
    const fresh = await objects.getJsonl(out.fresh as Digest, (row) => row as ImageRow);
    const learned = await objects.getJsonl(out.snapshot, (row) => row as ImageRow);
    expect(fresh.length).toBe(out.freshCount);
    expect(fresh.filter((row) => row.truth === 'consensus').length).toBeGreaterThanOrEqual(6);
    expect(learned.filter((row) => row.provider !== null && fresh.some((f) => f.group === row.group))).toEqual([]);
    expect(learned.some((row) => row.provider !== null)).toBe(true);
    expect(fresh.every((row) => row.label === row.intent)).toBe(true);
    expect(new Set(fresh.map((row) => row.truth))).toEqual(new Set(['consensus', 'none']));
    const rejected = made.slice(-4).map((row) => row.digest);
    expect(fresh.filter((row) => rejected.includes(row.digest))).toEqual([]);
    expect(await build()).toEqual(out);
  });

  it('all go into the training where no gate asks for them', async () => {
    const { build } = await world({ freshSynthetic: null });
    expect(await build()).toMatchObject({ fresh: null, freshCount: 0 });
  });
});

describe('the gate of a turn', () => {
  it('measures the candidate on what was held back, by the production path, and writes all gates into the catalog', async () => {
    const { deps, catalog, objects, build, gate, gates } = await world({ freshSynthetic: 0.85, enforce: true });
    const snapshot = await build();
    await catalog.patchTurn(TURN, { snapshot });
    const verdict = await gate(18);
    expect(verdict.reason).not.toMatch(/Refused/);
    const settled = (await objects.getJsonl(snapshot.fresh as Digest, (row) => row as ImageRow)).filter((r) => r.truth !== 'none').length;
    expect((await gates()).map((g) => [g.gate, g.value, g.n, g.passed])).toEqual([
      ['validation', 0.9, 43, true],
      ['heldOut', 0.9, 20, true],
      ['freshSynthetic', 1, settled, true],
    ]);
    expect(settled).toBeGreaterThanOrEqual(5);
    expect((await gates())[2]?.byTruth).toMatchObject({ none: { accuracy: 1, n: snapshot.freshCount - settled } });
    // what the turn records afterwards is the same
    await turnActivities(deps).recordTurn({
      turn: TURN,
      patch: { candidate: { id: 'candidate', heldOut: { accuracy: 0.9, mcc: 0, brier: 0.1, n: 20 } } },
    });
    expect((await catalog.turn(TURN))?.summary['gates']).toEqual(await gates());
  });

  it('refuses a candidate that misses a gate, with the reason', async () => {
    const { build, gate, catalog } = await world({ freshSynthetic: 0.85, enforce: true });
    await catalog.patchTurn(TURN, { snapshot: await build() });
    const verdict = await gate(16);
    expect(verdict.decision).toBe('keep');
    expect(verdict.reason).toMatch(
      /^Refused by the gates.*held-out photographs MISSED: 80\.0% of 20, at least 85\.0% asked for.*Against the champion/,
    );
  });

  it('only tells where gates are not enforced', async () => {
    const { build, gate, gates, catalog } = await world({ freshSynthetic: 0.85, enforce: false });
    await catalog.patchTurn(TURN, { snapshot: await build() });
    expect((await gate(16)).reason).not.toMatch(/Refused/);
    expect((await gates()).find((g) => g.gate === 'heldOut')?.passed).toBe(false);
  });

  it('says that fresh synthetic images were not measured where none were held back', async () => {
    const { gate, gates } = await world({ freshSynthetic: 0.85, enforce: true });
    expect((await gate(20)).reason).not.toMatch(/Refused/);
    expect((await gates()).find((g) => g.gate === 'freshSynthetic')).toMatchObject({ value: null, passed: null });
  });
});
