/** Runs the built command as a user does, in a home of its own, and ends what it started. */
import { spawn, type ChildProcess } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { parse } from 'csv-parse/sync';
import { TurnResult } from '../../src/domain/turnSummary.js';

export const root = fileURLToPath(new URL('../../', import.meta.url));
const flywheel = path.join(root, 'bin', 'flywheel.js');

/** A turn small enough for a test, with every stage in it. */
export const SMALL = {
  preset: 'demo',
  render: { scenes: 150 },
  traffic: { challenges: 24 },
  hardCases: { maxFailures: 5, views: 2, hardnessThreshold: 0.2, retrainAbove: 0 },
  synthesis: { perFailure: 5, maxImages: 25 },
  training: { views: 1, folds: 2, fineTune: { mode: 'never' } },
  gate: { challenges: 60, resamples: 400, maxLatencyP99Ms: 60_000 },
  trial: { simulatedChallenges: 60, minShadowAnswers: 1, lookEverySeconds: 3600 },
};

export function temporaryHome(): { home: string; config: string; folder: string; remove: () => void } {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'flywheel-e2e-'));
  const config = path.join(folder, 'config.json');
  writeFileSync(config, JSON.stringify(SMALL));
  return { home: path.join(folder, 'home'), config, folder, remove: () => rmSync(folder, { recursive: true, force: true }) };
}

export interface Ran {
  code: number | null;
  out: string;
  err: string;
}

export interface Running {
  child: ChildProcess;
  ended: Promise<Ran>;
  err: () => string;
}

export function start(args: string[], env: NodeJS.ProcessEnv = {}): Running {
  const child = spawn(process.execPath, [flywheel, ...args], {
    cwd: os.tmpdir(),
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let out = '';
  let err = '';
  child.stdout?.on('data', (d: Buffer) => (out += d.toString()));
  child.stderr?.on('data', (d: Buffer) => (err += d.toString()));
  const ended = new Promise<Ran>((resolve) => child.once('close', (code) => resolve({ code, out, err })));
  return { child, ended, err: () => err };
}

export const run = (args: string[], env?: NodeJS.ProcessEnv): Promise<Ran> => start(args, env).ended;

/** The object on the last line of standard output. */
export function resultOf(ran: Ran): TurnResult {
  const line = ran.out.trimEnd().split('\n').at(-1) ?? '';
  return TurnResult.parse(JSON.parse(line));
}

/**
 * A small part of the photographs, every class and split in it, or null where there are none on this machine
 * (FLYWHEEL_TEST_DATA, default ../shared/data/streets): then rendered scenes serve.
 */
export function photographs(into: string, take = 6): string | null {
  const data = process.env['FLYWHEEL_TEST_DATA'] ?? path.join(root, '..', 'shared', 'data', 'streets');
  if (!existsSync(path.join(data, 'labels.csv'))) {
    console.log(`no photographs at ${data}: rendered scenes serve instead`);
    return null;
  }
  const rows: Record<string, string>[] = parse(readFileSync(path.join(data, 'labels.csv')), { columns: true, bom: true });
  // Some images of every group: clips stay clips, and there are enough groups for every pool.
  const seen = new Map<string, number>();
  const singles = new Map<string, number>();
  const chosen = rows.filter((row) => {
    const group = row['source_path']?.split('#')[0] ?? '';
    const n = (seen.get(group) ?? 0) + 1;
    seen.set(group, n);
    if (group.endsWith('.mp4')) return n <= take;
    const kind = `${row['label']}/${row['split']}/${row['source_repo']}`;
    singles.set(kind, (singles.get(kind) ?? 0) + 1);
    return (singles.get(kind) ?? 0) <= take * 3;
  });
  mkdirSync(path.join(into, 'images'), { recursive: true });
  const columns = Object.keys(chosen[0] ?? {});
  const quote = (cell: string) => `"${cell.replaceAll('"', '""')}"`;
  writeFileSync(
    path.join(into, 'labels.csv'),
    [columns.join(','), ...chosen.map((r) => columns.map((c) => quote(r[c] ?? '')).join(','))].join('\n'),
  );
  for (const row of chosen) {
    const file = row['file'] ?? '';
    copyFileSync(path.join(data, 'images', file), path.join(into, 'images', file));
  }
  return into;
}
