/** A person's answers, from the table to the next training set, on a real catalog and a real object store. */
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import type { ActivityDeps } from '../../src/activities/deps.js';
import { datasetActivities } from '../../src/activities/dataset.js';
import { reviewActivities } from '../../src/activities/reviews.js';
import { parseAnswers } from '../../src/cli/reviewCommand.js';
import type { ImageRow } from '../../src/domain/contracts/common.js';
import { loadConfig } from '../../src/platform/config.js';
import { openCatalog } from '../../src/platform/catalog/index.js';
import { FileObjectStore } from '../../src/platform/objects/index.js';
import { atEnd, digest, image, temporaryFolder } from '../platform/support.js';

async function world() {
  const folder = await temporaryFolder();
  const catalog = await openCatalog(path.join(folder, 'catalog.db'));
  atEnd(() => catalog.close());
  const objects = new FileObjectStore(path.join(folder, 'objects'));
  const deps = { catalog, objects, clock: () => 2000 } as unknown as ActivityDeps;
  await catalog.addImages([image('street')], 1);
  const made: Partial<ImageRow> = {
    label: null,
    truth: 'none',
    provider: 'composite',
    parents: [digest('street')],
    group: 'group of street',
  };
  await catalog.addImages([image('a', made), image('b', made), image('c', made)], 1);
  await catalog.askReview(
    ['a', 'b', 'c'].map((name) => ({
      digest: digest(name),
      turn: name === 'c' ? 'turn-0002' : 'turn-0001',
      reason: 'disagreement' as const,
      proposed: null,
      votes: { one: 0.9, two: 0.2 },
      askedAt: 1000,
    })),
  );
  const take = async (answers: { digest: string; label: 0 | 1 }[]) =>
    reviewActivities(deps).answerReviews({ answers: await objects.putJsonl(answers) });
  return { deps, catalog, objects, take };
}

describe('answers of a person', () => {
  it('become verified labels, and a turn is finished when none of its images is open', async () => {
    const { catalog, take } = await world();
    expect(await take([{ digest: digest('a'), label: 1 }])).toMatchObject({ taken: 1, open: 2, finished: [], turns: ['turn-0001'] });
    expect(await take([{ digest: digest('b'), label: 0 }])).toMatchObject({ taken: 1, open: 1, finished: ['turn-0001'] });
    expect((await catalog.labels([digest('a'), digest('b')])).map((l) => [l.kind, l.weight])).toEqual([
      ['verified', 1],
      ['verified', 1],
    ]);
  });

  it('taken twice count once, and name the finished turn again', async () => {
    const { take } = await world();
    const both = [
      { digest: digest('a'), label: 1 as const },
      { digest: digest('b'), label: 1 as const },
    ];
    await take(both);
    expect(await take(both)).toMatchObject({ taken: 0, known: 2, finished: ['turn-0001'] });
  });

  it('about an image that nobody asked of change nothing, and are counted', async () => {
    const { catalog, take } = await world();
    expect(await take([{ digest: digest('street'), label: 0 }])).toMatchObject({
      taken: 0,
      notAsked: 1,
      notAskedFirst: [digest('street')],
    });
    expect(await catalog.labels([digest('street')])).toEqual([]);
  });

  it('outrank the consensus in the next training set, at full weight', async () => {
    const { deps, catalog, objects, take } = await world();
    const at = { kind: 'consensus' as const, provenance: 'turn-0001: one+two', weight: 0.5, at: 1500 };
    await catalog.addLabels(['a', 'b'].map((name) => ({ ...at, digest: digest(name), label: 1 as const })));
    await take([{ digest: digest('a'), label: 0 }]);
    const config = await objects.put(Buffer.from(JSON.stringify(loadConfig({}))));
    const synthetic = await objects.putJsonl(await catalog.images({ provider: 'composite' }));
    const { snapshot } = await datasetActivities(deps).buildSnapshot({ turn: 'turn-0002', config, synthetic });
    const rows = await objects.getJsonl(snapshot, (row) => row as ImageRow);
    expect(rows.find((r) => r.digest === digest('a'))).toMatchObject({ label: 0, truth: 'verified', weight: 1 });
    // Only one unreviewed consensus row fits beside one photograph at a share of one half; `b` weighs less than `a`.
    expect(rows.find((r) => r.digest === digest('b'))?.weight ?? 0.5).toBe(0.5);
  });
});

describe('a table of answers', () => {
  const d = digest('a');
  it('may leave rows unanswered, and its bad rows are named and skipped', () => {
    const text = `\uFEFFdigest,label,file\r\n${d},roadwork,x.jpg\r\n${digest('b')},,y.jpg\r\nabc,1,z.jpg\r\n${digest('c')},maybe,z.jpg\r\n`;
    expect(parseAnswers(text, 'answers.csv')).toEqual({
      answers: [{ digest: d, label: 1 }],
      unanswered: 1,
      problems: [
        { file: 'row 4', reason: "'abc' is not the digest of an image" },
        { file: 'row 5', reason: "label 'maybe' is none of 1, roadwork or positive; 0, none or negative" },
      ],
    });
  });

  it.each([
    ['file,label\nx,1\n', /no column 'digest'/],
    [`digest,answer\n${d},1\n`, /no column 'label'/],
    [`digest,label\n${d},\n`, /holds no answer: 1 rows have no label/],
    [`digest,label\n${d},1\n${d},0\n`, /says both 0 and 1/],
    ['', /no column 'digest'/],
  ])('is refused whole where it is none: %j', (text, why) => {
    expect(() => parseAnswers(text, 'answers.csv')).toThrow(why);
  });
});
