/**
 * The verdict: from paired evidence and gates to promote, keep or continue. The operator's rule (better by more than the
 * margin) holds for the estimate, the one-sided lower bound must be above 0, and groups must be enough; with too little
 * evidence the verdict is 'continue', never a guess. Only truth and verified labels promote; consensus can veto.
 */
import type { TruthKind } from './contracts/common.js';
import { accuracies, weigh, type Estimate, type Evidence, type PairedRow } from './evidence.js';
import type { ValidatorProfile } from './profiles/index.js';
import { normalQuantile } from './statistics.js';

export type { PairedRow } from './evidence.js';

/** What a candidate must hold whatever its quality. */
export interface Gates {
  /** the candidate's own 99th percentile, ms an image */
  latencyP99Ms: number;
  maxLatencyP99Ms: number;
  bundleBytes: number;
  maxBundleBytes: number;
  /** images on which the candidate failed, of all it was asked for */
  errors: number;
  answers: number;
  /** a larger share of errors refuses it, [0, 1] */
  maxErrorShare: number;
  /** answers of the shadow so far; null: no shadow runs yet */
  shadowAnswers: number | null;
  minShadowAnswers: number;
}

export interface JudgeInput {
  rows: readonly PairedRow[];
  gates: Gates;
  config: {
    /** the estimate must exceed this, in accuracy (0.01 = one percentage point) */
    marginAccuracy: number;
    /** one-sided error probability of this look */
    alpha: number;
    minGroupsPerClass: number;
  };
  /** bootstrap draws */
  resamples: number;
  seed: number | string;
  profile?: ValidatorProfile;
}

export interface Verdict {
  decision: 'promote' | 'keep' | 'continue';
  /** the whole of it in plain words, for an operator */
  reason: string;
  /** each thing that stands against a promotion; empty when promoted */
  reasons: string[];
  /** in shares; `lower` and `upper` are one-sided bounds at alpha */
  accuracy: Estimate & { lower: number; upper: number };
  predictedReward: Estimate;
  groups: { positive: number; negative: number };
  /** about how many more groups would settle it, both classes together; null where more would not help or cannot be told */
  needGroups: number | null;
  /** challenges behind the figures */
  n: number;
  /** figures by kind of truth, never mixed; accuracies with each class counting half */
  byTruth: Partial<Record<TruthKind, { n: number; groups: number; champion: number; candidate: number; difference: number }>>;
}

/** Chance to show a real difference that `needGroups` plans for. */
const POWER = 0.8;

/** @throws BadInputError for a prediction that is neither -1 nor in [0, 1] */
export function judge(input: JudgeInput): Verdict {
  const { rows, gates, config } = input;
  const strong = rows.filter((r) => r.truth === 'truth' || r.truth === 'verified');
  const weak = rows.filter((r) => r.truth === 'consensus');
  const judged = strong.length > 0 ? strong : weak;
  const { resamples, seed, profile } = input;
  const given = { resamples, seed, alpha: config.alpha, ...(profile ? { profile } : {}) };
  const evidence = weigh({ rows: judged, ...given });
  const { accuracy, predictedReward, groups } = evidence;
  const both = groups.positive > 0 && groups.negative > 0;

  const vetoes = gateVetoes(gates);
  if (strong.length > 0 && weak.length > 0) {
    const side = weigh({ rows: weak, ...given });
    if (clearlyWorse(side))
      vetoes.push(
        `on ${side.n} images labelled by consensus it is worse by ${points(-side.accuracy.difference)} (95% interval ${range(side.accuracy.ci95)})`,
      );
  }

  const missing: string[] = [];
  if (judged.length === 0) missing.push('no challenge with a known label was answered by both');
  else {
    if (strong.length === 0) missing.push('all labels are consensus of models, which can refuse a candidate but never promote it');
    if (accuracy.difference <= config.marginAccuracy)
      missing.push(`the estimate is not above the margin of ${points(config.marginAccuracy)}`);
    if (accuracy.lower <= 0)
      missing.push(
        `the lower bound of the difference (${points(accuracy.lower)}, one-sided error probability ${rounded(config.alpha)}) is not above 0`,
      );
    if (predictedReward.difference <= 0) missing.push('the predicted reward is not higher');
    const few = [
      ...(groups.positive < config.minGroupsPerClass ? [`${groups.positive} with roadwork`] : []),
      ...(groups.negative < config.minGroupsPerClass ? [`${groups.negative} without`] : []),
    ];
    if (few.length > 0)
      missing.push(`there are only ${few.join(' and ')} of the ${config.minGroupsPerClass} groups a class that a promotion needs at least`);
  }
  if (gates.shadowAnswers !== null && gates.shadowAnswers < gates.minShadowAnswers) {
    missing.push(`the shadow gave ${gates.shadowAnswers} answers of the ${gates.minShadowAnswers} that a promotion needs at least`);
  }

  const enough = Math.min(groups.positive, groups.negative) >= config.minGroupsPerClass;
  const same = evidence.n > 0 && (evidence.identical || (evidence.discordant === 0 && enough));
  const worse = both && (clearlyWorse(evidence) || same);
  const decision = vetoes.length > 0 || worse ? 'keep' : missing.length === 0 ? 'promote' : 'continue';
  const needGroups = decision === 'continue' ? groupsNeeded(evidence, config) : null;
  return {
    decision,
    reason: tell(),
    reasons: [...vetoes, ...missing],
    accuracy: {
      champion: accuracy.champion,
      candidate: accuracy.candidate,
      difference: accuracy.difference,
      ci95: accuracy.ci95,
      lower: accuracy.lower,
      upper: accuracy.upper,
    },
    predictedReward,
    groups: { positive: groups.positive, negative: groups.negative },
    needGroups,
    n: evidence.n,
    byTruth: byTruth(rows),
  };

  function tell(): string {
    const told = describe(evidence);
    if (vetoes.length > 0) return `${told} It is refused: ${vetoes.join('; ')}. The champion is kept.`;
    if (worse)
      return `${told} ${same ? 'The two are right and wrong on the very same challenges' : 'It is not better, beyond reasonable doubt'}, so the champion is kept.`;
    if (decision === 'promote') {
      return `${told} That is more than the margin of ${points(config.marginAccuracy)}, and the lower bound (${points(accuracy.lower)}, one-sided error probability ${rounded(config.alpha)}) is above 0, so it is promoted.`;
    }
    const more = needGroups === null ? '' : `; about ${needGroups} more group${needGroups === 1 ? ' is' : 's are'} needed`;
    return `${told} But ${list(missing)}, so evidence is collected further${more}.`;
  }
}

function describe({ accuracy, predictedReward, groups, n }: Evidence): string {
  if (n === 0) return 'There is nothing to compare yet.';
  const { difference } = accuracy;
  const how = difference > 0 ? `better by ${points(difference)}` : difference < 0 ? `worse by ${points(-difference)}` : 'exactly as good';
  return (
    `Candidate is ${how} (95% interval of the difference ${range(accuracy.ci95)}) on ${n} challenges of ${groups.all} groups ` +
    `(${groups.positive} with roadwork, ${groups.negative} without): ${percent(accuracy.candidate)} right against ${percent(accuracy.champion)}, each class counting half; ` +
    `predicted reward ${predictedReward.candidate.toFixed(3)} against ${predictedReward.champion.toFixed(3)} ` +
    `(95% interval of the difference ${predictedReward.ci95[0].toFixed(3)} to ${predictedReward.ci95[1].toFixed(3)}).`
  );
}

function gateVetoes(gates: Gates): string[] {
  const vetoes: string[] = [];
  // Written so that NaN refuses: a latency that could not be measured is none that holds.
  if (!(gates.latencyP99Ms <= gates.maxLatencyP99Ms))
    vetoes.push(`its p99 latency is ${rounded(gates.latencyP99Ms)} ms an image, the limit ${rounded(gates.maxLatencyP99Ms)} ms`);
  if (!(gates.bundleBytes <= gates.maxBundleBytes))
    vetoes.push(`its bundle has ${gates.bundleBytes} bytes, the limit is ${gates.maxBundleBytes}`);
  if (gates.answers > 0 && gates.errors / gates.answers > gates.maxErrorShare) {
    vetoes.push(`it failed on ${gates.errors} of ${gates.answers} images, more than the ${percent(gates.maxErrorShare)} allowed`);
  }
  return vetoes;
}

function clearlyWorse({ accuracy, n }: Evidence): boolean {
  return n > 0 && accuracy.difference < 0 && accuracy.ci95[1] <= 0;
}

/**
 * More groups until the lower bound of a difference as large as the estimate is above 0 in 80% of trials, and until each
 * class has its least number. The standard error falls with the root of the groups.
 */
function groupsNeeded({ accuracy, groups, n }: Evidence, config: JudgeInput['config']): number | null {
  const least = Math.max(0, config.minGroupsPerClass - groups.positive) + Math.max(0, config.minGroupsPerClass - groups.negative);
  if (n === 0) return least;
  if (accuracy.difference <= config.marginAccuracy) return null; // more groups make it surer, not better
  const { standardError } = accuracy;
  if (!Number.isFinite(standardError) || config.alpha <= 0) return least > 0 ? least : null;
  const z = -normalQuantile(config.alpha) + normalQuantile(POWER);
  const wanted = groups.all * ((z * standardError) / accuracy.difference) ** 2;
  const needed = Math.max(least, accuracy.lower <= 0 ? Math.max(1, Math.ceil(wanted - groups.all)) : 0);
  return needed > 0 ? needed : null;
}

function byTruth(rows: readonly PairedRow[]): Verdict['byTruth'] {
  const out: Verdict['byTruth'] = {};
  for (const kind of ['truth', 'verified', 'consensus'] as const) {
    const own = rows.filter((r) => r.truth === kind);
    if (own.length === 0) continue;
    out[kind] = accuracies(own);
  }
  return out;
}

const percent = (share: number): string => `${(share * 100).toFixed(1)}%`;
function points(share: number): string {
  const text = (share * 100).toFixed(1);
  return `${text} point${Math.abs(Number(text)) === 1 ? '' : 's'}`;
}
const range = ([low, high]: [number, number]): string => `${(low * 100).toFixed(1)} to ${(high * 100).toFixed(1)} points`;
/** Two significant digits are enough to read; whole numbers stay whole. */
const rounded = (x: number): string => (Number.isInteger(x) ? String(x) : x >= 100 ? x.toFixed(0) : String(Number(x.toPrecision(2))));
const list = (items: readonly string[]): string =>
  items.length < 2 ? (items[0] ?? '') : `${items.slice(0, -1).join('; ')}; and ${items.at(-1)}`;
