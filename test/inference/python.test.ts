/** A bundle that Python exported in int8, served by the miner's own code; and what both sides compute alike. */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import type { ImageRow } from '../../src/domain/contracts/common.js';
import { metricsOf } from '../../src/domain/metrics.js';
import { reward, rewardExpectation } from '../../src/domain/reward.js';
import { runCommand } from '../../src/platform/command.js';
import { packageRoot } from '../../src/platform/entry.js';
import { loadBundle, materialise } from '../../src/platform/inference/bundle.js';
import { evaluate, type EvaluatedImage } from '../../src/platform/inference/evaluate.js';
import { FileObjectStore } from '../../src/platform/objects/file.js';
import { readyPython } from '../../src/platform/python/env.js';
import { temporaryFolder } from '../platform/support.js';

interface Made {
  bundle: string;
  rows: ImageRow[];
  evaluated: { lines: { digest: string; prediction: number; votes: Record<string, number> }[]; metrics: Record<string, number> };
  windows: { labels: (0 | 1)[]; predictions: number[]; reward: number }[];
  expected: { positive: number; negative: number; reward: number }[];
}

describe('what Python makes', () => {
  let made: Made;
  let answers: EvaluatedImage[];
  let dir: string;
  beforeAll(async () => {
    const root = await temporaryFolder();
    const python = readyPython('dev');
    if (python === null) throw new Error('gpu-jobs has no ready Python environment: run node scripts/test-setup.mjs');
    const jobs = path.join(packageRoot, 'gpu-jobs');
    const ran = await runCommand(python, [path.join(jobs, 'tests', 'make_bundle.py'), root], { timeoutMs: 240_000, cwd: jobs });
    expect(ran.code, ran.output).toBe(0);
    made = JSON.parse(await readFile(path.join(root, 'made.json'), 'utf8')) as Made;
    const objects = new FileObjectStore(path.join(root, 'objects'));
    dir = path.join(root, 'bundles', made.bundle);
    await materialise(objects, made.bundle, dir);
    answers = await evaluate({
      bundleDir: dir,
      images: made.rows.map(({ digest }) => ({ digest, path: objects.path(digest) })),
      threads: 1,
    });
  }, 300_000);

  it('is an int8 bundle that the miner loads and answers every image with', async () => {
    const bundle = await loadBundle(dir);
    expect(bundle.members.map((member) => member.precision)).toEqual(['int8']);
    expect(bundle.members[0]?.variants?.map((variant) => variant.precision)).toEqual(['fp32', 'int8']);
    expect(answers).toHaveLength(made.rows.length);
  });

  it('says of each image what Python says of it', () => {
    const theirs = new Map(made.evaluated.lines.map((line) => [line.digest, line]));
    for (const { digest, prediction, votes } of answers) {
      // Another version of onnxruntime may round a value to the next of 256 steps.
      expect(Math.abs(prediction - theirs.get(digest)!.prediction)).toBeLessThan(0.02);
      for (const [member, p] of Object.entries(votes)) expect(Math.abs(p - theirs.get(digest)!.votes[member]!)).toBeLessThan(0.02);
    }
  });

  it('is measured alike on both sides', () => {
    const label = new Map(made.rows.map((row) => [row.digest, row.label]));
    const rows = made.evaluated.lines.map((line) => ({ label: label.get(line.digest) as 0 | 1, prediction: line.prediction }));
    const ours = metricsOf(rows);
    for (const name of ['accuracy', 'mcc', 'brier', 'n'] as const) expect(ours[name]).toBeCloseTo(made.evaluated.metrics[name]!, 9);
  });

  it('is rewarded by the same formula', () => {
    for (const { labels, predictions, reward: theirs } of made.windows)
      expect(reward(labels.map((label, i) => ({ label, prediction: predictions[i]! })))).toBeCloseTo(theirs, 9);
    const expected = rewardExpectation({ windows: 4000, seed: 1 });
    for (const { positive, negative, reward: theirs } of made.expected) {
      const ours = expected({ positive: { right: positive, missing: 0 }, negative: { right: negative, missing: 0 } });
      expect(Math.abs(ours - theirs)).toBeLessThan(0.015);
    }
  });
});
