import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { BadInputError } from '../../src/domain/errors.js';
import { buildModelCard, looksLikeSs58, ModelCard, modelCardDetails, nextVersion } from '../../src/domain/modelCard.js';
import { bundleFiles } from '../support/bundle.js';

/** Alice of every Substrate development chain. */
const ALICE = '5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY';
const good = {
  modelName: 'demo-1',
  description: 'roadwork',
  version: '1.2.0',
  submittedBy: ALICE,
  submissionTimeMs: Date.UTC(2026, 0, 1, 0, 0, 0, 999),
};

describe('model_card.json', () => {
  it('has the fields that the subnet checks, the time in whole seconds', () => {
    expect(buildModelCard(good)).toEqual({
      model_name: 'demo-1',
      description: 'roadwork',
      version: '1.2.0',
      submitted_by: ALICE,
      submission_time: 1767225600,
    });
  });

  it('is refused with a wrong field, which is named', () => {
    const cases = [
      [{ modelName: ' ' }, /model_name/],
      [{ description: '' }, /description/],
      [{ version: 'v1.2.0' }, /version/],
      [{ version: '1.02.0' }, /version/],
      [{ version: '1.2' }, /version/],
      [{ submittedBy: 'hotkey' }, /submitted_by/],
      [{ submissionTimeMs: NaN }, /submission_time/],
      [{ submissionTimeMs: 1767225600_000_000 }, /submission_time.*not milliseconds/],
    ] as const;
    for (const [over, message] of cases) {
      expect(() => buildModelCard({ ...good, ...over })).toThrow(message);
      expect(() => buildModelCard({ ...good, ...over })).toThrow(BadInputError);
    }
  });

  it('carries what stands behind the model: digests, sources with their licences, precisions with their loss, gates', async () => {
    const { bundle } = await bundleFiles({ name: 'm' });
    const loss = { n: 90, accuracy: 0.004, reward: 0.01 };
    const variants = ['fp32', 'int8'].map((precision) => ({
      precision: precision as 'fp32' | 'int8',
      provider: 'CPUExecutionProvider',
      bytes: 10,
      ms: 1,
      maxAbsDp: 0,
      loss: precision === 'int8' ? loss : null,
      chosen: precision === 'int8',
      refused: null,
    }));
    const gate = { gate: 'heldOut' as const, threshold: 0.94, value: null, n: 0, passed: null };
    const rows = [
      { digest: 'a', source: 'clips', provider: null, truth: 'truth' as const },
      { digest: 'b', source: 'clips', provider: null, truth: 'verified' as const },
      { digest: 'c', source: 'streets', provider: null, truth: 'truth' as const },
      { digest: 'd', source: 'composite', provider: 'composite', truth: 'consensus' as const },
    ];
    const digest = 'e'.repeat(64);
    const details = modelCardDetails({
      bundle: { ...bundle, members: bundle.members.map((m) => ({ ...m, precision: 'int8' as const, variants })) },
      digest,
      data: null,
      images: rows,
      licenceOf: (image) => (image === 'c' ? null : `licence of ${image}`),
      gates: [gate],
    });
    const card = buildModelCard({ ...good, details });
    expect(ModelCard.parse(JSON.parse(JSON.stringify(card)))).toEqual(card);
    expect(card.details).toMatchObject({
      digests: { bundle: digest, snapshot: bundle.training.snapshot },
      sources: [
        { source: 'clips', licences: ['licence of a', 'licence of b'], images: 2, truth: { truth: 1, verified: 1 } },
        { source: 'streets', licences: [null], images: 1 },
      ],
      synthetic: { composite: 1 },
      members: [{ precision: 'int8', loss }],
      gates: [gate],
    });
  });

  it('is refused with a field that the subnet does not know', () => {
    expect(ModelCard.safeParse({ ...buildModelCard(good), extra: 1 }).success).toBe(false);
  });
});

describe('an SS58 address', () => {
  it('is known by its length, alphabet and prefix', () => {
    expect(looksLikeSs58(ALICE)).toBe(true);
    expect(looksLikeSs58(ALICE.slice(1))).toBe(false);
    expect(looksLikeSs58(ALICE.replace('G', '0'))).toBe(false);
    // Alice on Polkadot (prefix 0) and on Kusama (prefix 2)
    expect(looksLikeSs58('15oF4uVJwmo4TdGW7VfQxNLavjCXviqxT9S1MgbjMNHr6Sp5')).toBe(false);
    expect(looksLikeSs58('HNZata7iMYWmk5RvZRTiAsSDhV8366zq2YGb3tLH5Upf74F')).toBe(false);
    expect(looksLikeSs58('')).toBe(false);
  });
});

describe('the next version', () => {
  it('begins with 1.0.0 and raises the minor number', () => {
    expect(nextVersion(null)).toBe('1.0.0');
    expect(nextVersion('1.9.3')).toBe('1.10.0');
  });

  it('is always a version that the card takes', () => {
    fc.assert(
      fc.property(fc.nat(99), fc.nat(99), fc.nat(99), (x, y, z) => {
        expect(buildModelCard({ ...good, version: nextVersion(`${x}.${y}.${z}`) }).version).toBe(`${x}.${y + 1}.0`);
      }),
    );
  });

  it('is refused after something that is no version', () => {
    expect(() => nextVersion('one')).toThrow(BadInputError);
  });
});
