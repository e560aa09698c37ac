// `npm test`: gets what is missing, then every check there is, and one closing line. Exit code 0 when nothing failed.
// `npm test -- --only NAME[,NAME]` runs some of the checks; NAME as printed at their beginning.
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const bin = (name) => path.join(root, 'node_modules', '.bin', name);
const reports = mkdtempSync(path.join(os.tmpdir(), 'flywheel-test-'));
const vitestReport = path.join(reports, 'vitest.json');
const pytestReport = path.join(reports, 'pytest.xml');
const jobs = path.join(root, 'gpu-jobs');
const python = path.join(jobs, '.venv', 'bin', 'python');

const args = process.argv.slice(2);
const at = args.indexOf('--only');
const only = at >= 0 ? (args[at + 1] ?? '').split(',') : null;

/** Every check has a command; a check without counts of its own counts as one test. */
const checks = [
  { name: 'build', command: [process.execPath, [path.join(root, 'node_modules', 'typescript', 'bin', 'tsc'), '-p', '.']], needed: true },
  { name: 'bundle', command: [process.execPath, ['scripts/bundle-workflows.mjs']], needed: true },
  { name: 'setup', command: [process.execPath, ['scripts/test-setup.mjs']], needed: true },
  { name: 'schemas', command: [process.execPath, ['scripts/schemas.mjs', '--check']] },
  { name: 'types', command: [bin('tsc'), ['--noEmit', '-p', 'test']] },
  { name: 'lint', command: [bin('eslint'), ['.', '--max-warnings', '0']] },
  { name: 'dependencies', command: [bin('depcruise'), ['--config', '.dependency-cruiser.cjs', 'src']] },
  { name: 'format', command: [bin('prettier'), ['--check', '.', '--log-level', 'warn']] },
  { name: 'python lint', command: [python, ['-m', 'ruff', 'check', '.']], cwd: jobs },
  { name: 'python types', command: [python, ['-m', 'mypy']], cwd: jobs },
  { name: 'python tests', command: [python, ['-m', 'pytest', '-q', `--junitxml=${pytestReport}`]], cwd: jobs, count: countPytest },
  {
    name: 'tests',
    command: [bin('vitest'), ['run', '--reporter=default', '--reporter=json', `--outputFile.json=${vitestReport}`]],
    count: countVitest,
  },
];

function countVitest() {
  if (!existsSync(vitestReport)) return null;
  const report = JSON.parse(readFileSync(vitestReport, 'utf8'));
  // A file that does not load holds no tests, and is a failure all the same.
  const broken = report.testResults.filter((file) => file.status === 'failed' && file.assertionResults.length === 0).length;
  return {
    passed: report.numPassedTests,
    failed: report.numFailedTests + broken,
    skipped: report.numPendingTests + (report.numTodoTests ?? 0),
  };
}

function countPytest() {
  if (!existsSync(pytestReport)) return null;
  const suite = /<testsuite [^>]*>/.exec(readFileSync(pytestReport, 'utf8'))?.[0] ?? '';
  const of = (name) => Number(new RegExp(`\\b${name}="(\\d+)"`).exec(suite)?.[1] ?? 0);
  const failed = of('failures') + of('errors');
  return { passed: of('tests') - failed - of('skipped'), failed, skipped: of('skipped') };
}

let running = null;
let interrupted = false;
for (const name of ['SIGINT', 'SIGTERM']) {
  process.on(name, () => {
    interrupted = true;
    running?.kill('SIGTERM');
  });
}

function run([command, commandArgs], cwd) {
  return new Promise((resolve) => {
    running = spawn(command, commandArgs, { cwd: cwd ?? root, stdio: ['ignore', 'inherit', 'inherit'] });
    running.once('error', (error) => {
      console.error(error.message);
      resolve(1);
    });
    running.once('close', (code) => resolve(code ?? 1));
  });
}

const total = { passed: 0, failed: 0, skipped: 0 };
const broken = [];
const data = process.env.FLYWHEEL_TEST_DATA ?? path.join(root, '..', 'shared', 'data', 'streets');
console.log(
  existsSync(data)
    ? `Photographs for the tests: ${data}`
    : `No photographs at ${data} (FLYWHEEL_TEST_DATA): rendered scenes serve instead.`,
);

for (const check of checks) {
  if (interrupted) break;
  if (only !== null && !only.includes(check.name)) continue;
  const began = Date.now();
  console.log(`\n== ${check.name}`);
  const code = await run(check.command, check.cwd);
  const counted = check.count?.() ?? { passed: code === 0 ? 1 : 0, failed: code === 0 ? 0 : 1, skipped: 0 };
  // A runner that fails without a failed test (it crashed, or found none) has failed all the same.
  if (code !== 0 && counted.failed === 0) counted.failed = 1;
  if (check.count !== undefined && counted.passed + counted.failed === 0) counted.failed = 1;
  for (const key of Object.keys(total)) total[key] += counted[key];
  if (counted.failed > 0) broken.push(check.name);
  console.log(`== ${check.name}: ${counted.failed === 0 ? 'ok' : 'FAILED'} after ${Math.round((Date.now() - began) / 1000)} s`);
  if (counted.failed > 0 && check.needed === true) {
    console.log('The rest cannot run without it.');
    break;
  }
}
rmSync(reports, { recursive: true, force: true });
if (broken.length > 0) console.log(`\nFailed: ${broken.join(', ')}`);
if (interrupted) {
  console.log('\nInterrupted.');
  total.failed += 1;
}
console.log(`\n${total.passed} passed, ${total.failed} failed${total.skipped > 0 ? `, ${total.skipped} skipped` : ''}`);
process.exit(total.failed > 0 || interrupted ? 1 : 0);
