/**
 * Temporal's time-skipping test server, for the tests: 180 days in a second. The SDK's own download where it can be
 * reached; otherwise the Java server of the same name from Maven Central behind a small launcher.
 */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { cacheDir } from '../cacheDir.js';
import { findOnPath, isExecutable, runCommand, tail } from '../command.js';
import { packageRoot } from '../entry.js';
import { answers } from '../network.js';
import { ServiceUnavailableError } from '../unavailable.js';
import { downloadWithSdk, type OnProgress, waitForLock } from './binary.js';

export const TEST_SERVER = 'io.temporal:temporal-test-server:1.38.0';

const version = TEST_SERVER.split(':')[2] ?? '';
const folder = (): string => path.join(cacheDir(), 'test-server');

/** @returns the program for `createTimeSkipping({server: {executable: {type: 'existing-path', path}}})`, or null: run `npm test` or `node scripts/test-setup.mjs` once */
export function timeSkippingServerPath(): string | null {
  const named = process.env.FLYWHEEL_TEST_SERVER;
  if (named !== undefined && named !== '') return isExecutable(named) ? named : null;
  const launcher = path.join(folder(), `java-${version}`, 'launch');
  if (isExecutable(launcher)) return launcher;
  const names = existsSync(folder()) ? readdirSync(folder()) : [];
  const downloaded = names.find(
    (name) => /^temporal-test-server-sdk-typescript-[0-9.]+$/.test(name) && isExecutable(path.join(folder(), name)),
  );
  return downloaded === undefined ? null : path.join(folder(), downloaded);
}

/**
 * Finds the server or gets it once into the cache.
 * @throws ServiceUnavailableError saying what is missing when neither way is open
 */
export async function ensureTimeSkippingServer(onProgress: OnProgress = () => undefined): Promise<string> {
  const found = timeSkippingServerPath();
  if (found !== null) return found;
  mkdirSync(folder(), { recursive: true });
  const lock = await waitForLock(path.join(folder(), '.lock'), 'The place where the time-skipping server is put', onProgress);
  const tried: string[] = [];
  try {
    const meanwhile = timeSkippingServerPath();
    if (meanwhile !== null) return meanwhile;
    if (process.env.FLYWHEEL_OFFLINE !== '1' && (await answers('https://temporal.download/', 3_000))) {
      onProgress('downloading the time-skipping test server');
      tried.push(`the SDK's download failed: ${tail(await downloadWithSdk('time-skipping', folder()), 3)}`);
      const downloaded = timeSkippingServerPath();
      if (downloaded !== null) return downloaded;
    } else {
      tried.push('temporal.download does not answer');
    }
    const java = findOnPath('java');
    const maven = findOnPath('mvn');
    if (java === null || maven === null) {
      tried.push(
        `for the Java server from Maven Central ${[java === null ? '`java` 17' : null, maven === null ? '`mvn`' : null].filter((x) => x !== null).join(' and ')} is missing on PATH`,
      );
    } else {
      onProgress('fetching the time-skipping test server from Maven Central');
      const failure = await install(java, maven);
      if (failure === null) return path.join(folder(), `java-${version}`, 'launch');
      tried.push(failure);
    }
  } finally {
    lock.release();
  }
  throw new ServiceUnavailableError(
    `The time-skipping test server could not be got (${tried.join('; ')}). Workflow tests cannot run without it. ` +
      `Install Java 17 and Maven (Debian: apt-get install default-jdk-headless maven), or let this machine reach temporal.download, or name a program with FLYWHEEL_TEST_SERVER.`,
  );
}

/** @returns what went wrong, or null */
async function install(java: string, maven: string): Promise<string | null> {
  const aside = mkdtempSync(path.join(folder(), 'install-'));
  try {
    const [group, artifact] = TEST_SERVER.split(':');
    const pom = path.join(aside, 'pom.xml');
    writeFileSync(
      pom,
      `<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>` +
        `<groupId>flywheel</groupId><artifactId>test-server</artifactId><version>1</version><packaging>pom</packaging><dependencies><dependency>` +
        `<groupId>${group ?? ''}</groupId><artifactId>${artifact ?? ''}</artifactId><version>${version}</version><scope>runtime</scope></dependency></dependencies></project>\n`,
    );
    const lib = path.join(aside, 'lib');
    const args = ['-q', '-B', '-ntp', '-f', pom, 'dependency:copy-dependencies', '-DincludeScope=runtime', `-DoutputDirectory=${lib}`];
    const fetched = await runCommand(maven, args, { timeoutMs: 600_000 });
    if (fetched.code !== 0 || !existsSync(lib)) return `Maven could not fetch ${TEST_SERVER}: ${tail(fetched.output, 4)}`;
    const classes = path.join(aside, 'classes');
    const javac = findOnPath('javac');
    let main = 'io.temporal.testserver.TestServer';
    if (javac !== null) {
      const source = path.join(packageRoot, 'scripts', 'java', 'LoopbackTestServer.java');
      const compiled = await runCommand(javac, ['-cp', path.join(lib, '*'), '-d', classes, source], { timeoutMs: 120_000 });
      if (compiled.code !== 0) return `the launcher of the test server does not compile: ${tail(compiled.output, 4)}`;
      main = 'LoopbackTestServer';
    }
    const flags = '-Xshare:auto -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xmx512m';
    writeFileSync(
      path.join(aside, 'launch'),
      `#!/bin/sh\nhere=$(dirname "$0")\nexec '${java}' ${flags} -cp "$here/classes:$here/lib/*" ${main} "$@"\n`,
      { mode: 0o755 },
    );
    const final = path.join(folder(), `java-${version}`);
    rmSync(final, { recursive: true, force: true });
    renameSync(aside, final);
    return null;
  } finally {
    rmSync(aside, { recursive: true, force: true });
  }
}
