/** The gates of a candidate: gathered from where they are measured, written into the catalog, since a bundle never changes. */
import { z } from 'zod';
import type { FlywheelConfig } from '../domain/config.js';
import { Digest, GateResult, ImageRow, Metrics, TruthKind } from '../domain/contracts/common.js';
import { gateResults, type Measured } from '../domain/gates.js';
import type { ModelRecord } from '../platform/ports.js';
import type { ActivityDeps } from './deps.js';

const Share = z.object({
  accuracy: z.number(),
  n: z.number(),
  positives: z.number().optional(),
  balanced: z.number().nullable().optional(),
  byTruth: z.partialRecord(TruthKind, z.object({ accuracy: z.number(), n: z.number() })).optional(),
});
const Evidence = z.object({
  training: z.object({ validate: Share }).nullish(),
  heldOut: Share.nullish(),
  freshSynthetic: Share.nullish(),
  gates: z.array(GateResult).nullish(),
});
const Snapshot = z.object({ fresh: Digest.nullish() });

/** Results as they were recorded last; empty before the turn's gate. */
export function recordedGates(model: ModelRecord | null): GateResult[] {
  return Evidence.safeParse(model?.evidence).data?.gates ?? [];
}

/** Synthetic images of a turn that its candidate did not learn from, with labels; empty where none were held back. */
export async function freshImages(deps: ActivityDeps, turn: string): Promise<ImageRow[]> {
  const { fresh } = Snapshot.safeParse((await deps.catalog.turn(turn))?.summary['snapshot']).data ?? {};
  return fresh ? deps.objects.getJsonl(fresh, (row) => ImageRow.parse(row)) : [];
}

/** Writes what was measured now beside what was measured before, and the results of all gates. */
export async function recordGates(
  deps: ActivityDeps,
  model: ModelRecord,
  config: FlywheelConfig,
  now: { heldOut: Measured; freshSynthetic: Measured },
): Promise<GateResult[]> {
  const before = Evidence.safeParse(model.evidence).data;
  const heldOut = now.heldOut ?? clean(before?.heldOut);
  const freshSynthetic = now.freshSynthetic ?? clean(before?.freshSynthetic);
  const gates = gateResults(
    config.gates,
    { validation: clean(before?.training?.validate), heldOut, freshSynthetic },
    config.gates.minImages,
  );
  await deps.catalog.setModelStatus(model.id, model.status, {
    ...(heldOut ? { heldOut } : {}),
    ...(freshSynthetic ? { freshSynthetic } : {}),
    gates,
  });
  return gates;
}

function clean(share: z.infer<typeof Share> | null | undefined): Measured {
  if (!share) return null;
  const { accuracy, n, positives, balanced, byTruth } = share;
  return {
    accuracy,
    n,
    ...(positives === undefined ? {} : { positives }),
    ...(balanced === undefined ? {} : { balanced }),
    ...(byTruth ? { byTruth } : {}),
  };
}

export const JudgedCandidate = z.object({ id: z.string(), heldOut: Metrics });
