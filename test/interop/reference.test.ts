/**
 * `flywheel simulate` as a validator of bittensor's own axon, 9.12.2: the peer that any miner of the subnet is built on.
 * The packages come from PyPI as for the real client; without them these tests fail.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { EXIT } from '../../src/cli/exit.js';
import { main } from '../../src/cli/main.js';
import { createHotkey } from '../../src/platform/bittensor/keys.js';
import { choosePort } from '../../src/platform/network.js';
import { greyJpeg } from '../support/images.js';
import { captureTerminal } from '../support/terminal.js';

let folder: string;
let url: string;
let hotkey: string;
let axon: ChildProcess;

beforeAll(async () => {
  const { ensureInteropPython } = (await import(path.join(import.meta.dirname, 'venv.mjs'))) as {
    ensureInteropPython: () => Promise<string>;
  };
  const python = await ensureInteropPython();
  folder = await mkdtemp(path.join(os.tmpdir(), 'flywheel-reference-'));
  const data = path.join(folder, 'data');
  await mkdir(data);
  const lines = ['file,label,group'];
  for (let i = 0; i < 16; i++) {
    await writeFile(path.join(data, `${i}.jpg`), await greyJpeg(i % 2 === 1 ? 200 : 60, i + 1));
    lines.push(`${i}.jpg,${i % 2},clip-${i}`);
  }
  await writeFile(path.join(data, 'labels.csv'), lines.join('\n'));
  const validator = await createHotkey(path.join(folder, 'validator.json'));
  await createHotkey(path.join(folder, 'stranger.json'));
  const port = await choosePort('127.0.0.1', 0, false, 'for the reference axon');
  url = `http://127.0.0.1:${port}`;
  const script = path.join(import.meta.dirname, '..', '..', 'bench', 'miner', 'reference_axon.py');
  axon = spawn(python, [script, '--port', String(port), '--validator', validator.address], { stdio: ['ignore', 'pipe', 'pipe'] });
  hotkey = await new Promise<string>((resolve, reject) => {
    let out = '';
    let err = '';
    axon.stderr?.on('data', (piece: Buffer) => (err += piece.toString()));
    axon.stdout?.on('data', (piece: Buffer) => {
      out += piece.toString();
      const line = out.split('\n').find((l) => l.startsWith('{'));
      if (line !== undefined && out.includes('\n')) resolve((JSON.parse(line) as { hotkey: string }).hotkey);
    });
    axon.once('error', reject);
    axon.once('exit', (code) => reject(new Error(`The reference axon ended with ${code}:\n${err.slice(-3000)}`)));
  });
}, 900_000);
afterAll(async () => {
  if (axon?.exitCode === null) {
    const gone = new Promise((resolve) => axon.once('exit', resolve));
    axon.kill('SIGKILL');
    await gone;
  }
  await rm(folder, { recursive: true, force: true });
});

async function simulate(key: string): Promise<{ code: number; out: string; err: string }> {
  let [out, err] = ['', ''];
  const spies = captureTerminal(
    (text) => (out += text),
    (text) => (err += text),
  );
  try {
    const code = await main([
      ...['simulate', '--home', path.join(folder, 'home'), '--data', path.join(folder, 'data'), '--url', url, '--axon-hotkey', hotkey],
      ...['--hotkey-file', path.join(folder, key), '--challenges', '16', '--seed', '3', '--json'],
    ]);
    return { code, out, err };
  } finally {
    for (const spy of spies) spy.mockRestore();
    process.exitCode = undefined;
  }
}

describe("bittensor's own axon, asked by the simulator", { timeout: 180_000 }, () => {
  it('answers every signed challenge, and is scored by what it says', async () => {
    const { code, out, err } = await simulate('validator.json');
    expect(code, err).toBe(EXIT.ok);
    const result = JSON.parse(out.trimEnd().split('\n').at(-1) ?? '') as {
      asked: number;
      answered: number;
      report: { overall: { accuracy: number; mcc: number; brier: number } };
    };
    expect(result).toMatchObject({ asked: 16, answered: 16 });
    // It says 0.5 to everything: rounded to 0, of no correlation, and a quarter off.
    expect(result.report.overall).toMatchObject({ mcc: 0, brier: 0.25 });
  });

  it('refuses a validator without a permit, and every refusal is counted by its reason', async () => {
    const { code, out, err } = await simulate('stranger.json');
    expect(code, err).toBe(EXIT.ok);
    const result = JSON.parse(out.trimEnd().split('\n').at(-1) ?? '') as { errors: Record<string, number>; reward: number };
    expect(result).toMatchObject({ answered: 0, errors: { 'Forbidden. Key is blacklisted: Unrecognized hotkey.': 16 }, reward: 0 });
  });
});
