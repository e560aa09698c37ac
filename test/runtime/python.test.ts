import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest';
import {
  ensurePython,
  explainInstallFailure,
  installPlan,
  lockedPackages,
  parsePythonVersion,
  parseUvLine,
  pythonCandidates,
  pythonFits,
  stampServes,
} from '../../src/platform/python/env.js';

const folder = mkdtempSync(path.join(os.tmpdir(), 'flywheel-python-'));
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});
afterEach(() => {
  vi.unstubAllEnvs();
});

describe('which Python', () => {
  it.each([
    ['Python 3.11.7', { major: 3, minor: 11, text: '3.11.7' }],
    ['Python 3.13.0rc1\n', { major: 3, minor: 13, text: '3.13.0rc1' }],
  ])('reads %s', (output, version) => {
    expect(parsePythonVersion(output)).toEqual(version);
  });

  it('does not take another program for Python', () => {
    expect(parsePythonVersion('PyPy 7.3')).toBeNull();
  });

  it.each([
    [3, 10, false],
    [3, 11, true],
    [3, 13, true],
    [3, 14, false],
    [2, 11, false],
  ])('%i.%i fits: %s', (major, minor, fits) => {
    expect(pythonFits({ major, minor })).toBe(fits);
  });

  it('is the one that the operator names, and no other', () => {
    expect(pythonCandidates({ FLYWHEEL_PYTHON: '/opt/python' })).toEqual(['/opt/python']);
  });

  it('that is too old is an error which says what was found and what to do', async () => {
    const old = path.join(folder, 'python-old');
    writeFileSync(old, '#!/bin/sh\necho Python 3.9.2\n');
    chmodSync(old, 0o755);
    vi.stubEnv('FLYWHEEL_PYTHON', old);
    const project = path.join(folder, 'project');
    mkdirSync(project);
    writeFileSync(path.join(project, 'uv.lock'), '');
    writeFileSync(path.join(project, 'pyproject.toml'), '');
    await expect(ensurePython(undefined, { project })).rejects.toThrow(`Found only ${old} (3.9.2); Python 3.11 to 3.13 is needed`);
  });

  it('that is missing is an error which says so', async () => {
    vi.stubEnv('FLYWHEEL_PYTHON', path.join(folder, 'none'));
    const project = path.join(folder, 'project2');
    mkdirSync(project);
    writeFileSync(path.join(project, 'uv.lock'), '');
    writeFileSync(path.join(project, 'pyproject.toml'), '');
    await expect(ensurePython(undefined, { project })).rejects.toThrow('No Python was found');
  });
});

describe('what is installed', () => {
  const lock = readFileSync(fileURLToPath(new URL('../../gpu-jobs/uv.lock', import.meta.url)), 'utf8');
  const options = { lock, project: '/p', python: '/usr/bin/python3' };

  it('is the lock file as it is, where the default wheels are taken', () => {
    expect(installPlan({ ...options, groups: 'main', wheels: 'default' }).map((step) => step.args)).toEqual([
      ['sync', '--frozen', '--project', '/p', '--python', '/usr/bin/python3', '--no-dev'],
    ]);
  });

  it('holds the development tools for the tests alone', () => {
    expect(installPlan({ ...options, groups: 'dev', wheels: 'default' })[0]?.args).not.toContain('--no-dev');
  });

  it('leaves GPU libraries out and takes torch from the CPU index in the locked version, where CPU wheels are taken', () => {
    const [sync, torch] = installPlan({ ...options, groups: 'main', wheels: 'cpu' });
    const left = sync?.args.filter((_, i, all) => all[i - 1] === '--no-install-package') ?? [];
    expect(left).toContain('torch');
    expect(left.some((name) => name.startsWith('nvidia-'))).toBe(true);
    expect(left).not.toContain('numpy');
    const version = lockedPackages(lock).find(({ name }) => name === 'torch')?.version;
    expect(torch?.args).toContain(`torch==${version ?? 'not locked'}`);
    expect(torch?.args).toContain('--no-deps');
  });
});

describe('an environment that is there', () => {
  const stamp = { lock: 'a', python: '3.11.7', groups: 'main', wheels: 'cpu' } as const;

  it('serves while the lock file is the same', () => {
    expect(stampServes(stamp, { lock: 'a', groups: 'main' })).toBe(true);
    expect(stampServes(stamp, { lock: 'b', groups: 'main' })).toBe(false);
  });

  it('without the test tools does not serve the tests, but one with them serves both', () => {
    expect(stampServes(stamp, { lock: 'a', groups: 'dev' })).toBe(false);
    expect(stampServes({ ...stamp, groups: 'dev' }, { lock: 'a', groups: 'main' })).toBe(true);
  });

  it('without a stamp is made again', () => {
    expect(stampServes(null, { lock: 'a', groups: 'main' })).toBe(false);
  });
});

describe('what the installer says', () => {
  it.each([
    ['\u001b[2mPrepared \u001b[1m12 packages\u001b[0m in 3s', 'Prepared 12 packages in 3s'],
    ['Downloading torch (821.1MiB)', 'Downloading torch'],
    [' + numpy==2.1.0', null],
  ])('%j becomes %j', (line, shown) => {
    expect(parseUvLine(line)).toBe(shown);
  });

  it.each([
    ['error: No space left on device (os error 28)', 'The disk is full'],
    ['error: dns error: failed to lookup address information', 'The package index is out of reach'],
    ['error: Hash mismatch for `timm==1.0`', 'does not match the lock file'],
    ['error: something else', 'start again when the cause below is mended'],
  ])('%s is explained', (output, words) => {
    expect(explainInstallFailure(output)).toContain(words);
  });
});
