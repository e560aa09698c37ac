/** Ids of workflows, so that everyone addresses the same one. */

/** The one long-running workflow that owns a hotkey's champion. */
export function lifecycleId(hotkey: string): string {
  return `lifecycle-${hotkey}`;
}

/** The trial of a candidate. */
export function trialId(hotkey: string, model: string): string {
  return `trial-${model}-${hotkey.slice(0, 8)}`;
}

/** Temporal Schedule of the daily turn. */
export function scheduleId(hotkey: string): string {
  return `daily-turn-${hotkey.slice(0, 8)}`;
}
