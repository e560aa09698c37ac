import { describe, expect, it } from 'vitest';
import { GateThresholds } from '../../src/domain/contracts/common.js';
import { describeGates, gateResults } from '../../src/domain/gates.js';

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
});
