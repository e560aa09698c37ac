/** `flywheel doctor`: each prerequisite, found or missing, its version, and how to get it. Installs nothing. */
import { accessSync, constants, existsSync, statfsSync } from 'node:fs';
import path from 'node:path';
import { licenceWarnings, weightsLicence } from '../domain/backbones.js';
import type { FlywheelConfig } from '../domain/config.js';
import { findOnPath, runCommand } from '../platform/command.js';
import { loadConfig } from '../platform/config.js';
import { packageRoot } from '../platform/entry.js';
import { findPython, hasNvidiaDriver, PYTHON_BELOW, PYTHON_MIN, readyPython } from '../platform/python/env.js';
import { findTemporal, temporalFromEnvironment, waitHealthy } from '../platform/temporal/server.js';
import { timeSkippingServerPath } from '../platform/temporal/testServer.js';
import { chainFinding } from './chainFinding.js';
import { EXIT, writeOut } from './exit.js';
import { hotkeyFinding } from './hotkeyFinding.js';

export interface Finding {
  name: string;
  /** `later`: not there, and `up` gets it by itself; `optional`: not there and not needed to run; `warning`: runs, but read it */
  state: 'found' | 'later' | 'optional' | 'warning' | 'missing';
  version: string | null;
  /** where it was found, or how to get it */
  detail: string;
}

const FREE_BYTES = 8e9;

async function versionOf(command: string, args: readonly string[]): Promise<{ path: string; version: string } | null> {
  const file = findOnPath(command);
  if (file === null) return null;
  const { code, output } = await runCommand(file, args, { timeoutMs: 20_000 });
  return code === 0 ? { path: file, version: (/\d+(\.\d+)+/.exec(output) ?? [output.split('\n')[0] ?? ''])[0] } : null;
}

function node(): Finding {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  const fits = major > 20 || (major === 20 && minor >= 19);
  return {
    name: 'Node.js',
    state: fits ? 'found' : 'missing',
    version: process.versions.node,
    detail: fits ? process.execPath : '20.19 or newer is needed: https://nodejs.org',
  };
}

function built(): Finding {
  const bundle = path.join(packageRoot, 'dist', 'workflow-bundle.js');
  const there = existsSync(bundle) && existsSync(path.join(packageRoot, 'dist', 'cli', 'main.js'));
  return {
    name: 'Build',
    state: there ? 'found' : 'missing',
    version: null,
    detail: there ? path.join(packageRoot, 'dist') : 'run `npm run build`',
  };
}

async function python(): Promise<Finding> {
  const { found, seen } = await findPython();
  if (found !== null) return { name: 'Python', state: 'found', version: found.text, detail: found.path };
  const others = seen.length === 0 ? '' : `; found ${seen.map((other) => `${other.text} at ${other.path}`).join(', ')}`;
  return {
    name: 'Python',
    state: 'missing',
    version: null,
    detail: `3.${PYTHON_MIN} to 3.${PYTHON_BELOW - 1} is needed${others}: apt-get install python3 python3-venv, or FLYWHEEL_PYTHON=/path/to/python`,
  };
}

function packages(): Finding {
  const ready = readyPython();
  return ready === null
    ? { name: 'Python packages', state: 'later', version: null, detail: '`flywheel up` installs them into gpu-jobs/.venv (up to 7 GB)' }
    : { name: 'Python packages', state: 'found', version: null, detail: path.dirname(path.dirname(ready)) };
}

async function temporal(): Promise<Finding> {
  const given = temporalFromEnvironment();
  if (given !== null) {
    try {
      await waitHealthy(given, 8_000);
      return {
        name: 'Temporal',
        state: 'found',
        version: null,
        detail: `${given.address}, namespace ${given.namespace} (TEMPORAL_ADDRESS)`,
      };
    } catch (error) {
      return { name: 'Temporal', state: 'missing', version: null, detail: `TEMPORAL_ADDRESS is set, but ${(error as Error).message}` };
    }
  }
  const binary = findTemporal();
  if (binary !== null) {
    const { output } = await runCommand(binary.path, ['--version'], { timeoutMs: 20_000 });
    return {
      name: 'Temporal',
      state: 'found',
      version: /Server (\d+(\.\d+)+)/.exec(output)?.[1] ?? null,
      detail: `${binary.path} (${binary.source})`,
    };
  }
  const go = findOnPath('go');
  return go === null
    ? {
        name: 'Temporal',
        state: 'later',
        version: null,
        detail:
          '`flywheel up` downloads it where temporal.download can be reached; otherwise install Go, put `temporal` on PATH (https://docs.temporal.io/cli), or set TEMPORAL_ADDRESS',
      }
    : { name: 'Temporal', state: 'later', version: null, detail: '`flywheel up` downloads it, or builds it once with Go' };
}

async function tool(name: string, command: string, args: readonly string[], why: string): Promise<Finding> {
  const found = await versionOf(command, args);
  return found === null
    ? { name, state: 'optional', version: null, detail: why }
    : { name, state: 'found', version: found.version, detail: found.path };
}

function gpu(): Finding {
  return hasNvidiaDriver()
    ? { name: 'NVIDIA driver', state: 'found', version: null, detail: 'jobs use the GPU' }
    : { name: 'NVIDIA driver', state: 'optional', version: null, detail: 'jobs run on the CPU; the demo preset is made for that' };
}

function testServer(): Finding {
  const found = timeSkippingServerPath();
  return found === null
    ? {
        name: 'Time-skipping server',
        state: 'optional',
        version: null,
        detail: 'for `npm test` alone, which gets it (download, or Java 17 and Maven)',
      }
    : { name: 'Time-skipping server', state: 'found', version: null, detail: found };
}

function disk(home: string): Finding {
  let folder = home;
  while (!existsSync(folder)) folder = path.dirname(folder);
  const stats = statfsSync(folder);
  const free = stats.bavail * stats.bsize;
  const version = `${(free / 1e9).toFixed(1)} GB free`;
  try {
    accessSync(folder, constants.W_OK);
  } catch {
    return { name: 'Home', state: 'missing', version, detail: `${folder} is not writable: give another with --home` };
  }
  return free < FREE_BYTES && readyPython() === null
    ? { name: 'Home', state: 'missing', version, detail: `some ${FREE_BYTES / 1e9} GB are needed at ${folder}` }
    : { name: 'Home', state: 'found', version, detail: home };
}

function licences({ training: { members } }: Pick<FlywheelConfig, 'training'>): Finding {
  const name = 'Licences of weights';
  const warnings = licenceWarnings(members);
  if (warnings.length > 0) return { name, state: 'warning', version: null, detail: warnings.join(' ') };
  const told = members.map(({ name: member, backbone }) =>
    /^auto(:|$)/.test(backbone)
      ? `${member} chosen among those that allow commercial use`
      : `${member} ${weightsLicence(backbone)?.spdx ?? 'not known here, the job asks timm'}`,
  );
  return { name, state: 'found', version: null, detail: told.join(', ') };
}

/** Looks at everything, at once. */
export async function diagnose(home: string, config: Pick<FlywheelConfig, 'chain' | 'netuid' | 'training'>): Promise<Finding[]> {
  const [pythonFound, uv, temporalFound, go, java, maven, hotkey, chain] = await Promise.all([
    python(),
    tool('uv', 'uv', ['--version'], '`flywheel up` puts one into its cache with pip'),
    temporal(),
    tool('Go', 'go', ['version'], 'needed only where the Temporal program cannot be downloaded: https://go.dev/dl'),
    tool(
      'Java',
      'java',
      ['-version'],
      'for `npm test` alone, where the time-skipping server cannot be downloaded: apt-get install default-jdk-headless',
    ),
    tool('Maven', 'mvn', ['-B', '-v'], 'for `npm test` alone, where the time-skipping server cannot be downloaded: apt-get install maven'),
    hotkeyFinding(home),
    chainFinding(home, config),
  ]);
  return [
    node(),
    built(),
    pythonFound,
    packages(),
    uv,
    temporalFound,
    go,
    java,
    maven,
    testServer(),
    gpu(),
    licences(config),
    disk(home),
    hotkey,
    chain,
  ];
}

const MARK = { found: '✓ found  ', later: '… later  ', optional: '- none   ', warning: '! WARNING', missing: '✗ MISSING' } as const;

/** One line a finding. */
export function renderFindings(findings: readonly Finding[]): string {
  const name = Math.max(...findings.map((finding) => finding.name.length));
  const version = Math.max(...findings.map((finding) => finding.version?.length ?? 0));
  return findings
    .map((finding) => `${MARK[finding.state]}  ${finding.name.padEnd(name)}  ${(finding.version ?? '').padEnd(version)}  ${finding.detail}`)
    .join('\n');
}

/** @throws BadInputError on a wrong configuration. Sets the exit code 4 when something is missing that nothing gets by itself. */
export async function doctorCommand(options: { home: string; config?: string; json?: boolean }): Promise<void> {
  const config = loadConfig(options.config === undefined ? {} : { file: options.config });
  const findings = await diagnose(options.home, config);
  const ok = findings.every((finding) => finding.state !== 'missing');
  await writeOut(
    options.json === true ? process.stderr : process.stdout,
    `${renderFindings(findings)}\n\n${ok ? 'Ready for `flywheel up`.' : 'Something is missing, see above.'}\n`,
  );
  if (options.json === true) await writeOut(process.stdout, `${JSON.stringify({ ok, findings })}\n`);
  process.exitCode = ok ? EXIT.ok : EXIT.unavailable;
}
