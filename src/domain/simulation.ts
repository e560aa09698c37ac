/**
 * What a simulated validator makes of a miner's answers: metrics by part, the reward it would pay, and what that is worth.
 * Pure: the answers come from the production inference code or over the wire, see `src/cli/simulate`.
 */
import type { Label, TruthKind } from './contracts/common.js';
import { BadInputError } from './errors.js';
import { auc, expectedCalibrationError, metricsOf, NO_ANSWER, roundHalfEven } from './metrics.js';
import type { ValidatorProfile } from './profiles/index.js';
import { organicLabel, rewardExpectation, simulateReward, type AnswerRates } from './reward.js';
import { seededRng, type Rng } from './rng.js';
import { quantile } from './statistics.js';

/** One challenge with its answer: any number may come over the wire, -1 for none. */
export interface SimulatedAnswer {
  label: Label;
  prediction: number;
  group: string;
  source: string;
  level: number;
  synthetic: boolean;
  truth: TruthKind;
}

/** Metrics of a part of the answers; those that are missing or no probability are left out of them and counted. */
export interface PartReport {
  of: string;
  asked: number;
  answered: number;
  accuracy: number;
  mcc: number;
  brier: number;
  /** expected calibration error, ten bins */
  calibrationError: number;
  /** area under the ROC curve; null with one class only */
  auc: number | null;
}

export interface SimulationReport {
  asked: number;
  answered: number;
  /** -1: none, or too late */
  missing: number;
  /** answers that are no probability: they earn 0 and stay in the validator's window */
  outOfRange: number;
  groups: number;
  overall: PartReport;
  byLevel: PartReport[];
  bySource: PartReport[];
  byKind: PartReport[];
  byTruth: PartReport[];
  /** the exact reward after the last of these very answers */
  rewardNow: number;
  /** expected reward with full windows; 95% interval by bootstrap over groups */
  reward: { mean: number; ci95: [number, number] };
  /** reward and score by number of challenges answered: mean and 95% of simulated courses, from an empty window */
  course: CoursePoint[];
  reliability: { from: number; to: number; n: number; predicted: number; observed: number }[];
  warnings: string[];
}

export interface CoursePoint {
  challenges: number;
  /** null where the profile does not say how often a miner is asked */
  days: number | null;
  reward: [mean: number, low: number, high: number];
  score: [mean: number, low: number, high: number];
}

const RESAMPLES = 500;
const COURSES = 100;
const STEPS = 400;
const EVERY = 10;
const BINS = 10;
const FEW_GROUPS = 40;

/**
 * @param input answers in the order they were asked; fieldAccuracy: share of right answers of the other miners, of which
 * organic tasks depend
 * @throws BadInputError for no answers at all
 */
export function simulationReport(input: {
  answers: readonly SimulatedAnswer[];
  profile: ValidatorProfile;
  seed: number;
  fieldAccuracy: number;
}): SimulationReport {
  const { answers, profile, seed, fieldAccuracy } = input;
  if (answers.length === 0) throw new BadInputError('no challenge was asked, so there is nothing to report');
  const isGiven = (p: number): boolean => p >= 0 && p <= 1;
  const missing = answers.filter((a) => a.prediction === NO_ANSWER).length;
  const given = answers.filter((a) => isGiven(a.prediction));
  const part = (of: string, rows: readonly SimulatedAnswer[]): PartReport => {
    const kept = rows.filter((r) => isGiven(r.prediction));
    const { accuracy, mcc, brier, n } = metricsOf(kept);
    return {
      of,
      asked: rows.length,
      answered: n,
      accuracy,
      mcc,
      brier,
      calibrationError: expectedCalibrationError(kept, BINS),
      auc: auc(kept),
    };
  };
  const by = (key: (a: SimulatedAnswer) => string): PartReport[] => {
    const names = [...new Set(answers.map(key))].sort();
    return names.map((name) =>
      part(
        name,
        answers.filter((a) => key(a) === name),
      ),
    );
  };
  const groups = countsByGroup(answers);
  const expected = rewardExpectation({ seed, profile });
  const rng = seededRng(seed).fork('simulation');
  const drawn = Array.from({ length: RESAMPLES }, () => ratesOf(resample(groups, rng), groups));
  const rewards = drawn.map(expected).sort((a, b) => a - b);
  const perClass = [1, 0].map((label) => new Set(answers.filter((a) => a.label === label).map((a) => a.group)).size);
  const warnings = [
    ...(perClass.some((n) => n === 0)
      ? ['all challenges are of one class: MCC is 0 by definition, and the reward has only its accuracy half']
      : []),
    ...(perClass.some((n) => n > 0 && n < FEW_GROUPS)
      ? [
          `only ${perClass[0]} groups with roadwork and ${perClass[1]} without: intervals are wide, and a verdict asks for ${FEW_GROUPS} of each`,
        ]
      : []),
  ];
  return {
    asked: answers.length,
    answered: given.length,
    missing,
    outOfRange: answers.length - given.length - missing,
    groups: groups.length,
    overall: part('overall', answers),
    byLevel: by((a) => `level ${a.level}`),
    bySource: by((a) => a.source),
    byKind: by((a) => (a.synthetic ? 'synthetic' : 'real')),
    byTruth: by((a) => a.truth),
    rewardNow: simulateReward({ predictions: answers, profile }).rewards.at(-1) ?? 0,
    reward: { mean: expected(ratesOf(groups, groups)), ci95: [quantile(rewards, 0.025), quantile(rewards, 0.975)] },
    course: course(drawn, profile, fieldAccuracy, rng),
    reliability: reliabilityOf(given),
    warnings,
  };
}

/** right and missing of n, by class: [positives, negatives] */
type Counts = [n: number, right: number, missing: number][];

function countsByGroup(answers: readonly SimulatedAnswer[]): Counts[] {
  const groups = new Map<string, Counts>();
  for (const { group, label, prediction } of [...answers].sort((a, b) => (a.group < b.group ? -1 : a.group > b.group ? 1 : 0))) {
    const counts = groups.get(group) ?? [
      [0, 0, 0],
      [0, 0, 0],
    ];
    const own = counts[label === 1 ? 0 : 1] as Counts[number];
    own[0] += 1;
    // An answer out of range earns 0 like a missing one.
    if (!(prediction >= 0 && prediction <= 1)) own[2] += 1;
    else if (roundHalfEven(prediction) === label) own[1] += 1;
    groups.set(group, counts);
  }
  return [...groups.values()];
}

const classOf = (counts: Counts): number => ((counts[0]?.[0] ?? 0) >= (counts[1]?.[0] ?? 0) ? 0 : 1);

/** Groups drawn with replacement within the class of most of their challenges. */
function resample(groups: readonly Counts[], rng: Rng): Counts[] {
  return [0, 1].flatMap((c) => {
    const own = groups.filter((g) => classOf(g) === c);
    return own.map(() => rng.pick(own));
  });
}

/** A class that a draw lacks keeps its rates of the whole; one that there never was counts as wrong. */
function ratesOf(drawn: readonly Counts[], whole: readonly Counts[]): AnswerRates {
  const of = (c: 0 | 1): AnswerRates['positive'] => {
    for (const groups of [drawn, whole]) {
      let [n, right, missing] = [0, 0, 0];
      for (const counts of groups) {
        const own = counts[c] as Counts[number];
        n += own[0];
        right += own[1];
        missing += own[2];
      }
      if (n > 0) return { right: right / n, missing: missing / n };
    }
    return { right: 0, missing: 0 };
  };
  return { positive: of(0), negative: of(1) };
}

/** Courses of reward and score from an empty window: each with rates of one resample, so that both doubts are in the band. */
function course(drawn: readonly AnswerRates[], profile: ValidatorProfile, fieldAccuracy: number, rng: Rng): CoursePoint[] {
  const played = Array.from({ length: COURSES }, (_, i) => {
    const rates = drawn[i % drawn.length] as AnswerRates;
    const predictions = Array.from({ length: STEPS }, () => {
      const truth: Label = rng.next() < profile.draw.positiveShare ? 1 : 0;
      const { right, missing } = truth === 1 ? rates.positive : rates.negative;
      const u = rng.next();
      const say = (isRight: boolean): number => (isRight === (truth === 1) ? 0.9 : 0.1);
      const prediction = u < right ? say(true) : u < 1 - missing ? say(false) : NO_ANSWER;
      let label: Label = truth;
      if (profile.organic !== null && rng.next() < profile.organic.share) {
        const others = Array.from({ length: profile.minersPerStep - 1 }, () => say(rng.next() < fieldAccuracy));
        label = organicLabel([prediction, ...others]) ?? truth;
      }
      return { label, prediction };
    });
    return simulateReward({ predictions, profile });
  });
  const band = (values: number[]): [number, number, number] => {
    const sorted = values.sort((a, b) => a - b);
    return [sorted.reduce((sum, v) => sum + v, 0) / sorted.length, quantile(sorted, 0.025), quantile(sorted, 0.975)];
  };
  const points: CoursePoint[] = [];
  for (let at = EVERY; at <= STEPS; at += EVERY) {
    points.push({
      challenges: at,
      days: profile.challengesPerDay === null ? null : at / profile.challengesPerDay,
      reward: band(played.map((p) => p.rewards[at - 1] as number)),
      score: band(played.map((p) => p.scores[at - 1] as number)),
    });
  }
  return points;
}

function reliabilityOf(given: readonly SimulatedAnswer[]): SimulationReport['reliability'] {
  return Array.from({ length: BINS }, (_, b) => {
    const own = given.filter((a) => Math.min(BINS - 1, Math.floor(a.prediction * BINS)) === b);
    const mean = (of: (a: SimulatedAnswer) => number): number =>
      own.length === 0 ? 0 : own.reduce((sum, a) => sum + of(a), 0) / own.length;
    return { from: b / BINS, to: (b + 1) / BINS, n: own.length, predicted: mean((a) => a.prediction), observed: mean((a) => a.label) };
  }).filter((bin) => bin.n > 0);
}

export interface Earnings {
  /** share of the miners' emission, [0, 1] */
  share: number;
  /** in the price's currency, a day: mean, and over the 95% interval of the reward */
  perDay: number;
  ci95: [number, number];
  alphaPerDay: number;
}

/**
 * Weights are scores normalised, so a miner's share is its reward over the sum of all. The other miners' mean reward is held
 * fixed. Prices and emissions are inputs: they change by the hour.
 * @param input emission: alpha a day of all miners together; price of one alpha; fieldReward: mean expected reward of the
 * other miners, (0, 1]; miners: how many there are, this one included; decay: reward factor of the model's age, [0, 1]
 * @throws BadInputError for a number out of its range
 */
export function earnings(input: {
  reward: { mean: number; ci95: [number, number] };
  emission: number;
  price: number;
  fieldReward: number;
  miners: number;
  decay?: number;
}): Earnings {
  const { reward, emission, price, fieldReward, miners, decay = 1 } = input;
  const wrong = [
    ...(emission >= 0 ? [] : [`an emission of ${emission}`]),
    ...(price >= 0 ? [] : [`a price of ${price}`]),
    ...(fieldReward > 0 && fieldReward <= 1 ? [] : [`a mean reward of the field of ${fieldReward}`]),
    ...(Number.isInteger(miners) && miners >= 1 ? [] : [`${miners} miners`]),
  ];
  if (wrong.length > 0) throw new BadInputError(`earnings can't be estimated from ${wrong.join(', ')}`);
  const shareOf = (r: number): number => (r * decay === 0 ? 0 : (r * decay) / (r * decay + (miners - 1) * fieldReward));
  const share = shareOf(reward.mean);
  const money = (r: number): number => shareOf(r) * emission * price;
  return { share, perDay: money(reward.mean), ci95: [money(reward.ci95[0]), money(reward.ci95[1])], alphaPerDay: share * emission };
}
