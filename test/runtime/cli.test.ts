import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { describeError, errorJson, EXIT, exitCodeOf, InterruptedError } from '../../src/cli/exit.js';
import { loadConfig } from '../../src/platform/config.js';
import { diagnose, renderFindings } from '../../src/cli/doctor.js';
import { createProgram, main } from '../../src/cli/main.js';
import { StageFailedError } from '../../src/cli/turnClient.js';
import { BadInputError } from '../../src/domain/errors.js';
import { homePaths } from '../../src/platform/home.js';
import { createLogger, redact, rotate } from '../../src/platform/log.js';
import { ServiceUnavailableError } from '../../src/platform/unavailable.js';

const folder = mkdtempSync(path.join(os.tmpdir(), 'flywheel-cli-'));
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

let out = '';
let err = '';
beforeEach(() => {
  out = '';
  err = '';
  const capture =
    (add: (text: string) => void) =>
    (text: unknown, ...more: unknown[]) => {
      add(String(text));
      const done = more.find((item) => typeof item === 'function') as (() => void) | undefined;
      done?.();
      return true;
    };
  vi.spyOn(process.stdout, 'write').mockImplementation(capture((text) => (out += text)));
  vi.spyOn(process.stderr, 'write').mockImplementation(capture((text) => (err += text)));
});
afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllEnvs();
  process.exitCode = undefined;
});

describe('the command line', () => {
  it('has the commands that the README promises', () => {
    const names = createProgram().commands.map((command) => command.name());
    expect(names).toEqual([
      'up',
      'worker',
      'miner',
      'status',
      'turn',
      'import',
      'import-check',
      'evaluate',
      'report',
      'embed',
      'review',
      'promote',
      'reject',
      'rollback',
      'simulate',
      'doctor',
      'backup',
      'restore',
    ]);
  });

  it('answers --help with the exit codes, and 0', async () => {
    expect(await main(['--help'])).toBe(EXIT.ok);
    expect(out).toContain('a stage of the turn failed');
  });

  it.each([[['fly']], [['up', '--port', 'http']], [['up', '--port', '70000']], [['promote']], [['up', '--unknown']]])(
    'refuses %j with 2',
    async (argv) => {
      expect(await main(argv)).toBe(EXIT.badInput);
      expect(err).toContain('error:');
    },
  );

  it('refuses a data folder that is not there before anything is made', async () => {
    const home = path.join(folder, 'never');
    expect(await main(['up', '--home', home, '--data', path.join(folder, 'nothing')])).toBe(EXIT.badInput);
    expect(err).toContain('is not a folder. Nothing was started.');
  });

  it('ends with one line of JSON under --json, also when it fails', async () => {
    const home = path.join(folder, 'idle');
    expect(await main(['turn', '--home', home, '--json'])).toBe(EXIT.unavailable);
    expect(JSON.parse(out.trimEnd().split('\n').at(-1) ?? '')).toMatchObject({
      error: { name: 'ServiceUnavailableError' },
      exitCode: EXIT.unavailable,
    });
  });

  it('says in status that nothing runs', async () => {
    expect(await main(['status', '--home', path.join(folder, 'idle'), '--json'])).toBe(EXIT.ok);
    expect(JSON.parse(out)).toMatchObject({ running: false, miner: null, lifecycle: null });
    expect(err).toContain('no; start it with `flywheel up`');
  });
});

describe('errors', () => {
  it.each([
    [new BadInputError('x'), EXIT.badInput],
    [new ServiceUnavailableError('x'), EXIT.unavailable],
    [new StageFailedError('train', 'x', null), EXIT.stageFailed],
    [new InterruptedError('SIGINT'), EXIT.interrupted],
    [new InterruptedError('SIGTERM'), EXIT.terminated],
    [new TypeError('x'), EXIT.unexpected],
    ['text', EXIT.unexpected],
  ])('%s ends with %i', (error, code) => {
    expect(exitCodeOf(error)).toBe(code);
  });

  it('of a stage name it and the place to look', () => {
    const error = new StageFailedError('train', 'out of memory', 'http://ui/x');
    expect(describeError(error)).toBe('Stage "train" failed; what was done before it is kept.\nout of memory\nSee http://ui/x');
    expect(errorJson(error)).toMatchObject({ error: { stage: 'train', link: 'http://ui/x' }, exitCode: EXIT.stageFailed });
  });

  it('show a stack for a fault of the program only', () => {
    expect(describeError(new BadInputError('wrong'))).toBe('wrong');
    expect(describeError(new TypeError('fault'))).toContain('at ');
  });
});

describe('doctor', () => {
  it('names every prerequisite with its state and how to get it', async () => {
    const findings = await diagnose(path.join(folder, 'home'), loadConfig());
    const byName = Object.fromEntries(findings.map((finding) => [finding.name, finding]));
    expect(byName['Node.js']).toMatchObject({ state: 'found', version: process.versions.node });
    expect(Object.keys(byName)).toEqual(expect.arrayContaining(['Python', 'Temporal', 'Go', 'Java', 'Python packages', 'Home']));
    for (const finding of findings) expect(finding.detail).not.toBe('');
  });

  it('names the licences of the weights and warns of those that forbid earning money', async () => {
    const { training, ...rest } = loadConfig();
    const look = async (members: typeof training.members): Promise<string> => {
      const findings = await diagnose(path.join(folder, 'home'), { ...rest, training: { ...training, members } });
      return renderFindings(findings.filter(({ name }) => name === 'Licences of weights'));
    };
    expect(await look(training.members)).toMatch(/✓ found .*lite0-[a-z]+ Apache-2\.0/);
    const [first] = training.members;
    expect(await look([{ ...first!, backbone: 'convnextv2_base', weights: 'hub' }])).toMatch(/! WARNING .*CC-BY-NC-4\.0/);
  });

  it('says what is missing and how to get it', async () => {
    vi.stubEnv('FLYWHEEL_PYTHON', path.join(folder, 'no-python'));
    const python = (await diagnose(folder, loadConfig())).find((finding) => finding.name === 'Python');
    expect(python?.state).toBe('missing');
    expect(renderFindings(python === undefined ? [] : [python])).toMatch(/✗ MISSING {2}Python .*apt-get install python3/);
  });

  it('fails when Temporal was named but does not answer', { timeout: 30_000 }, async () => {
    vi.stubEnv('TEMPORAL_ADDRESS', '127.0.0.1:1');
    expect(await main(['doctor', '--home', folder, '--json'])).toBe(EXIT.unavailable);
    const { findings } = JSON.parse(out) as { findings: { name: string; state: string }[] };
    expect(findings.find((finding) => finding.name === 'Temporal')?.state).toBe('missing');
  });
});

describe('logs', () => {
  it('black out what looks like a secret, at any depth', () => {
    expect(redact({ secretSeed: 'a', nested: [{ apiKey: 'b', token: null, kept: 1 }] })).toEqual({
      secretSeed: '[redacted]',
      nested: [{ apiKey: '[redacted]', token: null, kept: 1 }],
    });
  });

  it('reach the file of their process without secrets', () => {
    const paths = homePaths(path.join(folder, 'logs-home'));
    createLogger(paths.logs, 'probe').info({ password: 'hunter2', turn: 't' }, 'hello');
    const text = readFileSync(path.join(paths.logs, 'probe.log'), 'utf8');
    expect(text).toContain('hello');
    expect(text).not.toContain('hunter2');
  });

  it('are moved aside when they have grown, the oldest being dropped', async () => {
    const { existsSync, writeFileSync } = await import('node:fs');
    const file = path.join(folder, 'grown.log');
    for (const content of ['first', 'second', 'third']) {
      writeFileSync(file, content);
      rotate(file, 3, 2);
    }
    expect(readFileSync(`${file}.1`, 'utf8')).toBe('third');
    expect(readFileSync(`${file}.2`, 'utf8')).toBe('second');
    expect(existsSync(file)).toBe(false);
  });

  it('refuse an unknown level', () => {
    vi.stubEnv('FLYWHEEL_LOG_LEVEL', 'loud');
    expect(() => createLogger(folder, 'x')).toThrow('FLYWHEEL_LOG_LEVEL: one of trace');
  });
});

it("makes a home that is its owner's alone", async () => {
  const { statSync } = await import('node:fs');
  const paths = homePaths(path.join(folder, 'private'));
  for (const part of [paths.root, paths.keys, paths.run]) expect(statSync(part).mode & 0o777).toBe(0o700);
});
