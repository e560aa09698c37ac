import { describe, expect, it } from 'vitest';
import { GateThresholds } from '../../src/domain/contracts/common.js';
import { describeGates, gateRefusal, gateResults, GateSettings, measuredByTruth } from '../../src/domain/gates.js';
import { metricsOf } from '../../src/domain/metrics.js';
import { loadConfig } from '../../src/platform/config.js';

const production = GateThresholds.parse({});

describe('gates', () => {
  it('ask for 92, 94 and 85% unless configured otherwise', () => {
    expect(production).toEqual({ validation: 0.92, heldOut: 0.94, freshSynthetic: 0.85 });
  });

  it('pass at the threshold itself, miss below it, and are open where nothing was measured', () => {
    const results = gateResults(production, {
      validation: { accuracy: 0.92, n: 50 },
      heldOut: { accuracy: 0.939, n: 200 },
      freshSynthetic: null,
    });
    expect(results.map((r) => [r.gate, r.passed])).toEqual([
      ['validation', true],
      ['heldOut', false],
      ['freshSynthetic', null],
    ]);
    expect(describeGates(results)).toBe(
      'validation passed: 92.0% of 50, at least 92.0% asked for; held-out photographs MISSED: 93.9% of 200, at least 94.0% asked for; fresh synthetic images not measured (at least 85.0% asked for)',
    );
  });

  it('are left out where a preset has none, and an accuracy over no images is none', () => {
    const none = { accuracy: 1, n: 0 };
    const results = gateResults(
      { validation: 0.8, heldOut: null, freshSynthetic: null },
      { validation: none, heldOut: none, freshSynthetic: none },
    );
    expect(results).toEqual([{ gate: 'validation', threshold: 0.8, value: null, n: 0, passed: null }]);
    expect(describeGates([])).toBe('');
  });

  it('are enforced unless a preset says otherwise: the demo only tells, the others refuse', () => {
    expect(GateSettings.parse({})).toMatchObject({ enforce: true, minImages: 20 });
    const of = (preset: string) => loadConfig({ preset }).gates.enforce;
    expect(['demo', 'budget', 'balanced', 'accuracy'].map(of)).toEqual([false, true, true, true]);
  });

  it('refuse where one was measured and missed, and never where none was measured or nothing is enforced', () => {
    const measured = (accuracy: number, n: number) =>
      gateResults(production, { validation: { accuracy: 0.95, n: 43 }, heldOut: { accuracy, n }, freshSynthetic: null }, 20);
    expect(gateRefusal(measured(0.93, 20), true)).toMatch(/held-out photographs MISSED: 93\.0% of 20.*no trial/);
    expect(gateRefusal(measured(0.93, 20), true)).not.toMatch(/validation/);
    expect(gateRefusal(measured(0.93, 20), false)).toBeNull();
    expect(gateRefusal(measured(0.94, 20), true)).toBeNull();
    expect(gateRefusal(measured(0.5, 19), true)).toBeNull();
  });

  it('are not passed by a model that always says no on streets that are nearly all without roadwork', () => {
    const street = (label: 0 | 1, prediction: number) => ({ label, prediction });
    const heldOut = (rows: { label: 0 | 1; prediction: number }[], minImages = 20) =>
      gateResults(
        { ...production, validation: null, freshSynthetic: null },
        { validation: null, heldOut: metricsOf(rows), freshSynthetic: null },
        minImages,
      )[0]!;
    const streets = Array.from({ length: 95 }, () => street(0, 0.1));
    const works = (p: number, n = 5) => Array.from({ length: n }, () => street(1, p));
    const always = heldOut([...streets, ...works(0.1)]);
    expect(always).toMatchObject({ value: 0.95, balanced: 0.5, positives: 5, passed: false });
    expect(describeGates([always])).toBe('held-out photographs MISSED: 95.0% of 100, with classes alike 50.0%, at least 94.0% asked for');
    expect(heldOut([...streets, ...works(0.9)]).passed).toBe(true);
    const few = heldOut([...streets, ...works(0.9, 4)]);
    expect(few.passed).toBeNull();
    expect(describeGates([few])).toBe(
      'held-out photographs not measured: 100.0% of 99, but only 4 with and 95 without roadwork, and 5 of each are needed (at least 94.0% asked for)',
    );
    expect(heldOut(streets, 0).passed).toBeNull();
    expect(heldOut(streets.map((r) => ({ ...r, prediction: 0.9 }))).passed).toBe(false);
  });

  it('count an image without an answer as one that is wrong, whatever it shows', () => {
    const rows = [0, 1].map((label) => ({ label: label as 0 | 1, prediction: -1, truth: 'consensus' as const }));
    expect(measuredByTruth(rows)).toMatchObject({ accuracy: 0, n: 2, balanced: 0 });
  });

  it('on too few images stay open, and say what was found and how many are needed', () => {
    const [only] = gateResults(
      { validation: null, heldOut: 0.94, freshSynthetic: null },
      { validation: null, heldOut: { accuracy: 0.5, n: 19 }, freshSynthetic: null },
      20,
    );
    expect(only).toMatchObject({ value: 0.5, passed: null });
    expect(describeGates([only!])).toBe(
      'held-out photographs not measured: 50.0% of 19, but 20 images are needed (at least 94.0% asked for)',
    );
  });

  it('count synthetic images with a settled label, and tell what was only meant beside them', () => {
    const rows = [
      { label: 1, prediction: 0.9, truth: 'consensus' },
      { label: 0, prediction: 0.5, truth: 'consensus' },
      { label: 1, prediction: 0.5, truth: 'none' },
    ] as const;
    const freshSynthetic = measuredByTruth(rows);
    expect(freshSynthetic).toEqual({
      accuracy: 1,
      n: 2,
      positives: 1,
      balanced: 1,
      byTruth: { consensus: { accuracy: 1, n: 2 }, none: { accuracy: 0, n: 1 } },
    });
    expect(measuredByTruth([])).toBeNull();
    const told = (of: typeof freshSynthetic) =>
      describeGates(
        gateResults({ validation: null, heldOut: null, freshSynthetic: 0.6 }, { validation: null, heldOut: null, freshSynthetic: of }),
      );
    expect(told(freshSynthetic)).toBe(
      "fresh synthetic images passed: 100.0% of 2 labelled by consensus, at least 60.0% asked for; by the generator's intent alone 0.0% of 1",
    );
    expect(told(measuredByTruth(rows.slice(2)))).toBe(
      "fresh synthetic images not measured (at least 60.0% asked for; by the generator's intent alone 0.0% of 1)",
    );
  });
});
