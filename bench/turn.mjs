// `npm run bench:turn`: one whole turn from a clean home with installed dependencies, by stage, as JSON.
// BENCH_DATA names the data set (default ../shared/data/streets; without it scenes are rendered). The raw limit in the
// same run is the time inside jobs and inference: what is left is orchestration.
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const data = process.env.BENCH_DATA ?? path.join(root, '..', 'shared', 'data', 'streets');
const folder = mkdtempSync(path.join(os.tmpdir(), 'flywheel-bench-'));
const home = path.join(folder, 'home');
const args = ['up', '--once', '--json', '--home', home, ...(existsSync(data) ? ['--data', data] : [])];

const began = performance.now();
const ran = spawnSync(process.execPath, [path.join(root, 'bin', 'flywheel.js'), ...args], {
  stdio: ['ignore', 'pipe', 'inherit'],
  encoding: 'utf8',
});
const wall = (performance.now() - began) / 1000;
if (ran.status !== 0) {
  console.error(`the turn failed with exit code ${ran.status}; its home is kept: ${home}`);
  process.exit(1);
}
const result = JSON.parse(ran.stdout.trimEnd().split('\n').at(-1));

// Seconds that the jobs themselves took, from their results.
const jobs = {};
for (const name of readdirSync(path.join(home, 'jobs'))) {
  const file = path.join(home, 'jobs', name, 'result.json');
  if (!existsSync(file)) continue;
  const job = JSON.parse(readFileSync(file, 'utf8'));
  jobs[job.name] = job.seconds;
}
// Activities that import, send and predict: their own time, as the worker logged it.
const COUNTED = ['importDataset', 'sendTraffic', 'evaluateModel', 'replayTraffic', 'judgePair'];
const inference = {};
for (const line of readFileSync(path.join(home, 'logs', 'worker.log'), 'utf8').split('\n')) {
  if (!line.includes('"activity finished"')) continue;
  const { activity, ms } = JSON.parse(line);
  if (!COUNTED.includes(activity)) continue;
  inference[activity] = (inference[activity] ?? 0) + ms / 1000;
}
const sum = (o) => Object.values(o).reduce((a, b) => a + b, 0);
const stages = result.seconds;
const inside = sum(jobs) + sum(inference);
let commit = null;
try {
  commit = execFileSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: root, encoding: 'utf8' }).trim();
} catch {
  // not a checkout
}
console.log(
  JSON.stringify(
    {
      bench: 'turn',
      commit,
      machine: { cpus: os.availableParallelism(), model: os.cpus()[0]?.model, memoryGiB: Math.round(os.totalmem() / 2 ** 30) },
      images: result.dataset,
      wallSeconds: wall,
      stages,
      insideJobsSeconds: sum(jobs),
      insideInferenceSeconds: sum(inference),
      orchestrationSeconds: wall - inside,
      goals: { wallSeconds: 360, orchestrationSeconds: 30 },
      jobs,
      inference,
    },
    null,
    2,
  ),
);
rmSync(folder, { recursive: true, force: true });
