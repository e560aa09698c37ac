/**
 * `flywheel report`: what a model's training left to be looked at, as files: pictures, TensorBoard events, curves, and what gives the
 * result again. Reads the catalog, the jobs' folders and the objects; starts nothing.
 */
import { readdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import type { Digest } from '../domain/contracts/common.js';
import { type JobOutput, JobResult, TrainOutput } from '../domain/contracts/jobs.js';
import { BadInputError } from '../domain/errors.js';
import { openCatalogReadOnly } from '../platform/catalog/index.js';
import { ensureDir, isMissing, writeFileAtomic } from '../platform/fsutil.js';
import { FileObjectStore } from '../platform/objects/index.js';
import type { ModelRecord } from '../platform/ports.js';
import type { CommandContext, CommonOptions } from './context.js';

export interface ReportOptions extends CommonOptions {
  out?: string;
}

/** Names of the files by what they are in the job's result. */
const PICTURES = {
  learningCurves: 'learning-curves.png',
  confusion: 'confusion.png',
  reliability: 'reliability.png',
  worst: 'worst-errors.png',
  history: 'history.json',
} as const;

const percent = (share: number): string => `${(share * 100).toFixed(1)}%`;

/** @throws BadInputError when there is no such model, or its training is not in this home (any more) */
export async function reportCommand(context: CommandContext, wanted: string | undefined, options: ReportOptions): Promise<void> {
  const model = await modelOf(context, wanted);
  const training = await trainingOf(context.paths.jobs, model.trained);
  if (training === null)
    throw new BadInputError(
      `The training of ${model.id} is not among the jobs of ${context.paths.root} (a restored home has none: backups leave jobs out). Nothing was written.`,
    );
  const out = options.out ?? path.join(context.paths.root, 'reports', model.id);
  const objects = new FileObjectStore(context.paths.objects);
  const written: string[] = [];
  const write = async (name: string, data: Uint8Array | string): Promise<void> => {
    await ensureDir(path.dirname(path.join(out, name)));
    await writeFileAtomic(path.join(out, name), data);
    written.push(name);
  };
  const { report, reproduce } = training;
  for (const [kind, name] of Object.entries(PICTURES) as [keyof typeof PICTURES, string][])
    if (report) await write(name, await objects.get(report[kind]));
  for (const [number, { member, events }] of (report?.tensorboard ?? []).entries())
    // TensorBoard takes files by this name only, and reads them in its order
    await write(path.join('tensorboard', member, `events.out.tfevents.${String(number).padStart(4, '0')}`), await objects.get(events));
  if (reproduce) await write('config.json', await objects.get(reproduce.config));
  await write('training.json', `${JSON.stringify({ model: model.id, ...training }, null, 2)}\n`);
  await context.print(describe(model.id, training, out, written));
  await context.result({ model: model.id, out, files: written, training });
}

function describe(name: string, training: JobOutput<'train'>, out: string, written: readonly string[]): string {
  const { validate, counts, ensemble, reproduce, report } = training;
  return [
    `${name}: ${percent(validate.accuracy)} of ${validate.n} validation images, MCC ${validate.mcc.toFixed(3)}, Brier ${validate.brier.toFixed(3)}; learned from ${counts.real} photographs and ${counts.synthetic} synthetic images (${counts.leftOut} left out)`,
    ...training.members.map(
      (m) =>
        `  ${m.name} (${m.backbone ?? 'backbone not told'}, ${m.stage}, weight ${m.weight.toFixed(2)}): ${percent(m.validate.accuracy)}, Brier ${m.validate.brier.toFixed(3)}. ${m.note}`,
    ),
    ...(ensemble
      ? [
          `  votes compared: ${ensemble.compared.map((one) => `${one.kind} ${one.weights.map((w) => w.toFixed(2)).join('/')} Brier ${one.metrics.brier.toFixed(4)}`).join('; ')}; taken: ${ensemble.chosen}`,
        ]
      : []),
    ...betterAlone(training),
    ...training.ablation.map((row) => `  ${row.provider}: ${row.reason}`),
    ...(reproduce ? [`  seed ${reproduce.seed}, git ${reproduce.gitRevision ?? 'not known'}, data ${reproduce.data.slice(0, 12)}`] : []),
    ...(report ? [] : ['  no pictures were drawn (`report` was off)']),
    `  written to ${out}: ${written.join(', ')}`,
    ...(report && report.tensorboard.length > 0 ? [`  tensorboard --logdir ${path.join(out, 'tensorboard')}`] : []),
  ].join('\n');
}

/** A member that beats the vote by itself: the others cost inference and harm. */
function betterAlone({ ensemble, members }: JobOutput<'train'>): string[] {
  const of = (kind?: string) => ensemble?.compared.find((one) => one.kind === kind);
  const [taken, single] = [of(ensemble?.chosen), of('single')];
  if (!taken || !single || single.metrics.brier >= taken.metrics.brier) return [];
  const name = members[single.weights.indexOf(1)]?.name ?? 'one member';
  return [`  note: ${name} alone has the lower Brier score on these images; consider another second member`];
}

async function modelOf(context: CommandContext, wanted: string | undefined): Promise<ModelRecord> {
  const catalog = await openCatalogReadOnly(context.paths.catalog);
  try {
    const models = await catalog.models();
    const found = wanted === undefined ? models.at(-1) : await catalog.model(wanted);
    if (found) return found;
    const names = models.map((m) => m.id).slice(-10);
    throw new BadInputError(
      `${wanted === undefined ? 'The catalog holds no model yet.' : `There is no model "${wanted}" in the catalog.`} ${names.length > 0 ? `The newest are ${names.join(', ')}. ` : ''}Nothing was written.`,
    );
  } finally {
    await catalog.close();
  }
}

/** The result of the train job that made a `trained` object; null where none of the folders holds it. */
async function trainingOf(jobs: string, trained: Digest): Promise<JobOutput<'train'> | null> {
  const folders = await readdir(jobs).catch((error: unknown) => {
    if (isMissing(error)) return [];
    throw error;
  });
  for (const folder of folders.sort()) {
    const text = await readFile(path.join(jobs, folder, 'result.json'), 'utf8').catch(() => null);
    // most results are of other jobs: only what names the object is parsed
    if (text === null || !text.includes(trained)) continue;
    const result = JobResult.safeParse(parsed(text));
    if (!result.success || !result.data.ok || result.data.job !== 'train') continue;
    const output = TrainOutput.safeParse(result.data.output);
    if (output.success && output.data.trained === trained) return output.data;
  }
  return null;
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null; // torn: not a result
  }
}
