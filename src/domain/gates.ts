/**
 * Gates: least accuracies that a model should reach on its validation images, on held-out photographs, and on synthetic images made
 * after it. Results are data. Where they are enforced, a candidate that misses one is refused; one that was not measured never
 * counts as passed, and is said to be open.
 */
import { z } from 'zod';
import { GateThresholds, type GateResult, type Metrics, type TruthKind } from './contracts/common.js';
import { metricsOf, NO_ANSWER } from './metrics.js';

/** The operator's settings. */
export const GateSettings = GateThresholds.extend({
  /** a candidate that misses a gate gets no trial and is promoted by the operator's word alone; false: it is only told */
  enforce: z.boolean().default(true),
  /** a gate on fewer images is not measured: at 85% right, 20 images are known to some 8 points */
  minImages: z.number().int().positive().default(20),
  /**
   * share of a turn's synthetic images that no model learns from in that turn, in whole groups, so that `freshSynthetic` is measured on
   * what the candidate never saw; they are learned from in the next turn
   */
  freshShare: z.number().min(0).max(0.5).default(0.15),
});
export type GateSettings = z.infer<typeof GateSettings>;

/** Accuracy and the images behind it; `positives` and `balanced` as in Metrics, absent in older evidence. null: not measured. */
export type Measured = (Pick<Metrics, 'accuracy' | 'n' | 'positives' | 'balanced'> & { byTruth?: GateResult['byTruth'] }) | null;

/**
 * A gate is passed when the accuracy reaches the threshold, and does so with both classes counting alike too: on streets that are
 * nearly all without roadwork a model that never sees any would pass. With too few of a class that can't be told, and it stays open.
 * @param measured accuracies in [0, 1]
 * @param minImages on fewer images, or on fewer than a quarter of them of a class, no gate is passed
 * @returns one result a gate that has a threshold, in the order of the gates; a gate on no images is not measured
 */
export function gateResults(
  thresholds: GateThresholds,
  measured: Record<keyof GateThresholds, Measured>,
  minImages?: number,
): GateResult[] {
  return (['validation', 'heldOut', 'freshSynthetic'] as const).flatMap((gate) => {
    const threshold = thresholds[gate];
    if (threshold === null) return [];
    const found = measured[gate];
    const value = found !== null && found.n > 0 ? found.accuracy : null;
    const n = found?.n ?? 0;
    const { positives, balanced } = found ?? {};
    return [
      {
        gate,
        threshold,
        value,
        n,
        ...(positives === undefined ? {} : { positives }),
        ...(balanced === undefined ? {} : { balanced }),
        passed: value === null || n < (minImages ?? 0) ? null : value < threshold ? false : bothClasses(found!, threshold, minImages),
        ...(minImages === undefined ? {} : { minImages }),
        ...(found?.byTruth ? { byTruth: found.byTruth } : {}),
      },
    ];
  });
}

/** Whether the threshold holds with the classes alike; null: too few of a class. Older evidence, which does not tell, passes. */
function bothClasses({ n, positives, balanced }: Exclude<Measured, null>, threshold: number, minImages?: number): boolean | null {
  if (positives === undefined || balanced === undefined) return true;
  return balanced === null || Math.min(positives, n - positives) < perClass(minImages) ? null : balanced >= threshold;
}

const perClass = (minImages = 0): number => Math.max(1, Math.ceil(minImages / 4));

/**
 * Accuracy at boundary 0.5 on images whose label a person or a consensus stands behind, and by kind. What only the generator meant
 * (`none`) is told beside it and never counts: intent is no truth. No answer (-1) is a wrong one.
 */
export function measuredByTruth(rows: readonly { label: 0 | 1; prediction: number; truth: TruthKind }[]): Measured {
  if (rows.length === 0) return null;
  const counts = (some: typeof rows) => {
    const { accuracy, n, positives, balanced } = metricsOf(answeredOrWrong(some));
    return { accuracy, n, positives: positives ?? 0, balanced: balanced ?? null };
  };
  const of = (some: typeof rows) => {
    const { accuracy, n } = counts(some);
    return { accuracy, n };
  };
  const kinds = [...new Set(rows.map((r) => r.truth))].sort();
  return {
    ...counts(rows.filter((r) => r.truth !== 'none')),
    byTruth: Object.fromEntries(kinds.map((kind) => [kind, of(rows.filter((r) => r.truth === kind))])),
  };
}

/** Rows in which no answer (-1) stands as the surest wrong one: metrics leave it out, and who answers little must not look good. */
export function answeredOrWrong<T extends { label: 0 | 1; prediction: number }>(rows: readonly T[]): T[] {
  return rows.map((row) => (row.prediction === NO_ANSWER ? { ...row, prediction: 1 - row.label } : row));
}

/** The gates that were measured and not reached. */
export function missedGates(results: readonly GateResult[]): GateResult[] {
  return results.filter((r) => r.passed === false);
}

const NAMES = { validation: 'validation', heldOut: 'held-out photographs', freshSynthetic: 'fresh synthetic images' } as const;
const TRUTHS: Record<TruthKind, string> = { truth: 'truth', verified: 'a person', consensus: 'consensus', none: 'nobody' };
const percent = (share: number): string => `${(share * 100).toFixed(1)}%`;

/** For the operator: what was reached, what was not, what was not measured. Empty for no gates. */
export function describeGates(results: readonly GateResult[]): string {
  return results.map(describeGate).join('; ');
}

function describeGate({ gate, threshold, value, n, passed, minImages, byTruth, positives = 0, balanced }: GateResult): string {
  const asked = `at least ${percent(threshold)} asked for`;
  const meant = byTruth?.none;
  const beside = meant ? `; by the generator's intent alone ${percent(meant.accuracy)} of ${meant.n}` : '';
  const kinds = (Object.keys(byTruth ?? {}) as TruthKind[]).filter((kind) => kind !== 'none').map((kind) => TRUTHS[kind]);
  const by = kinds.length > 0 ? ` labelled by ${kinds.join(' and ')}` : '';
  const more = `(${asked}${beside})`;
  if (value === null) return `${NAMES[gate]} not measured ${more}`;
  if (passed === null) {
    const needed =
      n < (minImages ?? 0)
        ? `${minImages} images are needed`
        : `only ${positives} with and ${n - positives} without roadwork, and ${perClass(minImages)} of each are needed`;
    return `${NAMES[gate]} not measured: ${percent(value)} of ${n}${by}, but ${needed} ${more}`;
  }
  const alike = !passed && value >= threshold && typeof balanced === 'number' ? `, with classes alike ${percent(balanced)}` : '';
  return `${NAMES[gate]} ${passed ? 'passed' : 'MISSED'}: ${percent(value)} of ${n}${by}${alike}, ${asked}${beside}`;
}

/** What enforcement makes of the gates, for the verdict's reason; null: no measured gate was missed, or they are not enforced. */
export function gateRefusal(results: readonly GateResult[], enforce: boolean): string | null {
  const missed = missedGates(results);
  return enforce && missed.length > 0
    ? `Refused by the gates of this configuration: ${describeGates(missed)}. It gets no trial; \`flywheel promote\` would promote it all the same.`
    : null;
}
