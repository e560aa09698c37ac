// `npm run bench:verdicts [-- --quick] [-- --trials N] [-- --validators V] [-- --svg FILE]`: how often the verdict promotes, by true
// difference, discordance and correlation within groups, beside two rules that people use instead. JSON on standard output.
//
// A trial draws groups of four challenges (frames of a clip, variants of a photograph). In a group, both right, only champion right,
// only candidate right and both wrong follow a Dirichlet-multinomial law: marginals by discordance and difference, intra-class
// correlation as said. Champion's accuracy 90%. The decision is `decide` of src/domain/verdict.ts over `weighPatterns` without a
// bootstrap (a test holds that against the whole verdict); nothing of the rule is written again here.
import { writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { svg } from '../dist/domain/charts.js';
import { makePatterns, PATTERN_WIDTH, rewardWindows, weighPatterns } from '../dist/domain/evidence.js';
import { seededRng } from '../dist/domain/rng.js';
import { candidateAlpha, groupsFor, POWER } from '../dist/domain/spending.js';
import { shareUpperBound } from '../dist/domain/statistics.js';
import { decide } from '../dist/domain/verdict.js';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const argument = (name) => {
  const i = process.argv.indexOf(`--${name}`);
  return i < 0 ? null : process.argv[i + 1];
};
const quick = process.argv.includes('--quick');
const TRIALS = Number(argument('trials') ?? (quick ? 500 : 10_000));
const VALIDATORS = Number(argument('validators') ?? 10);
const SVG = argument('svg');

const DIFFERENCES = [-0.02, -0.01, 0, 0.01, 0.02, 0.04];
const DISCORDANCES = [0.06, 0.1, 0.15];
const CORRELATIONS = [0, 0.2, 0.5];
const CHAMPION = 0.9;
/** challenges of a group */
const M = 4;
/** challenges a miner gets in a day from one validator */
const A_DAY = 50;
/** a trial of the verdict's own length in operation, see trial.maxDays of the presets */
const OPERATION_DAYS = 7;
const MOST_DAYS = 400;
const NAIVE = 100;
const config = { marginAccuracy: 0.01, alpha: 0.005, minGroupsPerClass: 40, planDifference: 0.02 };
const FIRST = { earlier: 0, planned: 60 };
const SIXTIETH = { earlier: 59, planned: 60 };
const expected = rewardWindows(1);
const began = performance.now();

/** All [both, champion only, candidate only, neither] of M challenges. */
const SHAPES = [];
for (let a = 0; a <= M; a++) for (let b = 0; a + b <= M; b++) for (let c = 0; a + b + c <= M; c++) SHAPES.push([a, b, c, M - a - b - c]);
const COUNTS = [true, false].flatMap((positive) =>
  SHAPES.map(([both, champion, candidate]) => {
    const own = [M, both + champion, 0, both + candidate, 0, champion + candidate];
    const none = Array(PATTERN_WIDTH / 2).fill(0);
    return positive ? [...own, ...none] : [...none, ...own];
  }),
);

/** Probability of each shape. */
function law(difference, discordance, correlation) {
  const candidate = (discordance + difference) / 2;
  const champion = (discordance - difference) / 2;
  const p = [CHAMPION - champion, champion, candidate, 1 - CHAMPION - candidate];
  const factorial = (n) => (n < 2 ? 1 : n * factorial(n - 1));
  const s = correlation === 0 ? Infinity : (1 - correlation) / correlation;
  const rising = (x, n) => Array.from({ length: n }, (_, i) => x + i).reduce((product, v) => product * v, 1);
  return SHAPES.map((shape) => {
    const ways = factorial(M) / shape.reduce((product, n) => product * factorial(n), 1);
    if (s === Infinity) return ways * shape.reduce((product, n, k) => product * p[k] ** n, 1);
    return (ways * shape.reduce((product, n, k) => product * rising(p[k] * s, n), 1)) / rising(s, M);
  });
}

/** Draws an index by Walker's alias method. */
function sampler(probabilities) {
  const n = probabilities.length;
  const scaled = probabilities.map((p) => p * n);
  const [share, alias] = [new Float64Array(n).fill(1), new Int32Array(n)];
  const small = [];
  const large = [];
  scaled.forEach((p, i) => (p < 1 ? small : large).push(i));
  while (small.length > 0 && large.length > 0) {
    const [low, high] = [small.pop(), large.pop()];
    share[low] = scaled[low];
    alias[low] = high;
    scaled[high] -= 1 - scaled[low];
    (scaled[high] < 1 ? small : large).push(high);
  }
  return (rng) => {
    const u = rng.next() * n;
    const i = Math.floor(u);
    return u - i < share[i] ? i : alias[i];
  };
}

/** Adds groups, positives and negatives in turn, to the times of the patterns. */
function collect(times, groups, draw, rng, from) {
  for (let g = 0; g < groups; g++) times[((from + g) % 2) * SHAPES.length + draw(rng)] += 1;
}
const weighed = (times) => weighPatterns({ patterns: makePatterns(COUNTS, times, false), resamples: null, seed: 1, expected });

const rate = (hits, n) => ({ share: hits / n, upper95: shareUpperBound(hits, n) });
const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length === 0 ? null : sorted[Math.floor((sorted.length - 1) / 2)];
};
const accuracyDifference = (times) =>
  COUNTS.reduce((sum, c, i) => sum + times[i] * (c[3] + c[PATTERN_WIDTH / 2 + 3] - c[1] - c[PATTERN_WIDTH / 2 + 1]), 0) /
  (M * times.reduce((a, b) => a + b, 0));

/** One look at a labelled set of so many groups. */
function fromSet(draw, groups, quarter, seed, trials = TRIALS) {
  const rng = seededRng(`verdicts/${seed}`);
  let [promoted, kept, atLeast, naive, naiveEqual] = [0, 0, 0, 0, 0];
  for (let t = 0; t < trials; t++) {
    const times = Array(COUNTS.length).fill(0);
    collect(times, NAIVE / M, draw, rng, 0);
    const early = accuracyDifference(times);
    if (early > 0.01) naive += 1;
    if (early >= 0) naiveEqual += 1;
    collect(times, Math.max(0, groups - NAIVE / M), draw, rng, NAIVE / M);
    const { decision } = decide(weighed(times), { config, vetoes: [], missing: [], sequence: { ...quarter, spent: 0, last: true } });
    if (decision === 'promote') promoted += 1;
    if (decision === 'keep') kept += 1;
    if (accuracyDifference(times) >= 0) atLeast += 1;
  }
  return {
    groups,
    challenges: groups * M,
    promoted: rate(promoted, trials),
    kept: kept / trials,
    plainAtLeast: rate(atLeast, trials),
    naive: rate(naive, trials),
    naiveAtLeast: rate(naiveEqual, trials),
  };
}

/** A look a day at all that came in so far, until it decides. */
function asTrafficComes(draw, quarter, seed) {
  const rng = seededRng(`verdicts/traffic/${seed}`);
  const aDay = (A_DAY * VALIDATORS) / M;
  let [promoted, inOperation] = [0, 0];
  const days = [];
  for (let t = 0; t < TRIALS; t++) {
    const times = Array(COUNTS.length).fill(0);
    let [spent, groups] = [0, 0];
    for (let day = 1; day <= MOST_DAYS; day++) {
      const wanted = Math.floor(aDay * day);
      collect(times, wanted - groups, draw, rng, groups);
      groups = wanted;
      const decided = decide(weighed(times), {
        config,
        vetoes: [],
        missing: [],
        sequence: { ...quarter, spent, last: false },
      });
      spent = decided.spending.spent;
      if (decided.decision === 'continue') continue;
      days.push(day);
      if (decided.decision === 'promote') {
        promoted += 1;
        if (day <= OPERATION_DAYS) inOperation += 1;
      }
      break;
    }
  }
  const middle = median(days);
  return {
    promoted: rate(promoted, TRIALS),
    undecided: (TRIALS - days.length) / TRIALS,
    medianDays: middle,
    medianChallenges: middle === null ? null : Math.round(middle * A_DAY * VALIDATORS),
    promotedWithinDays: { days: OPERATION_DAYS, share: inOperation / TRIALS },
  };
}

const needed = [];
const cells = [];
for (const discordance of DISCORDANCES) {
  for (const correlation of CORRELATIONS) {
    const name = `${discordance}/${correlation}`;
    const two = sampler(law(0.02, discordance, correlation));
    // A group's mean difference: the variance of a challenge's, times what correlation leaves of averaging over M.
    const deviation = Math.sqrt(((discordance - 0.02 ** 2) * (1 + (M - 1) * correlation)) / M);
    const search = (quarter, label) => {
      const planned = groupsFor(candidateAlpha(config.alpha, quarter), 0.02, deviation);
      for (let groups = planned; ; groups = Math.ceil(groups * 1.03)) {
        const { promoted } = fromSet(two, groups, quarter, `${name}/search ${label} ${groups}`);
        // Two standard errors of the simulation above it, so that the number holds in the next one as well.
        if (promoted.share >= POWER + 2 * Math.sqrt((POWER * (1 - POWER)) / TRIALS)) return { planned, groups, power: promoted.share };
      }
    };
    const first = search(FIRST, 'first');
    const sixtieth = search(SIXTIETH, 'sixtieth');
    needed.push({ discordance, correlation, challengesAGroup: M, first, sixtieth });
    for (const difference of DIFFERENCES) {
      const draw = sampler(law(difference, discordance, correlation));
      const cell = {
        difference,
        discordance,
        correlation,
        set: fromSet(draw, first.groups, FIRST, `${name}/${difference}`),
        sixtieth: fromSet(draw, sixtieth.groups, SIXTIETH, `${name}/${difference}/sixtieth`, Math.max(500, TRIALS / 5)).promoted,
        traffic: asTrafficComes(draw, FIRST, `${name}/${difference}`),
      };
      cells.push(cell);
      process.stderr.write(
        `${(difference * 100).toFixed(0).padStart(3)} points, discordance ${discordance}, correlation ${correlation}: set ${(cell.set.promoted.share * 100).toFixed(2)}%, traffic ${(cell.traffic.promoted.share * 100).toFixed(2)}% promoted (${((performance.now() - began) / 1000).toFixed(0)} s)\n`,
      );
    }
  }
}

const duds = cells.filter((c) => c.difference <= 0);
const worst = (of) => Math.max(...duds.map((c) => of(c).upper95));
const weakest = (of) => Math.min(...cells.filter((c) => c.difference === 0.02).map((c) => of(c).share));
const summary = {
  falsePromotionUpper95: { set: worst((c) => c.set.promoted), traffic: worst((c) => c.traffic.promoted), goal: 0.01 },
  powerAtTwoPoints: { set: weakest((c) => c.set.promoted), traffic: weakest((c) => c.traffic.promoted), goal: 0.9 },
  naiveFalsePromotion: Math.max(...duds.map((c) => c.set.naive.share)),
  plainAtLeastFalsePromotion: Math.max(...duds.map((c) => c.set.plainAtLeast.share)),
  groupsNeeded: {
    first: [Math.min(...needed.map((n) => n.first.groups)), Math.max(...needed.map((n) => n.first.groups))],
    sixtieth: [Math.min(...needed.map((n) => n.sixtieth.groups)), Math.max(...needed.map((n) => n.sixtieth.groups))],
  },
};

if (SVG !== null) {
  const percent = (v) => `${Math.round(v * 100)}%`;
  const of = (discordance, pick) =>
    cells.filter((c) => c.discordance === discordance && c.correlation === 0.2).map((c) => [c.difference * 100, pick(c)]);
  const byGroups = DISCORDANCES.map((discordance) => {
    const draw = sampler(law(0.02, discordance, 0.2));
    const points = [250, 500, 750, 1000, 1500, 2000, 2500, 3000, 4000, 5000, 6000].map((groups) => [
      groups,
      fromSet(draw, groups, FIRST, `curve/${discordance}/${groups}`, Math.max(500, TRIALS / 5)).promoted.share,
    ]);
    return { name: `discordance ${percent(discordance)}`, points };
  });
  writeFileSync(
    path.resolve(root, SVG),
    svg([
      {
        title: 'Promoted, by true difference (correlation 0.2)',
        x: { label: 'true difference, points of accuracy', min: -2, max: 4, ticks: [-2, -1, 0, 1, 2, 3, 4] },
        y: { label: 'share promoted', min: 0, max: 1, format: percent },
        series: [
          ...DISCORDANCES.map((d) => ({ name: `verdict, discordance ${percent(d)}`, points: of(d, (c) => c.set.promoted.share) })),
          { name: 'as traffic comes, discordance 10%', points: of(0.1, (c) => c.traffic.promoted.share) },
          { name: '"better by more than 1%" on 100 challenges, discordance 10%', points: of(0.1, (c) => c.set.naive.share), dashed: true },
          { name: 'plain >= on the whole set, discordance 10%', points: of(0.1, (c) => c.set.plainAtLeast.share), dashed: true },
        ],
      },
      {
        title: 'Power at +2 points, by groups of four challenges (correlation 0.2)',
        x: { label: 'independent groups, both classes together', min: 0, max: 6000, ticks: [0, 1000, 2000, 3000, 4000, 5000, 6000] },
        y: { label: 'share promoted', min: 0, max: 1, format: percent },
        series: byGroups,
      },
    ]),
  );
}
console.log(
  JSON.stringify(
    {
      bench: 'verdicts',
      machine: { cpus: os.availableParallelism(), model: os.cpus()[0]?.model },
      seconds: (performance.now() - began) / 1000,
      trials: TRIALS,
      validators: VALIDATORS,
      challengesADay: A_DAY,
      config,
      summary,
      needed,
      cells,
    },
    null,
    1,
  ),
);
const held =
  summary.falsePromotionUpper95.set <= 0.01 && summary.falsePromotionUpper95.traffic <= 0.01 && summary.powerAtTwoPoints.set >= 0.9;
if (!held && !quick) {
  process.stderr.write('the goals are not reached\n');
  process.exitCode = 1;
}
