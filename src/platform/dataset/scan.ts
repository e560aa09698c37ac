/**
 * Which images a data set folder names, with labels. Two forms are understood:
 * - `labels.csv`: `file,label[,split][,group][,source][,source_repo][,source_path][,licence]`, other columns ignored; UTF-8, byte order
 *   mark and CRLF allowed; `file` relative to the folder or to its `images`;
 * - a folder a class, named as a label is: `roadwork/` (also `positive/`, `1/`) and `none/` (also `negative/`, `0/`).
 * Labels: 1, roadwork or positive; 0, none or negative; in any case of letters.
 */
import { promises as fs } from 'node:fs';
import path from 'node:path';
import { parse } from 'csv-parse/sync';
import type { Label } from '../../domain/contracts/common.js';
import { BadInputError } from '../../domain/errors.js';
import { isMissing } from '../fsutil.js';

export interface DatasetRow {
  /** as the data set names it */
  file: string;
  absolutePath: string;
  label: Label;
  /** as given, e.g. `train` or `val`; null when not given */
  split: string | null;
  /** images of one group never straddle pools: the `group` column, else `source_path` before `#`, else the file itself */
  group: string;
  source: string;
  /** of the image, as the table gives it (columns `licence` or `license`); null when it gives none */
  licence: string | null;
}
export interface DatasetProblem {
  file: string;
  reason: string;
}
export interface DatasetScan {
  /** sorted by file */
  rows: DatasetRow[];
  /** rows skipped, in the order of the file */
  problems: DatasetProblem[];
}

const LABELS: Record<string, Label> = { '1': 1, roadwork: 1, positive: 1, '0': 0, none: 0, negative: 0 };
const LABEL_WORDS = '1, roadwork or positive; 0, none or negative';
const IMAGE = /\.(jpe?g|png|webp|gif|tiff?|avif)$/i;
const EXPECTED =
  "Expected a folder with labels.csv (a header 'file,label' and optionally split, group, source; file relative to the folder or to its 'images'), " +
  "or a folder for each class ('roadwork' or 'positive' or '1', and 'none' or 'negative' or '0').";
const KEPT = 'Nothing was imported.';

/** @returns null when the text is no label */
export function parseLabel(text: string): Label | null {
  return LABELS[text.trim().toLowerCase()] ?? null;
}

/**
 * Looks what a folder holds; opens no image.
 * @throws BadInputError for what no row can mend: no such folder, no label column, no image, a class without images
 */
export async function scanDataset(dir: string): Promise<DatasetScan> {
  const root = path.resolve(dir);
  let entries;
  try {
    entries = await fs.readdir(root, { withFileTypes: true });
  } catch (error) {
    if (isMissing(error)) throw new BadInputError(`${root} is not a folder. ${EXPECTED} ${KEPT}`);
    throw error;
  }
  const csv = entries.find((entry) => entry.name === 'labels.csv');
  const scan = csv
    ? await scanCsv(root)
    : await scanFolders(
        root,
        entries.filter((entry) => entry.isDirectory()).map((entry) => entry.name),
        entries.length,
      );
  scan.rows.sort((a, b) => (a.file < b.file ? -1 : a.file > b.file ? 1 : 0));
  requireBothClasses(scan, root);
  return scan;
}

function requireBothClasses(scan: DatasetScan, root: string): void {
  const count = (label: Label): number => scan.rows.filter((row) => row.label === label).length;
  const [none, roadwork] = [count(0), count(1)];
  const skipped = scan.problems.length ? ` Skipped: ${describeProblems(scan.problems)}` : '';
  if (none + roadwork === 0) throw new BadInputError(`No image was found in ${root}. ${EXPECTED}${skipped} ${KEPT}`);
  if (none === 0 || roadwork === 0) {
    throw new BadInputError(
      `Class ${none === 0 ? '0 (no roadwork)' : '1 (roadwork)'} is empty in ${root}: found ${roadwork} images of roadwork and ${none} without. Expected images of both.${skipped} ${KEPT}`,
    );
  }
}

/** The first few problems in one line. */
export function describeProblems(problems: readonly DatasetProblem[]): string {
  const shown = problems.slice(0, 5).map((problem) => `${problem.file}: ${problem.reason}`);
  return `${shown.join('; ')}${problems.length > shown.length ? `; and ${problems.length - shown.length} more` : ''}.`;
}

async function scanCsv(root: string): Promise<DatasetScan> {
  const file = path.join(root, 'labels.csv');
  const bytes = await fs.readFile(file);
  let records: string[][];
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    records = parse(text, { bom: true, relax_column_count: true, skip_empty_lines: true, trim: true });
  } catch (error) {
    throw new BadInputError(`${file} can't be read as comma-separated UTF-8 text: ${(error as Error).message}. ${EXPECTED} ${KEPT}`);
  }
  const header = (records.shift() ?? []).map((name) => name.toLowerCase());
  for (const wanted of ['file', 'label']) {
    if (!header.includes(wanted)) {
      throw new BadInputError(`${file} has no column '${wanted}'; its columns are: ${header.join(', ') || '(none)'}. ${EXPECTED} ${KEPT}`);
    }
  }
  const rows: DatasetRow[] = [];
  const problems: DatasetProblem[] = [];
  let line = 1;
  for (const record of records) {
    line++;
    const cell = (name: string): string => {
      const at = header.indexOf(name);
      return at < 0 ? '' : (record[at] ?? '');
    };
    const name = cell('file');
    const skip = (reason: string): void => void problems.push({ file: name || `row ${line}`, reason });
    if (name === '') {
      skip('no file is named');
      continue;
    }
    const label = parseLabel(cell('label'));
    if (label === null) {
      skip(`label '${cell('label')}' is none of ${LABEL_WORDS}`);
      continue;
    }
    const normal = safeRelative(name);
    if (normal === null) {
      skip('the path leads out of the data set folder, so it was not opened');
      continue;
    }
    const absolutePath = await firstFile([path.join(root, normal), path.join(root, 'images', normal)]);
    if (absolutePath === null) {
      skip('no such file, neither in the folder nor in its images');
      continue;
    }
    rows.push({
      file: normal,
      absolutePath,
      label,
      split: cell('split') || null,
      group: cell('group') || cell('source_path').split('#')[0] || withoutEnding(normal),
      source: cell('source') || cell('source_repo') || path.basename(root),
      licence: cell('licence') || cell('license') || null,
    });
  }
  return { rows, problems };
}

async function scanFolders(root: string, folders: readonly string[], entries: number): Promise<DatasetScan> {
  const found = folders.filter((name) => !name.startsWith('.'));
  const classes = found.filter((name) => parseLabel(name) !== null);
  const others = found.filter((name) => parseLabel(name) === null);
  if (classes.length === 0 || others.length > 0) {
    const what =
      entries === 0
        ? 'it is empty'
        : found.length === 0
          ? `it has ${entries} files and no folders`
          : `its folders are ${found.slice(0, 10).join(', ')}`;
    throw new BadInputError(`${root} has no labels.csv, and ${what}. ${EXPECTED} ${KEPT}`);
  }
  const rows: DatasetRow[] = [];
  const problems: DatasetProblem[] = [];
  for (const name of classes.sort()) {
    for (const file of await filesBelow(root, name)) {
      if (!IMAGE.test(file)) {
        problems.push({ file, reason: 'not an image by its ending (jpg, png, webp, gif, tif, avif)' });
        continue;
      }
      rows.push({
        file,
        absolutePath: path.join(root, file),
        label: parseLabel(name)!,
        split: null,
        group: withoutEnding(file),
        source: path.basename(root),
        licence: null,
      });
    }
  }
  return { rows, problems };
}

/** Relative paths with `/`, sorted; hidden files are left out. */
async function filesBelow(root: string, folder: string): Promise<string[]> {
  const files: string[] = [];
  for (const entry of await fs.readdir(path.join(root, folder), { withFileTypes: true })) {
    if (entry.name.startsWith('.')) continue;
    const below = `${folder}/${entry.name}`;
    const stat = entry.isSymbolicLink() ? await fs.stat(path.join(root, below)).catch(() => null) : entry;
    if (stat === null || stat.isFile()) files.push(below);
    // A link to a folder may lead in a circle: only real folders are entered.
    else if (entry.isDirectory()) files.push(...(await filesBelow(root, below)));
  }
  return files.sort();
}

/** Path below the folder with `/`; null for one that is absolute or climbs out. */
function safeRelative(name: string): string | null {
  const unified = name.replaceAll('\\', '/');
  if (unified.includes('\0') || unified.startsWith('/') || /^[A-Za-z]:/.test(unified)) return null;
  const normal = path.posix.normalize(unified);
  return normal === '..' || normal.startsWith('../') ? null : normal;
}

async function firstFile(candidates: readonly string[]): Promise<string | null> {
  for (const candidate of candidates) {
    const stat = await fs.stat(candidate).catch((error: unknown) => {
      if (isMissing(error)) return null;
      throw error;
    });
    if (stat?.isFile()) return candidate;
  }
  return null;
}

function withoutEnding(file: string): string {
  return file.replace(/\.[^./]+$/, '');
}
