/**
 * The verdict: from paired evidence and gates to promote, keep or continue; for gate and shadow trial alike. The operator's
 * rule (better by more than the margin) holds for the estimate, the one-sided lower bound must be above 0 at what is left of
 * the quarter's error probability, and groups must be enough; with too little evidence the verdict is 'continue', never a
 * guess. Only truth and verified labels promote, unless configured otherwise; consensus can veto.
 */
import type { TruthKind } from './contracts/common.js';
import { accuracies, patternsOf, right, weighPatterns, type Estimate, type PairedRow, type Weighed } from './evidence.js';
import { calibrationOf, type PairedCalibration } from './calibration.js';
import type { ValidatorProfile } from './profiles/index.js';
import { mcnemarP } from './statistics.js';
import { candidateAlpha, plannedInformation, spend, trialInformation, type Sequence, type Spending } from './spending.js';

export type { PairedRow } from './evidence.js';
export type { Sequence } from './spending.js';

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

/** The operator's rule. */
export interface VerdictConfig {
  /** the estimate must exceed this, in accuracy (0.01 = one percentage point) */
  marginAccuracy: number;
  /** one-sided error probability: of the whole quarter with a `sequence`, of this one look without */
  alpha: number;
  minGroupsPerClass: number;
  /** what margin and bound are taken in, default accuracy. In predicted reward the margin is what that much accuracy is worth */
  measure?: 'accuracy' | 'predicted reward';
  /** true difference that a trial is planned to find, in accuracy; default twice the margin, at least half a point */
  planDifference?: number;
  /** consensus labels alone may promote; default false */
  consensusPromotes?: boolean;
  /** calibration gate, default no limit */
  maxBrierIncrease?: number;
  maxCalibrationErrorIncrease?: number;
}

export interface JudgeInput {
  rows: readonly PairedRow[];
  gates: Gates;
  config: VerdictConfig;
  /** bootstrap draws */
  resamples: number;
  seed: number | string;
  profile?: ValidatorProfile;
  /** where this look stands in trial and quarter; absent: it is the only one */
  sequence?: Sequence;
  /** the trial's longest time is over: what is not promoted now is kept out */
  late?: boolean;
  /** the two bundles: a label that one of them voted for does not count */
  models?: readonly string[];
  /** generator families that champion or candidate was trained on; synthetic evidence of any of them does not count. Absent: not known, so none counts */
  trainedOn?: readonly string[];
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
  /** challenges that only one of the two has right, and McNemar's exact two-sided p: described, never decided by, for it takes frames of a clip as independent */
  mcnemar: { candidateOnly: number; championOnly: number; p: number };
  /** whether synthetic images are part of the evidence */
  scope: 'real only' | 'real and synthetic';
  /** challenges left out: of generators known from training, and labelled by the very models on trial */
  leftOut: { synthetic: number; ownVotes: number };
  /** Brier score and expected calibration error of both, on what both answered; null where nothing was */
  calibration: PairedCalibration | null;
  /** what this look spent of the error probability; null without a sequence */
  spending: (Spending & { candidate: number; candidateAlpha: number }) | null;
  /** figures by kind of truth, never mixed; accuracies with each class counting half */
  byTruth: Partial<Record<TruthKind, { n: number; groups: number; champion: number; candidate: number; difference: number }>>;
}

/** @throws BadInputError for a prediction that is neither -1 nor in [0, 1] */
export function judge(input: JudgeInput): Verdict {
  const { gates, config } = input;
  const { rows, leftOut } = admit(input);
  const strong = rows.filter((r) => r.truth === 'truth' || r.truth === 'verified');
  const weak = rows.filter((r) => r.truth === 'consensus');
  const judged = strong.length > 0 ? strong : weak;
  const { resamples, seed, profile } = input;
  const given = { resamples, seed, ...(profile ? { profile } : {}) };
  const evidence = weighPatterns({ patterns: patternsOf(judged), ...given });
  const calibration = calibrationOf(judged);

  const vetoes = gateVetoes(gates);
  if (strong.length > 0 && weak.length > 0) {
    const side = weighPatterns({ patterns: patternsOf(weak), ...given });
    if (clearlyWorse(side))
      vetoes.push(
        `on ${side.n} images labelled by consensus it is worse by ${points(-side.accuracy.difference)} (95% interval ${range(side.accuracy.ci95)})`,
      );
  }
  const missing: string[] = [];
  if (judged.length === 0) missing.push('no challenge with a known label was answered by both');
  else if (strong.length === 0 && config.consensusPromotes !== true)
    missing.push('all labels are consensus of models, which can refuse a candidate but never promote it');
  if (gates.shadowAnswers !== null && gates.shadowAnswers < gates.minShadowAnswers) {
    missing.push(`the shadow gave ${gates.shadowAnswers} answers of the ${gates.minShadowAnswers} that a promotion needs at least`);
  }
  const limits = calibrationLimits(calibration, config);
  vetoes.push(...limits.vetoes);
  missing.push(...limits.missing);

  const decided = decide(evidence, {
    config,
    vetoes,
    missing,
    ...(input.sequence ? { sequence: input.sequence } : {}),
    late: input.late === true,
  });
  const { accuracy, predictedReward, groups } = evidence;
  const scope = judged.some((r) => isSynthetic(r)) ? 'real and synthetic' : 'real only';
  return {
    decision: decided.decision,
    reason: tell(evidence, decided, { config, vetoes, scope, leftOut, late: input.late === true }),
    reasons: [...vetoes, ...decided.missing],
    accuracy: {
      champion: accuracy.champion,
      candidate: accuracy.candidate,
      difference: accuracy.difference,
      ci95: accuracy.ci95,
      lower: decided.lower,
      upper: evidence.bound(decided.alpha, 1),
    },
    predictedReward,
    groups: { positive: groups.positive, negative: groups.negative },
    needGroups: decided.needGroups,
    n: evidence.n,
    mcnemar: mcnemarOf(judged),
    scope,
    leftOut,
    calibration,
    spending:
      decided.spending && input.sequence
        ? { ...decided.spending, candidate: input.sequence.earlier + 1, candidateAlpha: decided.whole }
        : null,
    byTruth: byTruth(rows),
  };
}

function mcnemarOf(rows: readonly PairedRow[]): Verdict['mcnemar'] {
  let candidateOnly = 0;
  let championOnly = 0;
  for (const { label, champion, candidate } of rows) {
    const [one, two] = [right(label, champion), right(label, candidate)];
    if (two && !one) candidateOnly += 1;
    if (one && !two) championOnly += 1;
  }
  return { candidateOnly, championOnly, p: mcnemarP(candidateOnly, championOnly) };
}

const isSynthetic = (row: PairedRow): boolean => row.generator !== undefined && row.generator !== null;

/** Rows that may be evidence at all. */
function admit({ rows, models = [], trainedOn }: JudgeInput): { rows: PairedRow[]; leftOut: Verdict['leftOut'] } {
  const leftOut = { synthetic: 0, ownVotes: 0 };
  const kept = rows.filter((row) => {
    if (isSynthetic(row) && (trainedOn === undefined || trainedOn.includes(row.generator as string))) leftOut.synthetic += 1;
    else if (row.labelledBy?.some((voter) => models.includes(voter)) === true) leftOut.ownVotes += 1;
    else return true;
    return false;
  });
  return { rows: kept, leftOut };
}

export interface Decided {
  decision: Verdict['decision'];
  missing: string[];
  needGroups: number | null;
  /** right and wrong on the very same challenges */
  same: boolean;
  worse: boolean;
  /** the planned evidence is in, or the time is over, without a promotion */
  exhausted: boolean;
  /** lower bound of the difference in accuracy at `alpha` */
  lower: number;
  /** error probability the bounds are told at */
  alpha: number;
  /** the candidate's own, over all its looks */
  whole: number;
  spending: Spending | null;
}

/**
 * The rule itself, from weighed evidence: everything but what gates, calibration and kinds of truth have said already
 * (`vetoes`, `missing`). Studies of the rule call this very function.
 */
export function decide(
  evidence: Weighed,
  input: { config: VerdictConfig; vetoes: readonly string[]; missing: readonly string[]; sequence?: Sequence; late?: boolean },
): Decided {
  const { config, sequence } = input;
  const { accuracy, groups, n } = evidence;
  const missing = [...input.missing];
  const few = [
    ...(groups.positive < config.minGroupsPerClass ? [`${groups.positive} with roadwork`] : []),
    ...(groups.negative < config.minGroupsPerClass ? [`${groups.negative} without`] : []),
  ];
  const lacking =
    few.length > 0 && n > 0
      ? [`there are only ${few.join(' and ')} of the ${config.minGroupsPerClass} groups a class that a promotion needs at least`]
      : [];

  const whole = sequence ? candidateAlpha(config.alpha, sequence) : config.alpha;
  const difference = config.planDifference ?? Math.max(0.005, 2 * config.marginAccuracy);
  const ready = input.missing.length === 0 && input.vetoes.length === 0 && few.length === 0;
  const spending = sequence ? spend({ alpha: whole, standardError: accuracy.standardError, difference, sequence, ready }) : null;
  // A look that is no test still tells its bound, at all the candidate has; it can't promote.
  const alpha = spending?.tests === true ? spending.alpha : whole;
  const lower = evidence.bound(alpha, -1);

  if (n > 0) {
    const inReward = config.measure === 'predicted reward';
    if (inReward) {
      const margin = evidence.rewardOf(config.marginAccuracy);
      const reward = evidence.predictedReward;
      if (reward.difference <= margin)
        missing.push(
          `the predicted reward is not above the margin of ${margin.toFixed(3)} (what ${points(config.marginAccuracy)} of accuracy are worth)`,
        );
      const bound = evidence.rewardLower(alpha);
      if (bound <= 0)
        missing.push(
          `the lower bound of the difference in predicted reward (${bound.toFixed(3)}, one-sided error probability ${rounded(alpha)}) is not above 0`,
        );
      if (accuracy.difference <= 0) missing.push('the accuracy is not higher');
    } else {
      if (accuracy.difference <= config.marginAccuracy)
        missing.push(`the estimate is not above the margin of ${points(config.marginAccuracy)}`);
      if (lower <= 0)
        missing.push(`the lower bound of the difference (${points(lower)}, one-sided error probability ${rounded(alpha)}) is not above 0`);
      // Asked for last: it is dear, and seldom says otherwise.
      if (missing.length === input.missing.length && evidence.predictedReward.difference <= 0)
        missing.push('the predicted reward is not higher');
    }
    missing.push(...lacking);
    if (spending && !spending.tests && missing.length === 0)
      missing.push('a promotion is tested again when evidence has doubled since the last test, or at the end of the trial');
  }
  const enough = few.length === 0;
  const both = groups.positive > 0 && groups.negative > 0;
  const same = n > 0 && (evidence.identical || (evidence.discordant === 0 && enough));
  const worse = both && (clearlyWorse(evidence) || same);
  const promote = missing.length === 0 && input.vetoes.length === 0 && !worse;
  const exhausted = !promote && (input.late === true || (spending !== null && ready && spending.spent >= 1));
  const decision = input.vetoes.length > 0 || worse || exhausted ? 'keep' : promote ? 'promote' : 'continue';
  const needGroups =
    decision === 'continue' ? groupsNeeded(evidence, { config, lower, alpha: whole, planned: sequence ? difference : null }) : null;
  return { decision, missing: decision === 'promote' ? [] : missing, needGroups, same, worse, exhausted, lower, alpha, whole, spending };
}

function tell(
  evidence: Weighed,
  decided: Decided,
  {
    config,
    vetoes,
    scope,
    leftOut,
    late,
  }: { config: VerdictConfig; vetoes: readonly string[]; scope: Verdict['scope']; leftOut: Verdict['leftOut']; late: boolean },
): string {
  const told = describe(evidence, scope, leftOut);
  const { decision, same, worse, lower, alpha, needGroups, missing } = decided;
  if (vetoes.length > 0) return `${told} It is refused: ${vetoes.join('; ')}. The champion is kept.`;
  if (worse)
    return `${told} ${same ? 'The two are right and wrong on the very same challenges' : 'It is not better, beyond reasonable doubt'}, so the champion is kept.`;
  if (decision === 'promote') {
    const bound =
      config.measure === 'predicted reward'
        ? `the lower bound of the difference in predicted reward (${evidence.rewardLower(alpha).toFixed(3)}, one-sided error probability ${rounded(alpha)})`
        : `the lower bound (${points(lower)}, one-sided error probability ${rounded(alpha)})`;
    return `${told} That is more than the margin of ${points(config.marginAccuracy)}, and ${bound} is above 0, so it is promoted.`;
  }
  if (decision === 'keep') {
    const why = late ? "The trial's longest time is over" : 'All the evidence that was planned for is in';
    return `${told} ${why}, and ${list(missing)}, so the champion is kept.`;
  }
  const more = needGroups === null ? '' : `; about ${needGroups} more group${needGroups === 1 ? ' is' : 's are'} needed`;
  return `${told} But ${list(missing)}, so evidence is collected further${more}.`;
}

function describe({ accuracy, predictedReward, groups, n }: Weighed, scope: Verdict['scope'], leftOut: Verdict['leftOut']): string {
  const without = [
    ...(leftOut.synthetic > 0 ? [`${leftOut.synthetic} synthetic ones of generators known from training do not count`] : []),
    ...(leftOut.ownVotes > 0 ? [`${leftOut.ownVotes} labelled by the models on trial do not count`] : []),
  ];
  const aside = without.length > 0 ? ` (${without.join('; ')})` : '';
  if (n === 0) return `There is nothing to compare yet${aside}.`;
  const { difference } = accuracy;
  const how = difference > 0 ? `better by ${points(difference)}` : difference < 0 ? `worse by ${points(-difference)}` : 'exactly as good';
  return (
    `Candidate is ${how} (95% interval of the difference ${range(accuracy.ci95)}) on ${n} challenges of ${groups.all} groups ` +
    `(${groups.positive} with roadwork, ${groups.negative} without), ${scope}${aside}: ${percent(accuracy.candidate)} right against ${percent(accuracy.champion)}, each class counting half; ` +
    `predicted reward ${predictedReward.candidate.toFixed(3)} against ${predictedReward.champion.toFixed(3)} ` +
    `(95% interval of the difference ${predictedReward.ci95[0].toFixed(3)} to ${predictedReward.ci95[1].toFixed(3)}).`
  );
}

/** A calibration beyond its limit can't be promoted; one that is so beyond doubt is refused. */
function calibrationLimits(calibration: PairedCalibration | null, config: VerdictConfig): { vetoes: string[]; missing: string[] } {
  const out: { vetoes: string[]; missing: string[] } = { vetoes: [], missing: [] };
  if (calibration === null) return out;
  const { brier, calibrationError } = calibration;
  const worse = brier.candidate - brier.champion;
  if (worse > (config.maxBrierIncrease ?? Infinity)) {
    const text = `its Brier score is ${brier.candidate.toFixed(3)} against ${brier.champion.toFixed(3)}, more than ${config.maxBrierIncrease} worse`;
    (brier.lower > 0 ? out.vetoes : out.missing).push(text);
  }
  if (calibrationError.candidate - calibrationError.champion > (config.maxCalibrationErrorIncrease ?? Infinity)) {
    out.missing.push(
      `its expected calibration error is ${calibrationError.candidate.toFixed(3)} against ${calibrationError.champion.toFixed(3)}, more than ${config.maxCalibrationErrorIncrease} worse`,
    );
  }
  return out;
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

function clearlyWorse({ accuracy, n }: Weighed): boolean {
  return n > 0 && accuracy.difference < 0 && accuracy.ci95[1] <= 0;
}

/**
 * More groups until each class has its least number and until the lower bound is above 0 in 90% of trials: of a difference
 * as large as the estimate, or, in a planned trial, of the planned one. The standard error falls with the root of the groups.
 */
function groupsNeeded(
  { accuracy, groups, n }: Weighed,
  { config, lower, alpha, planned }: { config: VerdictConfig; lower: number; alpha: number; planned: number | null },
): number | null {
  const least = Math.max(0, config.minGroupsPerClass - groups.positive) + Math.max(0, config.minGroupsPerClass - groups.negative);
  if (n === 0) return least;
  const { standardError } = accuracy;
  if (!Number.isFinite(standardError) || alpha <= 0) return least > 0 ? least : null;
  if (planned === null && accuracy.difference <= config.marginAccuracy) return null; // more groups make it surer, not better
  const aim = planned ?? accuracy.difference;
  const wanted = groups.all * standardError ** 2 * (planned === null ? plannedInformation(alpha, aim) : trialInformation(alpha, aim));
  const needed = Math.max(least, lower <= 0 ? Math.max(1, Math.ceil(wanted - groups.all)) : 0);
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
