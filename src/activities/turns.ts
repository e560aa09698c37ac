/** The turn's own rows: its plan, fixed when it begins, and its summary, filled in stage by stage. */
import { FlywheelConfig } from '../domain/config.js';
import type { Digest, GateResult } from '../domain/contracts/common.js';
import type { TurnPlan } from '../workflows/types.js';
import type { ActivityDeps } from './deps.js';
import { JudgedCandidate, recordGates } from './gates.js';

/** Loads the configuration a turn was planned with. */
export async function configOf(deps: ActivityDeps, digest: Digest): Promise<FlywheelConfig> {
  return FlywheelConfig.parse(JSON.parse((await deps.objects.get(digest)).toString('utf8')));
}

/** Turns are numbered in the order of their start, so that the same sequence of turns has the same seeds. */
export function turnActivities(deps: ActivityDeps) {
  return {
    async planTurn(input: { turn: string; hotkey: string; startedAt: number }): Promise<TurnPlan> {
      const { catalog, objects, config } = deps;
      const known = await catalog.startTurn(input.turn, input.startedAt);
      const planned = known.summary['plan'] as TurnPlan | undefined;
      if (planned) return planned;
      const earlier = (await catalog.turns(1_000_000)).filter((t) => t.id !== input.turn);
      const champion = await catalog.champion(input.hotkey);
      const model = champion ? await catalog.model(champion.pointer.digest) : null;
      const images = await catalog.images({ pools: ['train'] });
      const plan: TurnPlan = {
        turn: input.turn,
        index: earlier.length,
        seed: config.seed + earlier.length * 1000,
        config: await objects.put(Buffer.from(JSON.stringify(config))),
        champion: model ? { id: model.id, bundle: model.bundle, trained: model.trained } : null,
        hasImages: images.length > 0,
        retrainAbove: config.hardCases.retrainAbove,
        reviewTimeoutSeconds: config.labels.reviewTimeoutSeconds,
        maxJobSeconds: config.gpu.maxJobSeconds,
      };
      await catalog.patchTurn(input.turn, { plan });
      return plan;
    },

    async recordTurn(input: { turn: string; patch: Record<string, unknown>; finished?: boolean }): Promise<void> {
      const gates = await gatesOf(input.turn, input.patch['candidate']);
      await deps.catalog.patchTurn(input.turn, gates ? { ...input.patch, gates } : input.patch, input.finished ? deps.clock() : undefined);
    },
  };

  /** The gates of a candidate whose held-out figures have come, in the turn and in the model's evidence. */
  async function gatesOf(turn: string, candidate: unknown): Promise<GateResult[] | null> {
    const found = JudgedCandidate.safeParse(candidate);
    const model = found.success ? await deps.catalog.model(found.data.id) : null;
    if (!found.success || !model) return null;
    const plan = (await deps.catalog.turn(turn))?.summary['plan'] as TurnPlan | undefined;
    const config = plan ? await configOf(deps, plan.config) : deps.config;
    return recordGates(deps, model, config, { heldOut: found.data.heldOut, freshSynthetic: null });
  }
}
