/**
 * Jobs that an operator asks for: `flywheel import-check`, `flywheel evaluate`, `flywheel embed`. They run on this machine in the jobs'
 * own environment, need neither Temporal nor a running flywheel, and write nothing but objects and the folder they are given.
 */
import { createHash, randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { copyFile, mkdir } from 'node:fs/promises';
import path from 'node:path';
import { memberFiles } from '../domain/contracts/bundle.js';
import type { Digest, ImageRow } from '../domain/contracts/common.js';
import { ImportFinding, type JobInput, type JobKind, type JobOutput } from '../domain/contracts/jobs.js';
import { BadInputError } from '../domain/errors.js';
import { openCatalogReadOnly } from '../platform/catalog/index.js';
import { readImages, scanDataset } from '../platform/dataset/index.js';
import { writeFileAtomic } from '../platform/fsutil.js';
import { runJobHere } from '../platform/gpu/here.js';
import { loadBundle } from '../platform/inference/bundle.js';
import { FileObjectStore } from '../platform/objects/index.js';
import { ensurePython } from '../platform/python/env.js';
import type { CommandContext, CommonOptions } from './context.js';
import { InterruptedError } from './exit.js';
import { askBundle, findBundle } from './simulate/answers.js';
import { fromFolder, fromPool, rowOf } from './simulate/challenges.js';

export interface ImportCheckOptions extends CommonOptions {
  minSide?: number;
}
export interface EvaluateOptions extends CommonOptions {
  model?: string;
  bundle?: string;
  data?: string;
  out?: string;
}
export interface EmbedOptions extends CommonOptions {
  data: string;
  out: string;
  member?: string;
  views?: number;
}

/** Findings that people are shown; --json has all. */
const SHOWN = 20;
const percent = (share: number): string => `${(share * 100).toFixed(1)}%`;

/** Runs `work` so that Ctrl-C ends its job; what was computed stays in the cache. */
async function interruptibly<T>(context: CommandContext, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const abort = new AbortController();
  const on = (signal: 'SIGINT' | 'SIGTERM') => () => abort.abort(new InterruptedError(signal));
  const handlers = { SIGINT: on('SIGINT'), SIGTERM: on('SIGTERM') };
  process.once('SIGINT', handlers.SIGINT).once('SIGTERM', handlers.SIGTERM);
  try {
    return await work(abort.signal);
  } finally {
    process.off('SIGINT', handlers.SIGINT).off('SIGTERM', handlers.SIGTERM);
    context.progress.close();
  }
}

/** One job with its progress. `name` null: never adopted, since what it looks at may have changed. */
async function job<K extends JobKind>(
  context: CommandContext,
  kind: K,
  input: JobInput<K>,
  signal: AbortSignal,
  fresh = false,
): Promise<JobOutput<K>> {
  const { paths, config, progress } = context;
  const stage = progress.stage(kind);
  try {
    const { python } = await ensurePython((message) => stage.update({ message: String(message) }));
    const mark = fresh ? randomBytes(8).toString('hex') : createHash('sha256').update(JSON.stringify(input)).digest('hex').slice(0, 16);
    const output = await runJobHere({
      home: paths,
      python,
      kind,
      name: `cli-${kind}-${mark}`,
      input,
      threads: Math.max(1, config.gpu.threads),
      nice: config.gpu.nice,
      maxSeconds: config.gpu.maxJobSeconds,
      onProgress: ({ done, total }) => stage.update({ done, total }),
      signal,
    });
    stage.done();
    return output;
  } catch (error) {
    stage.fail('failed');
    throw error;
  }
}

/** `flywheel import-check DIR` @throws BadInputError when the folder holds no image */
export async function importCheckCommand(context: CommandContext, dir: string, options: ImportCheckOptions): Promise<void> {
  const objects = new FileObjectStore(context.paths.objects);
  // What the table of labels says of files that are not there, or have no label, no decoder can tell.
  const table = existsSync(path.join(dir, 'labels.csv')) ? await scanDataset(dir) : null;
  const report = await interruptibly(context, (signal) =>
    job(
      context,
      'import-check',
      { manifest: null, folder: dir, maxBytes: 12_582_912, maxPixels: 50_000_000, minSide: options.minSide ?? 64, nearDuplicates: 4 },
      signal,
      true,
    ),
  );
  const findings = await objects.getJsonl(report.findings, (row) => ImportFinding.parse(row));
  const problems = table?.problems ?? [];
  const count = (of: Record<string, number>): string =>
    Object.entries(of)
      .map(([name, n]) => `${n} ${name}`)
      .join(', ');
  const shown = [
    ...problems.map((p) => `  row skipped  ${p.file}: ${p.reason}`),
    ...findings.map((f) => `  ${f.unusable ? 'unusable   ' : 'note       '}  ${f.image}: ${f.kind}, ${f.message}`),
  ];
  await context.print(
    [
      `${report.usable} of ${report.checked} images of ${dir} can be used (${count(report.byFormat)}). Nothing was changed.`,
      ...(table ? [`labels.csv names ${table.rows.length} usable rows; ${problems.length} would be skipped.`] : []),
      ...(findings.length > 0 ? [`Found: ${count(report.byKind)}.`] : []),
      ...shown.slice(0, SHOWN),
      ...(shown.length > SHOWN ? [`  and ${shown.length - SHOWN} more: see --json`] : []),
    ].join('\n'),
  );
  await context.result({ ...report, findings, rowsSkipped: problems });
}

/** `flywheel evaluate` @throws BadInputError when there is no such model or nothing to judge on */
export async function evaluateCommand(context: CommandContext, options: EvaluateOptions): Promise<void> {
  if (options.model !== undefined && options.bundle !== undefined)
    throw new BadInputError('Give one of --model and --bundle, not both. Nothing was evaluated.');
  const objects = new FileObjectStore(context.paths.objects);
  await interruptibly(context, async (signal) => {
    const named = options.bundle ?? options.model ?? (await championOf(context));
    const found = await findBundle(context, objects, named, options.bundle !== undefined);
    const { images, from } =
      options.data === undefined ? await fromPool(context, 'test') : await fromFolder(context, objects, options.data);
    const rows = sorted(images);
    const bundle = found.digest ?? (await intoStore(objects, found.dir));
    const report = await job(
      context,
      'evaluate',
      { manifest: await objects.putJsonl(rows), bundle, trained: null, resamples: 1000, seed: context.config.seed },
      signal,
    );
    // The same images through the code that serves: an answer that differs is a fault of one of the two.
    const production = await askBundle(context, objects, rows, { ...found, signal });
    const said = new Map(
      (await objects.getJsonl(report.predictions, (row) => row as { digest: string; prediction: number })).map((r) => [
        r.digest,
        r.prediction,
      ]),
    );
    const differences = rows.flatMap((row, i) => {
      const [one, two] = [said.get(row.digest), production.predictions[i]];
      return one === undefined || two === undefined || two < 0 ? [] : [Math.abs(one - two)];
    });
    const parity = { n: differences.length, maxAbsDp: Math.max(0, ...differences), decisions: decided(rows, said, production.predictions) };
    const result = { model: found.name, bundle, from, ...report, production: parity };
    if (options.out !== undefined) {
      await mkdir(options.out, { recursive: true });
      await copyFile(objects.path(report.predictions), path.join(options.out, 'predictions.jsonl'));
      await writeFileAtomic(path.join(options.out, 'report.json'), `${JSON.stringify(result, null, 2)}\n`);
    }
    await context.print(
      [
        `${found.name} on ${report.n} images of ${from}:`,
        ...report.figures.map(
          (f) =>
            `  ${f.of.padEnd(40).slice(0, 40)} ${percent(f.accuracy).padStart(6)} (${percent(f.ci95[0])} to ${percent(f.ci95[1])}, ${f.groups} groups)  MCC ${f.mcc.toFixed(3)}  Brier ${f.brier.toFixed(3)}  n ${f.n}`,
        ),
        `  expected reward ${report.predictedReward === null ? 'not known: a class is missing' : report.predictedReward.toFixed(3)}`,
        ...report.failed.slice(0, SHOWN).map((f) => `  not answered: ${f.digest.slice(0, 12)}: ${f.reason}`),
        `  the miner's own code: largest difference of probability ${parity.maxAbsDp.toExponential(1)} on ${parity.n} images, ${parity.decisions} decided otherwise`,
        ...(options.out === undefined ? [] : [`  written to ${options.out}`]),
      ].join('\n'),
    );
    await context.result(result);
  });
}

/** `flywheel embed` @throws BadInputError for an unknown member or a folder without usable images */
export async function embedCommand(context: CommandContext, options: EmbedOptions): Promise<void> {
  const { members } = context.config.training;
  const member = options.member === undefined ? members[0] : members.find((m) => m.name === options.member);
  if (!member)
    throw new BadInputError(
      `No member "${options.member}" in this configuration; it has ${members.map((m) => m.name).join(', ')}. Nothing was computed.`,
    );
  const objects = new FileObjectStore(context.paths.objects);
  await interruptibly(context, async (signal) => {
    const stage = context.progress.stage('read');
    const scan = await scanDataset(options.data);
    const read = await readImages(scan.rows, objects, { onProgress: (done, total) => stage.update({ done, total }) });
    stage.done(`${read.images.length} images`);
    // of no split: nothing is learned here
    const rows = sorted(read.images.map((image) => rowOf(image, 'traffic')));
    const out = await job(
      context,
      'embed',
      { manifest: await objects.putJsonl(rows), member, views: options.views ?? 0, unit: true },
      signal,
    );
    await mkdir(options.out, { recursive: true });
    const files = { embeddings: path.join(options.out, 'embeddings.safetensors'), index: path.join(options.out, 'index.jsonl') };
    await writeFileAtomic(files.embeddings, await objects.get(out.embeddings));
    const names = new Map(read.images.map((image) => [image.digest, image.file]));
    const index = await objects.getJsonl(out.index, (row) => row as { digest: Digest });
    await writeFileAtomic(files.index, index.map(({ digest }) => `${JSON.stringify({ digest, file: names.get(digest) })}\n`).join(''));
    await context.print(
      `${out.count} images, ${out.dimensions} features each by ${member.name} (${out.space}): ${files.embeddings}, rows as in ${files.index}.`,
    );
    await context.result({ ...out, member: member.name, files: Object.values(files), problems: [...scan.problems, ...read.problems] });
  });
}

async function championOf(context: CommandContext): Promise<string> {
  if (existsSync(context.paths.catalog)) {
    const catalog = await openCatalogReadOnly(context.paths.catalog);
    try {
      const champion = (await catalog.models()).find((model) => model.status === 'champion');
      if (champion) return champion.id;
    } finally {
      await catalog.close();
    }
  }
  throw new BadInputError(
    `${context.paths.root} has no champion yet. Name a model (--model) or a bundle (--bundle). Nothing was evaluated.`,
  );
}

/** The files of a bundle folder as objects, verified. @returns the digest of its bundle.json */
async function intoStore(objects: FileObjectStore, dir: string): Promise<Digest> {
  const bundle = await loadBundle(dir);
  for (const member of bundle.members) for (const file of memberFiles(member)) await objects.putFile(path.join(dir, file.path));
  return objects.putFile(path.join(dir, 'bundle.json'));
}

function decided(rows: readonly ImageRow[], one: ReadonlyMap<string, number>, two: readonly number[]): number {
  return rows.filter((row, i) => {
    const [p, q] = [one.get(row.digest), two[i]];
    return p !== undefined && q !== undefined && q >= 0 && p > 0.5 !== q > 0.5;
  }).length;
}

function sorted(images: readonly ImageRow[]): ImageRow[] {
  return [...images].sort((a, b) => (a.digest < b.digest ? -1 : a.digest > b.digest ? 1 : 0));
}
