/**
 * `flywheel simulate`: plays a validator. Draws challenges as the profile does, asks a miner over signed HTTP or runs a bundle
 * through the miner's own code, and tells what a validator would make of the answers; with `--against`, the verdict on the
 * pair. Needs no running instance unless it is to ask that instance's miner. That miner journals the answers like any other
 * traffic, so it is asked from the pool `traffic` alone; bundles are asked from the held-out pool.
 */
import { randomInt } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { BadInputError } from '../domain/errors.js';
import { patternsOf, weighPatterns, type PairedRow } from '../domain/evidence.js';
import { NO_ANSWER } from '../domain/metrics.js';
import { type ProfileName, profileOf } from '../domain/profiles/index.js';
import { earnings, simulationReport, type Earnings, type PartReport, type SimulationReport } from '../domain/simulation.js';
import { reliabilityDiagram, rewardCurve } from '../domain/simulationCharts.js';
import { candidateAlpha, plannedInformation, QUARTER_DAYS } from '../domain/spending.js';
import { quantile } from '../domain/statistics.js';
import { judge, type Verdict } from '../domain/verdict.js';
import { loadHotkey, loadOrCreateHotkey } from '../platform/bittensor/keys.js';
import { openCatalogReadOnly } from '../platform/catalog/index.js';
import { readServices } from '../platform/home.js';
import { FileObjectStore } from '../platform/objects/index.js';
import { ServiceUnavailableError } from '../platform/unavailable.js';
import type { CommandContext } from './context.js';
import { InterruptedError } from './exit.js';
import { askBundle, askMiner, findBundle, tell, type Answers } from './simulate/answers.js';
import { drawChallenges, type Drawn } from './simulate/challenges.js';

export interface SimulateOptions {
  /** folder of a bundle; at most one of bundle, model and url */
  bundle?: string;
  model?: string;
  url?: string;
  /** model or bundle folder that the other is judged against: the champion of the pair */
  against?: string;
  profile?: string;
  challenges?: number;
  data?: string;
  seed?: number;
  axonHotkey?: string;
  /** the validator's key; default the home's own */
  hotkeyFile?: string;
  concurrency?: number;
  /** s; default the profile's */
  timeout?: number;
  /** folder for report.json and the pictures */
  out?: string;
  fieldAccuracy?: number;
  alphaPrice?: number;
  emission?: number;
  fieldReward?: number;
  miners?: number;
}

interface Pair {
  verdict: Verdict;
  /** groups that a difference of the planned size needs to be found with 90% power; null where it can't be told */
  planned: { difference: number; groups: number; have: number } | null;
}

const DAY_MS = 86_400_000;
/** Share of right answers of the other miners where the operator says nothing: the middle of the plan's classes. */
const FIELD_ACCURACY = 0.88;

/** @throws ServiceUnavailableError when no miner answers; BadInputError when there is nothing to draw from or no such model */
export async function simulateCommand(context: CommandContext, options: SimulateOptions): Promise<void> {
  const { paths, config } = context;
  const subjects = [options.bundle, options.model, options.url].filter((s) => s !== undefined);
  if (subjects.length > 1) throw new BadInputError('Give one of --bundle, --model and --url, not several. Nothing was asked.');
  const profile = profileOf(options.profile ?? config.profile);
  const seed = options.seed ?? randomInt(2 ** 31);
  const objects = new FileObjectStore(paths.objects);
  const abort = new AbortController();
  const interrupt = (signal: 'SIGINT' | 'SIGTERM') => () => abort.abort(new InterruptedError(signal));
  const handlers = { SIGINT: interrupt('SIGINT'), SIGTERM: interrupt('SIGTERM') };
  process.once('SIGINT', handlers.SIGINT);
  process.once('SIGTERM', handlers.SIGTERM);
  try {
    // What can be wrong is looked at before anything is drawn.
    const miner = options.bundle === undefined && options.model === undefined ? await minerOf(context, options) : null;
    const subject = miner
      ? null
      : await findBundle(context, objects, (options.bundle ?? options.model) as string, options.bundle !== undefined);
    const champion = options.against === undefined ? null : await findBundle(context, objects, options.against);
    const drawn = await drawChallenges(context, objects, {
      data: options.data ?? null,
      pool: miner ? 'traffic' : 'test',
      count: options.challenges ?? (miner ? config.traffic.challenges : config.gate.challenges),
      seed,
      profile: profile.name as ProfileName,
      signal: abort.signal,
    });
    const answers = miner
      ? await askMiner(context, objects, drawn.rows, {
          ...miner,
          timeoutSeconds: options.timeout ?? profile.timeoutSeconds,
          concurrency: options.concurrency ?? config.traffic.concurrency,
          signal: abort.signal,
        })
      : await askBundle(context, objects, drawn.rows, { ...(subject as NonNullable<typeof subject>), signal: abort.signal });
    const other = champion ? await askBundle(context, objects, drawn.rows, { ...champion, signal: abort.signal }) : null;
    context.progress.close();

    const reportOf = (of: Answers): SimulationReport =>
      simulationReport({
        answers: drawn.rows.map((row, i) => ({
          label: row.label,
          prediction: of.predictions[i] ?? NO_ANSWER,
          group: row.group,
          source: row.source,
          level: row.level,
          synthetic: row.synthetic,
          truth: row.truth,
        })),
        profile,
        seed,
        fieldAccuracy: options.fieldAccuracy ?? FIELD_ACCURACY,
      });
    const report = reportOf(answers);
    const against = other ? { answers: other, report: reportOf(other) } : null;
    const pair = against ? await judgePair(context, drawn, answers, against.answers, seed, profile.name) : null;
    const money = earningsOf(options, report);
    const folder = options.out ?? path.join(paths.root, 'simulations', `${profile.name}-${seed}`);
    const named = [{ name: answers.name, report }, ...(against ? [{ name: against.answers.name, report: against.report }] : [])];
    const result = {
      simulated: true,
      profile: profile.name,
      seed,
      from: drawn.from,
      set: drawn.set,
      subject: answers.name,
      // by name as before, for scripts
      asked: report.asked,
      answered: report.answered,
      errors: Object.fromEntries(answers.errors),
      metrics: { accuracy: report.overall.accuracy, mcc: report.overall.mcc, brier: report.overall.brier, n: report.overall.answered },
      reward: report.rewardNow,
      latencyMs: { p50: latency(answers, 0.5), p99: latency(answers, 0.99) },
      report,
      earnings: money.earnings,
      against: against ? { name: against.answers.name, report: against.report, verdict: pair?.verdict, planned: pair?.planned } : null,
      files: ['report.json', 'reliability.svg', 'reward.svg'].map((file) => path.join(folder, file)),
    };
    await mkdir(folder, { recursive: true });
    await writeFile(path.join(folder, 'reliability.svg'), reliabilityDiagram(named));
    await writeFile(path.join(folder, 'reward.svg'), rewardCurve(named));
    await writeFile(path.join(folder, 'report.json'), `${JSON.stringify(result, null, 2)}\n`);
    await context.print(told({ drawn, answers, report, against, pair, money, profile: profile.name, seed, folder }));
    await context.result(result);
  } finally {
    process.off('SIGINT', handlers.SIGINT);
    process.off('SIGTERM', handlers.SIGTERM);
  }
}

async function minerOf(context: CommandContext, options: SimulateOptions) {
  const { paths } = context;
  const { miner } = readServices(paths);
  if (options.url === undefined && miner === null)
    throw new ServiceUnavailableError(
      `No miner runs on ${paths.root}. Start one with \`flywheel up\`, or name a bundle (--bundle), a model (--model) or another miner (--url).`,
    );
  // The home's own validator has a port of its own where the metagraph does not know it; another key is asked as from outside.
  const own = options.hotkeyFile === undefined ? miner?.validatorUrl : undefined;
  const url = options.url ?? own ?? (miner as NonNullable<typeof miner>).url;
  if (!/^https?:\/\/[^/]+\/?$/.test(url))
    throw new BadInputError(`--url must be http://HOST:PORT of an axon, not ${url}. Nothing was asked.`);
  const axonHotkey = options.axonHotkey ?? miner?.hotkey;
  if (axonHotkey === undefined)
    throw new BadInputError(
      'A request is signed for the hotkey of the axon it goes to: give it with --axon-hotkey (SS58). No miner of this home runs whose hotkey could be meant. Nothing was asked.',
    );
  const hotkey = options.hotkeyFile === undefined ? await loadOrCreateHotkey(paths.validatorKey) : await loadHotkey(options.hotkeyFile);
  return { url: url.replace(/\/$/, ''), axonHotkey, hotkey };
}

/** The verdict of the next candidate of this quarter, in one test at all that it may spend. */
async function judgePair(
  context: CommandContext,
  drawn: Drawn,
  candidate: Answers,
  champion: Answers,
  seed: number,
  profile: string,
): Promise<Pair> {
  const { config } = context;
  const inRange = (p: number | undefined): number => (p !== undefined && p >= 0 && p <= 1 ? p : NO_ANSWER);
  const rows = drawn.rows.map((row, i): PairedRow => ({
    group: row.group,
    label: row.label,
    champion: inRange(champion.predictions[i]),
    candidate: inRange(candidate.predictions[i]),
    truth: row.truth,
    source: row.source,
    level: row.level,
    generator: row.synthetic ? (row.provider ?? 'unknown') : null,
    labelledBy: row.labelledBy,
  }));
  const alpha = candidateAlpha(config.verdict.alpha, { earlier: await judgedInQuarter(context), planned: config.verdict.candidates });
  const missing = rows.filter((row) => row.candidate === NO_ANSWER).length;
  const verdict = judge({
    rows,
    gates: {
      latencyP99Ms: latency(candidate, 0.99) ?? Infinity,
      maxLatencyP99Ms: config.gate.maxLatencyP99Ms,
      bundleBytes: candidate.bundle?.bytes ?? 0,
      maxBundleBytes: config.gate.maxBundleBytes,
      errors: missing,
      answers: rows.length,
      maxErrorShare: config.trial.maxErrorShare,
      shadowAnswers: null,
      minShadowAnswers: 0,
    },
    config: { ...config.verdict, alpha },
    resamples: config.gate.resamples,
    seed,
    profile: profileOf(profile),
    models: [candidate.bundle?.digest, champion.bundle?.digest].filter((d): d is string => typeof d === 'string'),
  });
  const { accuracy, groups } = weighPatterns({ patterns: patternsOf(rows), resamples: null, seed });
  const difference = config.verdict.planDifference;
  const wanted = groups.all * accuracy.standardError ** 2 * plannedInformation(alpha, difference);
  const planned = Number.isFinite(wanted) ? { difference, groups: Math.ceil(wanted), have: groups.all } : null;
  return { verdict, planned };
}

/** Candidates that gate or trial judged in the last 90 days; 0 without a catalog. */
async function judgedInQuarter({ paths }: CommandContext): Promise<number> {
  if (!existsSync(paths.catalog)) return 0;
  const catalog = await openCatalogReadOnly(paths.catalog);
  try {
    const since = Date.now() - QUARTER_DAYS * DAY_MS;
    return (await catalog.models()).filter(
      (m) =>
        m.createdAt >= since &&
        typeof m.evidence === 'object' &&
        m.evidence !== null &&
        Object.keys(m.evidence).some((key) => key === 'gate' || key.startsWith('trial look ')),
    ).length;
  } finally {
    await catalog.close();
  }
}

/** Prices and emissions are inputs: without all of them there is no estimate, and what is lacking is named. */
function earningsOf(options: SimulateOptions, report: SimulationReport): { earnings: Earnings | null; lacking: string[] } {
  const { alphaPrice, emission, fieldReward, miners } = options;
  const given = { '--alpha-price': alphaPrice, '--emission': emission, '--field-reward': fieldReward, '--miners': miners };
  const lacking = Object.entries(given).flatMap(([name, value]) => (value === undefined ? [name] : []));
  if (alphaPrice === undefined || emission === undefined || fieldReward === undefined || miners === undefined)
    return { earnings: null, lacking: lacking.length === 4 ? [] : lacking };
  return { earnings: earnings({ reward: report.reward, emission, price: alphaPrice, fieldReward, miners }), lacking: [] };
}

const latency = (answers: Answers, q: number): number | null => (answers.latencies.length === 0 ? null : quantile(answers.latencies, q));
const percent = (share: number): string => `${(share * 100).toFixed(1)}%`;

function told(all: {
  drawn: Drawn;
  answers: Answers;
  report: SimulationReport;
  against: { answers: Answers; report: SimulationReport } | null;
  pair: Pair | null;
  money: ReturnType<typeof earningsOf>;
  profile: string;
  seed: number;
  folder: string;
}): string {
  const { drawn, answers, report, against, pair, money, profile, seed, folder } = all;
  const row = (p: PartReport): string =>
    `  ${p.of.padEnd(34).slice(0, 34)} ${String(p.asked).padStart(5)} ${String(p.answered).padStart(8)}  ${percent(p.accuracy).padStart(6)}  ${p.mcc.toFixed(3).padStart(6)}  ${p.brier.toFixed(3)}  ${p.calibrationError.toFixed(3)}  ${p.auc === null ? '    -' : p.auc.toFixed(3)}`;
  const parts = ({ overall, byLevel, bySource, byKind, byTruth }: SimulationReport): string[] => [
    row(overall),
    ...[byLevel, bySource, byKind, byTruth].flatMap((list) => (list.length > 1 ? list.map(row) : [])),
  ];
  const reward = (r: SimulationReport): string =>
    `${r.reward.mean.toFixed(3)} expected with full windows (95% interval ${r.reward.ci95[0].toFixed(3)} to ${r.reward.ci95[1].toFixed(3)}, ${r.groups} groups); ${r.rewardNow.toFixed(3)} after the last of these`;
  const end = report.course.at(-1);
  const ms = (q: number): string => latency(answers, q)?.toFixed(0) ?? '-';
  const { truth } = drawn.rows[0] ?? { truth: 'truth' };
  return [
    `Simulated validator, profile ${profile}, ${report.asked} challenges from ${drawn.from}, seed ${seed}:`,
    `  ${answers.name}: ${report.answered} answered, ${report.missing} missing, ${report.outOfRange} out of range${answers.errors.size > 0 ? ` (${tell(answers.errors)})` : ''}`,
    '',
    `  labels: ${report.byTruth.length > 1 ? 'mixed, see below' : truth}`.padEnd(37) +
      'asked answered  accur.     MCC  Brier    ECE    AUC',
    ...parts(report),
    ...(against ? ['', `  ${against.answers.name}, on the same challenges:`, ...parts(against.report)] : []),
    '',
    `  reward    ${reward(report)}`,
    ...(against ? [`  against   ${reward(against.report)}`] : []),
    ...(end
      ? [
          `  score     ${end.score[0].toFixed(3)} after ${end.challenges} challenges${end.days === null ? '' : ` (${end.days.toFixed(0)} days of one validator)`} from an empty window, 95% ${end.score[1].toFixed(3)} to ${end.score[2].toFixed(3)}`,
        ]
      : []),
    `  latency   ${ms(0.5)} ms in the middle, ${ms(0.99)} ms at p99`,
    ...(money.earnings
      ? [
          `  earnings  ${money.earnings.perDay.toFixed(2)} a day (${money.earnings.ci95[0].toFixed(2)} to ${money.earnings.ci95[1].toFixed(2)}): ${percent(money.earnings.share)} of the miners' emission, ${money.earnings.alphaPerDay.toFixed(2)} alpha`,
        ]
      : money.lacking.length > 0
        ? [`  earnings  not estimated: give ${money.lacking.join(', ')}, too`]
        : []),
    ...(pair ? ['', `  verdict   ${pair.verdict.decision.toUpperCase()}: ${pair.verdict.reason}`, ...groupsLine(pair)] : []),
    ...report.warnings.map((warning) => `  note      ${warning}`),
    '',
    `  pictures and report.json in ${folder}`,
  ].join('\n');
}

function groupsLine({ verdict, planned }: Pair): string[] {
  if (planned === null) return [];
  const more = Math.max(planned.groups - planned.have, verdict.needGroups ?? 0);
  const size = `${(planned.difference * 100).toFixed(1)} points`;
  return [
    more > 0
      ? `  groups    ${planned.have} judged; about ${more} more are needed to find a true difference of ${size} in nine of ten trials`
      : `  groups    ${planned.have} judged, enough to find a true difference of ${size} in nine of ten trials`,
  ];
}
