/** One whole turn as a user runs it: real Temporal, real PyTorch, real ONNX, real HTTP. */
import { readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { TurnResult } from '../../src/domain/turnSummary.js';
import { openCatalogReadOnly } from '../../src/platform/catalog/index.js';
import { TEST_KEYS } from '../miner/vectors.js';
import { photographs, resultOf, run, SMALL, start, temporaryHome, type Ran, type Running } from './support.js';

const PATIENCE_MS = 600_000;

/** Waits for a sign on a running command's standard error. */
async function until(sign: () => boolean, running: Running): Promise<void> {
  const deadline = Date.now() + PATIENCE_MS;
  while (!sign()) {
    if (running.child.exitCode !== null || Date.now() > deadline) throw new Error(`the sign did not come:\n${running.err().slice(-3000)}`);
    await sleep(100);
  }
}

describe('flywheel up --once', () => {
  const place = temporaryHome();
  let first: Ran;
  let result: TurnResult;
  let data: string[];

  beforeAll(async () => {
    const folder = photographs(path.join(place.folder, 'data'));
    data = folder === null ? [] : ['--data', folder];
    // An operator's own list of validators, as of a real network: the built-in one is not on it.
    const metagraph = path.join(place.folder, 'metagraph.json');
    writeFileSync(metagraph, JSON.stringify([{ uid: 0, hotkey: TEST_KEYS.validator.ss58, validatorPermit: true, stake: 1000 }]));
    first = await run(['up', '--once', '--json', '--home', place.home, '--config', place.config, ...data], {
      FLYWHEEL_METAGRAPH_FILE: metagraph,
    });
    if (first.code !== 0) console.log(first.err, readFileSync(path.join(place.home, 'logs', 'worker.log'), 'utf8').slice(-4000));
    result = resultOf(first);
  });
  afterAll(() => place.remove());

  it('ends with exit code 0 and one JSON object on the last line', () => {
    expect(first.code).toBe(0);
    expect(result.turn).toBe('turn-0001');
  });

  it('had its challenges answered, though the metagraph knows no built-in validator', async () => {
    const catalog = await openCatalogReadOnly(path.join(place.home, 'catalog.db'));
    try {
      const { ss58Address } = JSON.parse(readFileSync(path.join(place.home, 'keys', 'validator.json'), 'utf8')) as { ss58Address: string };
      const traffic = await catalog.traffic();
      expect(traffic.length).toBeGreaterThanOrEqual(SMALL.traffic.challenges);
      expect(new Set(traffic.map((row) => row.validator))).toEqual(new Set([ss58Address]));
    } finally {
      await catalog.close();
    }
  });

  it('imported, mined, made, labelled and trained something', () => {
    expect(result.dataset.train).toBeGreaterThan(0);
    expect(result.dataset.val).toBeGreaterThan(0);
    expect(result.hardCases).toBeGreaterThan(0);
    expect(result.synthetic).toBeGreaterThan(0);
    expect(result.labelled.consensus + result.labelled.rejected + result.labelled.toVerify).toBeGreaterThan(0);
  });

  it('judged champion and candidate on the same held-out images and challenges', () => {
    expect(result.candidate).not.toBeNull();
    expect(result.candidate?.metrics.heldOut?.n).toBe(result.champion?.metrics.heldOut?.n);
    expect(result.candidate?.metrics.challenges?.n).toBe(result.champion?.metrics.challenges?.n);
    expect(result.champion?.metrics.accuracy).toBeGreaterThan(0.5);
    expect(['promote', 'keep', 'continue']).toContain(result.verdict.decision);
    expect(result.verdict.predictedReward).not.toBeNull();
  });

  it('never mined, synthesised from or learned from the held-out pool', async () => {
    const catalog = await openCatalogReadOnly(path.join(place.home, 'catalog.db'));
    try {
      const images = await catalog.images();
      const test = new Set(images.filter((i) => i.pool === 'test').map((i) => i.digest));
      expect(test.size).toBeGreaterThan(0);
      expect(images.filter((i) => i.parents.some((p) => test.has(p)))).toEqual([]);
      const turn = await catalog.turn(result.turn);
      const { snapshot } = turn?.summary['snapshot'] as { snapshot: string };
      const rows = readFileSync(path.join(place.home, 'objects', snapshot.slice(0, 2), snapshot), 'utf8')
        .trim()
        .split('\n')
        .map((l) => JSON.parse(l) as { digest: string; pool: string });
      expect(rows.filter((r) => test.has(r.digest) || r.pool === 'test')).toEqual([]);
      expect(rows.length).toBeGreaterThan(0);
    } finally {
      await catalog.close();
    }
  });

  it('left a publishable folder of the champion with its model card', () => {
    const versions = readdirSync(path.join(place.home, 'published')).filter((v) => /^\d+\.\d+\.\d+$/.test(v));
    expect(versions).toContain('1.0.0');
    const card = JSON.parse(readFileSync(path.join(place.home, 'published', '1.0.0', 'model_card.json'), 'utf8')) as {
      submitted_by: string;
    };
    expect(card.submitted_by).toBe(result.miner.hotkey);
  });

  it('rebuilds from the catalog what Temporal lost; Ctrl-C keeps the turn; a person answers the turn that waits', async () => {
    const before = JSON.parse(readFileSync(path.join(place.home, 'champion.json'), 'utf8')) as { generation: number };
    rmSync(path.join(place.home, 'temporal'), { recursive: true });
    // The same turn shows a person's answers at work: it waits for the review list, longer than this test may take.
    const waits = path.join(place.folder, 'waits.json');
    writeFileSync(waits, JSON.stringify({ ...SMALL, labels: { reviewTimeoutSeconds: 7200 } }));
    const args = ['up', '--once', '--json', '--home', place.home, '--config', waits];
    const interrupted = start(args);
    await until(() => /\[flywheel\] hard cases/.test(interrupted.err()), interrupted);
    interrupted.child.kill('SIGINT');
    expect((await interrupted.ended).code).toBe(130);

    const going = start(args);
    await until(() => /waits for a person's answers/.test(going.err()), going);
    const table = path.join(place.folder, 'review', 'answers.csv');
    const exported = await run(['review', '--home', place.home, '--turn', 'turn-0002', '--export', path.dirname(table)]);
    expect(exported.code, exported.err).toBe(0);
    const rows = readFileSync(table, 'utf8').trimEnd().split('\n');
    expect(rows.length).toBeGreaterThan(1);
    const asked = rows[1]?.split(',')[0] ?? '';
    writeFileSync(table, [rows[0], ...rows.slice(1).map((r, i) => (i === 0 ? r.replace(',,', ',roadwork,') : r))].join('\n'));
    const answered = await run(['review', '--home', place.home, '--answers', table, '--go-on', '--json']);
    expect(answered.code, answered.err).toBe(0);
    expect(JSON.parse(answered.out.trimEnd().split('\n').at(-1) ?? '')).toMatchObject({ taken: 1, turns: ['turn-0002'] });
    const again = await going.ended;
    if (again.code !== 0) console.log(again.err);
    const catalog = await openCatalogReadOnly(path.join(place.home, 'catalog.db'));
    try {
      expect(await catalog.labels([asked])).toMatchObject([{ kind: 'verified', label: 1 }]);
    } finally {
      await catalog.close();
    }
    expect(again.code).toBe(0);
    const second = resultOf(again);
    expect(second.turn).toBe('turn-0002');
    const after = JSON.parse(readFileSync(path.join(place.home, 'champion.json'), 'utf8')) as { generation: number };
    expect(after.generation).toBeGreaterThanOrEqual(before.generation);
    expect(second.champion?.id).toBe(result.promoted ? result.candidate?.id : result.champion?.id);
  });

  it('names a folder that is no data set, with what was expected, and exits non-zero', async () => {
    const ran = await run(['up', '--once', '--home', path.join(place.folder, 'other'), '--data', path.join(place.folder, 'home', 'logs')]);
    expect(ran.code).not.toBe(0);
    expect(ran.err).toMatch(/labels\.csv/);
  });
});
