/**
 * `flywheel review`: the images that a person is asked about. Lists them, writes them out with a table to fill in, and takes
 * the answers back. Reading and writing out need no running flywheel; answers go to the worker, the one writer of the catalog.
 */
import { copyFile, mkdir, readFile, writeFile } from 'node:fs/promises';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { parse } from 'csv-parse/sync';
import sharp from 'sharp';
import type { ReviewAnswer } from '../activities/reviews.js';
import { Digest } from '../domain/contracts/common.js';
import { BadInputError } from '../domain/errors.js';
import { openCatalogReadOnly } from '../platform/catalog/index.js';
import { describeProblems, parseLabel, type DatasetProblem } from '../platform/dataset/index.js';
import { FileObjectStore } from '../platform/objects/index.js';
import type { ReviewItem } from '../platform/ports.js';
import { TASK_QUEUE } from '../workflows/types.js';
import type { answerReviews } from '../workflows/index.js';
import type { CommandContext, CommonOptions } from './context.js';
import { link } from './turnClient.js';
import { withClient, workflowFailure } from './workflowCommands.js';

export interface ReviewOptions extends CommonOptions {
  turn?: string;
  /** folder to write images and table to */
  export?: string;
  /** table with a person's answers */
  answers?: string;
  goOn?: boolean;
}

/** Images listed for people; --json and --export have all. */
const SHOWN = 15;
/** The table that is written out and taken back. */
const TABLE = 'answers.csv';
const EXPECTED = `Expected a header 'digest,label' and a row an image: label 1 (roadwork) or 0 (none), empty where you can't tell. \`flywheel review --export DIR\` writes such a table.`;

/** @throws BadInputError; ServiceUnavailableError for answers while no flywheel runs */
export async function reviewCommand(context: CommandContext, options: ReviewOptions): Promise<void> {
  if (options.answers !== undefined && options.export !== undefined)
    throw new BadInputError('Give either --export or --answers. Nothing was done.');
  if (options.goOn === true && options.answers === undefined)
    throw new BadInputError('--go-on belongs to --answers: it lets the turn that waits for them go on. Nothing was done.');
  if (options.answers !== undefined) return takeAnswers(context, options.answers, options.goOn === true);
  const items = await openReviews(context, options.turn);
  const objects = new FileObjectStore(context.paths.objects);
  if (options.export !== undefined) return writeOutReviews(context, items, objects, options.export);
  await context.print(render(items, objects));
  await context.result({ open: items.length, items: items.map((item) => ({ ...item, image: objects.path(item.digest) })) });
}

async function openReviews(context: CommandContext, turn: string | undefined): Promise<ReviewItem[]> {
  const catalog = await openCatalogReadOnly(context.paths.catalog);
  try {
    return await catalog.reviews({ open: true, ...(turn === undefined ? {} : { turn }) });
  } finally {
    await catalog.close();
  }
}

const proposal = (item: ReviewItem): string => (item.proposed === null ? '-' : item.proposed === 1 ? 'roadwork' : 'none');
const votes = (item: ReviewItem): string =>
  Object.entries(item.votes)
    .map(([member, p]) => `${member} ${p.toFixed(2)}`)
    .join(', ');

function render(items: readonly ReviewItem[], objects: FileObjectStore): string {
  if (items.length === 0) return 'No image waits for a person.';
  const byTurn = new Map<string, number>();
  for (const item of items) byTurn.set(item.turn, (byTurn.get(item.turn) ?? 0) + 1);
  const lines = [
    `${items.length} images wait for a person (${[...byTurn].map(([turn, n]) => `${n} of ${turn}`).join(', ')}):`,
    ...items
      .slice(0, SHOWN)
      .map(
        (item) =>
          `  ${item.digest.slice(0, 12)}  ${item.reason.padEnd(12)}  proposed ${proposal(item).padEnd(8)}  ${votes(item)}  ${objects.path(item.digest)}`,
      ),
  ];
  if (items.length > SHOWN) lines.push(`  and ${items.length - SHOWN} more (--json lists all)`);
  lines.push(
    `To answer: flywheel review --export DIR writes the images and DIR/${TABLE}; fill in its column "label" (1 roadwork, 0 none);`,
    `then flywheel review --answers DIR/${TABLE}`,
  );
  return lines.join('\n');
}

/** Images as files with an ending, and the table to fill in. A table that is there already may hold a person's work: it is kept. */
async function writeOutReviews(
  context: CommandContext,
  items: readonly ReviewItem[],
  objects: FileObjectStore,
  folder: string,
): Promise<void> {
  const table = path.join(folder, TABLE);
  if (existsSync(table))
    throw new BadInputError(`${table} is there already and may hold answers. Nothing was written. Give another folder, or move it away.`);
  await mkdir(path.join(folder, 'images'), { recursive: true });
  const lines = ['digest,label,file,proposed,reason,turn'];
  for (const item of items) {
    const from = objects.path(item.digest);
    const { format } = await sharp(from).metadata();
    const file = path.posix.join('images', `${item.digest.slice(0, 16)}.${format === 'jpeg' ? 'jpg' : format}`);
    await copyFile(from, path.join(folder, file));
    lines.push([item.digest, '', file, item.proposed ?? '', item.reason, item.turn].join(','));
  }
  // Last, so that a table names only images that are there.
  await writeFile(table, `${lines.join('\n')}\n`);
  await context.print(
    items.length === 0
      ? `No image waits for a person; ${table} has no rows.`
      : `${items.length} images are in ${path.join(folder, 'images')}. Fill in the column "label" of ${table} (1 roadwork, 0 none, empty: can't tell), then: flywheel review --answers ${table}`,
  );
  await context.result({ exported: items.length, table });
}

/**
 * Reads a table of answers: rows with an empty label are not answered; rows that cannot be understood are named and skipped.
 * @throws BadInputError when the file is no such table, holds no answer, or says two things of one image
 */
export function parseAnswers(text: string, name: string): { answers: ReviewAnswer[]; unanswered: number; problems: DatasetProblem[] } {
  const refuse = (what: string): never => {
    throw new BadInputError(`${name} ${what} ${EXPECTED} Nothing was taken.`);
  };
  let records: string[][] = [];
  try {
    records = parse(text, { bom: true, relax_column_count: true, skip_empty_lines: true, trim: true });
  } catch (error) {
    refuse(`can't be read as comma-separated text: ${(error as Error).message}.`);
  }
  const header = (records.shift() ?? []).map((cell) => cell.toLowerCase());
  const [digestAt, labelAt] = [header.indexOf('digest'), header.indexOf('label')];
  if (digestAt < 0 || labelAt < 0)
    refuse(`has no column '${digestAt < 0 ? 'digest' : 'label'}'; its columns are: ${header.join(', ') || '(none)'}.`);
  const said = new Map<Digest, ReviewAnswer>();
  const problems: DatasetProblem[] = [];
  let unanswered = 0;
  records.forEach((record, index) => {
    const [digest, word] = [record[digestAt] ?? '', record[labelAt] ?? ''];
    const skip = (reason: string): void => void problems.push({ file: `row ${index + 2}`, reason });
    if (!Digest.safeParse(digest).success) return skip(`'${digest}' is not the digest of an image`);
    if (word === '') return void unanswered++;
    const label = parseLabel(word);
    if (label === null) return skip(`label '${word}' is none of 1, roadwork or positive; 0, none or negative`);
    const other = said.get(digest);
    if (other && other.label !== label) refuse(`says both 0 and 1 of image ${digest}.`);
    said.set(digest, { digest, label });
  });
  if (said.size === 0)
    refuse(
      `holds no answer: ${unanswered} rows have no label${problems.length > 0 ? `, and ${problems.length} can't be understood: ${describeProblems(problems)}` : '.'}`,
    );
  return { answers: [...said.values()].sort((a, b) => (a.digest < b.digest ? -1 : 1)), unanswered, problems };
}

async function takeAnswers(context: CommandContext, file: string, goOn: boolean): Promise<void> {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(await readFile(file));
  } catch (error) {
    throw new BadInputError(`${file} can't be read: ${(error as Error).message}. ${EXPECTED} Nothing was taken.`);
  }
  const { answers, unanswered, problems } = parseAnswers(text, file);
  await withClient(context, async (client, temporal) => {
    const object = await new FileObjectStore(context.paths.objects).putJsonl(answers);
    const workflowId = `answers-${object.slice(0, 16)}-${Date.now()}`;
    try {
      const taken = await client.workflow.execute<typeof answerReviews>('answerReviews', {
        taskQueue: TASK_QUEUE,
        workflowId,
        staticSummary: `${answers.length} answers of a person`,
        args: [{ answers: object, goOn }],
      });
      await context.print(
        [
          `${taken.taken} answers taken as verified labels, ${taken.known} known already; ${unanswered} rows unanswered; ${taken.open} images still wait.`,
          ...(taken.notAsked > 0
            ? [
                `${taken.notAsked} images are on no review list, nothing was learned of them: ${taken.notAskedFirst.map((d) => d.slice(0, 12)).join(', ')}`,
              ]
            : []),
          ...(problems.length > 0 ? [`${problems.length} rows skipped: ${describeProblems(problems)}`] : []),
        ].join('\n'),
      );
      await context.result({ ...taken, unanswered, problems });
    } catch (error) {
      throw workflowFailure(error, 'review', link(temporal, workflowId));
    }
  });
}
