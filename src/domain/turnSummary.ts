/**
 * The result of a turn: the object that `--json` prints (stable: fields are added, never renamed), and the plain summary
 * for people.
 */
import { z } from 'zod';
import { GateResult, Metrics } from './contracts/common.js';
import type { Figure } from './figures.js';
import { describeGates } from './gates.js';

/**
 * Metrics of one model through the production inference path. The top level repeats `heldOut` (the held-out photographs),
 * or `challenges` where there is no held-out figure; `challenges` is null where the gate did not run.
 */
export const ModelFigures = z.object({
  id: z.string(),
  metrics: Metrics.extend({ heldOut: Metrics.nullable(), challenges: Metrics.nullable() }),
});
export type ModelFigures = z.infer<typeof ModelFigures>;

const count = z.number().int().min(0);

/** One figure with its interval by group, see `figures`. */
const FigureRow = z.object({
  of: z.string(),
  accuracy: z.number(),
  ci95: z.tuple([z.number(), z.number()]),
  n: z.number(),
  groups: z.number(),
  positives: z.number(),
});

export const TurnResult = z.object({
  turn: z.string(),
  dataset: z
    .object({
      /** images by pool */
      train: count,
      /** images of the held-out split, on which nothing is tuned: the pool `test` */
      val: count,
      calibrate: count,
      validate: count,
      test: count,
      traffic: count,
      /** exact and perceptual duplicates left out */
      duplicates: count,
      /** rows of the data set that could not be used */
      skipped: count,
    })
    .loose(),
  hardCases: count,
  /** images made */
  synthetic: count,
  labelled: z.object({ consensus: count, rejected: count, toVerify: count }),
  champion: ModelFigures.nullable(),
  candidate: ModelFigures.nullable(),
  verdict: z.object({
    decision: z.enum(['promote', 'keep', 'continue']),
    reason: z.string(),
    predictedReward: z.object({ champion: z.number(), candidate: z.number(), ci95: z.tuple([z.number(), z.number()]) }).nullable(),
  }),
  promoted: z.boolean(),
  /** the candidate's gates; `passed` null: not measured. Empty without a candidate */
  gates: z.array(GateResult).optional(),
  /** accuracy overall and within each source, intervals by group */
  figures: z
    .object({
      /** of the two models on the held-out images */
      champion: z.array(FigureRow),
      candidate: z.array(FigureRow),
      /** out of fold, on clips that the voters never saw (other clips of the same source they did) */
      unseen: z.array(FigureRow),
      /** leave one city out: heads trained as the two models were, but for each place (clip or camera) without it */
      leftOut: z.object({ champion: z.array(FigureRow), candidate: z.array(FigureRow), places: count }).optional(),
    })
    .optional(),
  /** wall-clock seconds by stage */
  seconds: z.record(z.string(), z.number().min(0)),
  miner: z.object({ url: z.string().nullable(), hotkey: z.string() }),
  temporal: z.object({ address: z.string(), ui: z.string().nullable() }),
});
export type TurnResult = z.infer<typeof TurnResult>;

/** What the summary tells beyond the result; each part may be missing. */
export interface SummaryExtra {
  from?: string;
  problems?: readonly { file: string; reason: string }[];
  warnings?: readonly string[];
  hardest?: readonly { why: string }[];
  fromTruth?: number;
  fromTraffic?: number;
  byProvider?: Record<string, number>;
  /** rows of the training set by kind of truth */
  byTruth?: Record<string, number>;
  ablation?: readonly { provider: string; kept: boolean; reason: string }[];
  members?: readonly { name: string; stage: string; weight: number }[];
  /** phi correlation of the two members' errors: 0 is what an ensemble hopes for */
  errorCorrelation?: number;
  /** the trial ran on accelerated traffic of the built-in validator */
  trialSimulated?: boolean;
}

const COLUMNS = 100;
const NAME_COLUMN = 12;
const INDENT = NAME_COLUMN + 2;
/** Stages shorter than this are left out of the list, s. */
const SHORTEST_SHOWN = 0.05;
const LONGEST_ID = 32;

const percent = (share: number): string => `${(share * 100).toFixed(1)}%`;

/** The plain summary at the end of a turn, at most 100 columns, no colours. */
export function renderSummary(result: TurnResult, extra: SummaryExtra = {}): string {
  const lines: string[] = [];
  const row = (name: string, text: string): void => {
    const wrapped = wrap(text, COLUMNS - INDENT);
    lines.push(`  ${name.padEnd(NAME_COLUMN)}${wrapped[0] ?? ''}`.trimEnd(), ...wrapped.slice(1).map((l) => `${' '.repeat(INDENT)}${l}`));
  };
  lines.push(`Turn ${result.turn}`, '');
  const d = result.dataset;
  row(
    'data',
    `${d.train} train, ${d.calibrate} calibrate, ${d.validate} validate, ${d.traffic} traffic, ${d.val} held out${extra.from ? `, from ${extra.from}` : ''}`,
  );
  if (d.duplicates > 0 || d.skipped > 0) row('', `${d.duplicates} duplicates left out, ${d.skipped} rows skipped`);
  for (const p of extra.problems ?? []) row('', `skipped ${p.file}: ${p.reason}`);
  for (const warning of extra.warnings ?? []) row('', `note: ${warning}`);
  row(
    'hard cases',
    `${result.hardCases}${extra.fromTruth !== undefined ? `: ${extra.fromTruth} wrong where truth is known, ${extra.fromTraffic ?? 0} unsure or unstable in traffic` : ''}${
      extra.hardest?.length
        ? `; hardest: ${extra.hardest
            .map((h) => h.why)
            .slice(0, 3)
            .join(', ')}`
        : ''
    }`,
  );
  row(
    'made',
    `${result.synthetic} images${
      extra.byProvider
        ? ` (${Object.entries(extra.byProvider)
            .map(([k, v]) => `${v} ${k}`)
            .join(', ')})`
        : ''
    }`,
  );
  row(
    'labelled',
    `${result.labelled.consensus} by consensus, ${result.labelled.rejected} rejected, ${result.labelled.toVerify} on the review list`,
  );
  if (extra.members?.length) {
    row(
      'trained',
      `${extra.members.map((m) => `${m.name} (${m.stage}, weight ${m.weight.toFixed(2)})`).join(' + ')}${extra.errorCorrelation !== undefined ? `; error correlation ${extra.errorCorrelation.toFixed(2)}` : ''}`,
    );
  }
  if (extra.byTruth)
    row(
      'learned',
      `from ${Object.entries(extra.byTruth)
        .map(([kind, n]) => `${n} images with labels of kind ${kind}`)
        .join(', ')}`,
    );
  for (const a of extra.ablation ?? []) row('', `${a.provider}: ${a.kept ? 'kept' : 'left out of this training'}: ${a.reason}`);
  lines.push('');
  const table: string[][] = [['', 'model', 'held out', 'MCC', 'Brier', 'n', 'challenges', 'MCC', 'n']];
  for (const [name, figures] of [
    ['champion', result.champion],
    ['candidate', result.candidate],
  ] as const) {
    if (!figures) continue;
    const { heldOut, challenges } = figures.metrics;
    table.push([
      name,
      figures.id.length > LONGEST_ID ? `${figures.id.slice(0, LONGEST_ID - 3)}...` : figures.id,
      heldOut ? percent(heldOut.accuracy) : '-',
      heldOut ? heldOut.mcc.toFixed(3) : '-',
      heldOut ? heldOut.brier.toFixed(3) : '-',
      heldOut ? String(heldOut.n) : '-',
      challenges ? percent(challenges.accuracy) : '-',
      challenges ? challenges.mcc.toFixed(3) : '-',
      challenges ? String(challenges.n) : '-',
    ]);
  }
  const widths = table[0]?.map((_, i) => Math.max(...table.map((r) => r[i]?.length ?? 0))) ?? [];
  for (const cells of table)
    lines.push(`  ${cells.map((c, i) => (i < 2 ? c.padEnd(widths[i] ?? 0) : c.padStart(widths[i] ?? 0))).join('  ')}`.trimEnd());
  lines.push('');
  const told = (name: string, list: readonly Figure[] | undefined): void => {
    if (!list?.length) return;
    row(
      name,
      list.map((f) => `${f.of} ${percent(f.accuracy)} (${percent(f.ci95[0])} to ${percent(f.ci95[1])}, ${f.groups} groups)`).join('; '),
    );
  };
  const under = (heading: string, parts: readonly [string, readonly Figure[] | undefined][]): void => {
    if (!parts.some(([, list]) => list?.length)) return;
    lines.push(...wrap(heading, COLUMNS - 2).map((l) => `  ${l}`));
    for (const [name, list] of parts) told(name, list);
  };
  const { figures } = result;
  under('Accuracy on held-out photographs (95% intervals by clip):', [
    ['champion', figures?.champion],
    ['candidate', figures?.candidate],
  ]);
  under('On clips never seen, out of fold; other clips of the same source were learned from:', [['voters', figures?.unseen]]);
  under(
    `Leave one city out: each of ${figures?.leftOut?.places ?? 0} cities and cameras was left out of the same training in turn, and judged:`,
    [
      ['champion', figures?.leftOut?.champion],
      ['candidate', figures?.leftOut?.candidate],
    ],
  );
  if (figures?.champion.length) lines.push('');
  if (result.gates?.length) row('gates', describeGates(result.gates));
  const { verdict } = result;
  row('verdict', `${verdict.decision.toUpperCase()}${extra.trialSimulated ? ' (trial on simulated traffic)' : ''}: ${verdict.reason}`);
  // A verdict that was reached on figures names them itself.
  if (verdict.predictedReward && !verdict.reason.includes('predicted reward')) {
    const { champion, candidate, ci95 } = verdict.predictedReward;
    row(
      'reward',
      `predicted ${champion.toFixed(3)} for the champion, ${candidate.toFixed(3)} for the candidate; difference ${(candidate - champion).toFixed(3)} (95% interval ${ci95[0].toFixed(3)} to ${ci95[1].toFixed(3)})`,
    );
  }
  row(
    'promoted',
    result.promoted
      ? `yes: the miner serves ${result.candidate?.id ?? ''} now`
      : `no: the miner serves ${result.champion?.id ?? 'nothing'}`,
  );
  const seconds = Object.entries(result.seconds).filter(([, s]) => s >= SHORTEST_SHOWN);
  const whole = Object.values(result.seconds).reduce((sum, s) => sum + s, 0);
  row(
    'time',
    `${whole.toFixed(0)} s${seconds.length > 0 ? `: ${seconds.map(([stage, s]) => `${stage} ${s.toFixed(1)}`).join(', ')}` : ''}`,
  );
  if (result.miner.url !== null) row('miner', `${result.miner.url}, hotkey ${result.miner.hotkey}`);
  row('Temporal', result.temporal.ui ?? result.temporal.address);
  return lines.join('\n');
}

/** Words on lines of at most `width`; a word longer than that is cut. */
function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = '';
  const words = text
    .split(/\s+/)
    .flatMap((word) => (word.length <= width ? [word] : (word.match(new RegExp(`.{1,${width}}`, 'gu')) ?? [])));
  for (const word of words) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line);
      line = word;
    } else line = line === '' ? word : `${line} ${word}`;
  }
  return [...lines, line];
}
