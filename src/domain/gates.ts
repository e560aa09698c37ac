/**
 * Gates: least accuracies that a model should reach on its validation images, on held-out photographs, and on synthetic images made
 * after it. Results are data; what follows from them is the verdict's business.
 */
import type { GateResult, GateThresholds } from './contracts/common.js';

/** Accuracy and the number of images behind it; null: not measured. */
export type Measured = { accuracy: number; n: number } | null;

/**
 * @param measured accuracies in [0, 1]
 * @returns one result a gate that has a threshold, in the order of the gates; a gate on no images is not measured
 */
export function gateResults(thresholds: GateThresholds, measured: Record<keyof GateThresholds, Measured>): GateResult[] {
  return (['validation', 'heldOut', 'freshSynthetic'] as const).flatMap((gate) => {
    const threshold = thresholds[gate];
    if (threshold === null) return [];
    const found = measured[gate];
    const value = found !== null && found.n > 0 ? found.accuracy : null;
    return [{ gate, threshold, value, n: found?.n ?? 0, passed: value === null ? null : value >= threshold }];
  });
}

const NAMES = { validation: 'validation', heldOut: 'held-out photographs', freshSynthetic: 'fresh synthetic images' } as const;
const percent = (share: number): string => `${(share * 100).toFixed(1)}%`;

/** For the operator: what was reached, what was not, what was not measured. Empty for no gates. */
export function describeGates(results: readonly GateResult[]): string {
  return results
    .map(({ gate, threshold, value, n, passed }) =>
      value === null
        ? `${NAMES[gate]} not measured (at least ${percent(threshold)} asked for)`
        : `${NAMES[gate]} ${passed ? 'passed' : 'MISSED'}: ${percent(value)} of ${n}, at least ${percent(threshold)} asked for`,
    )
    .join('; ');
}
