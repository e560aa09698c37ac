import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Permits } from '../../src/miner/metagraph.js';
import { fileMetagraph } from '../../src/platform/metagraph/index.js';
import type { MetagraphSource, Neuron } from '../../src/platform/ports.js';

const neuron = (uid: number, change: Partial<Neuron> = {}): Neuron => ({
  uid,
  hotkey: `hotkey-${uid}`,
  validatorPermit: true,
  stake: 10,
  ...change,
});

let dir: string;
let file: string;
let source: MetagraphSource | null = null;
beforeEach(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), 'flywheel-metagraph-'));
  file = path.join(dir, 'metagraph.json');
});
afterEach(async () => {
  await source?.close();
  source = null;
  await rm(dir, { recursive: true, force: true });
});
const write = async (value: unknown): Promise<void> => {
  await writeFile(`${file}.new`, typeof value === 'string' ? value : JSON.stringify(value));
  await rename(`${file}.new`, file);
};

describe('a metagraph file', () => {
  it.each([
    ['a list', [neuron(0), neuron(1)]],
    ['an object with neurons', { neurons: [neuron(0), neuron(1)] }],
  ])('is read as %s', async (_what, value) => {
    await write(value);
    source = await fileMetagraph(file, { clock: () => 1234 });
    expect(source.neurons).toEqual([neuron(0), neuron(1)]);
    expect(source).toMatchObject({ asOf: 1234, problem: null, name: `file ${file}` });
  });

  it.each([
    ['is missing', null],
    ['is no JSON', '{"neurons": ['],
    ['lacks a field', [{ uid: 0, hotkey: 'x' }]],
    ['has a negative stake', [neuron(0, { stake: -1 })]],
  ])('that %s is refused at the start', async (_what, value) => {
    if (value !== null) await write(value);
    await expect(fileMetagraph(file)).rejects.toMatchObject({ name: 'BadInputError' });
  });

  it('tells of a change, keeps the last good list when it breaks, and tells of that too', async () => {
    await write([neuron(0)]);
    source = await fileMetagraph(file, { pollMs: 20 });
    const seen: string[] = [];
    source.onChange(() => seen.push(source!.problem === null ? `${source!.neurons.length} neurons` : 'problem'));
    await write([neuron(0), neuron(1)]);
    await expect.poll(() => seen, { timeout: 10_000 }).toEqual(['2 neurons']);
    await write('[{"uid": 3');
    await expect.poll(() => seen, { timeout: 10_000 }).toEqual(['2 neurons', 'problem']);
    expect(source.neurons).toHaveLength(2);
    await rm(file);
    await expect.poll(() => source?.problem, { timeout: 10_000 }).toMatch(/ENOENT/);
    await write([neuron(7)]);
    await expect.poll(() => source?.neurons, { timeout: 10_000 }).toEqual([neuron(7)]);
    expect(source.problem).toBeNull();
  });
});

describe('permits', () => {
  const neurons = [neuron(0, { stake: 1000 }), neuron(1, { validatorPermit: false, stake: 5000 }), neuron(2, { stake: 10 })];

  it('are given by the metagraph alone', () => {
    const permits = new Permits({ neurons });
    expect(permits.refusal('hotkey-0')).toBeNull();
    expect(permits.refusal('hotkey-1')).toBe('Non-validator hotkey');
    expect(permits.refusal('hotkey-9')).toBe('Unrecognized hotkey');
  });

  it('ask for the minimum stake, which is enough', () => {
    const permits = new Permits({ neurons }, 1000);
    expect(permits.refusal('hotkey-0')).toBeNull();
    expect(permits.refusal('hotkey-2')).toBe('Stake below the minimum');
  });

  it('follow the list', () => {
    const list = { neurons };
    const permits = new Permits(list);
    expect(permits.refusal('hotkey-3')).not.toBeNull();
    list.neurons = [neuron(3, { stake: 7 })];
    expect(permits.refusal('hotkey-3')).toBeNull();
    expect(permits.refusal('hotkey-0')).not.toBeNull();
    expect([permits.priority('hotkey-3'), permits.priority('hotkey-0'), permits.size]).toEqual([7, 0, 1]);
  });

  it('are everybody’s without a metagraph', () => {
    const permits = new Permits(null);
    expect([permits.refusal('anybody'), permits.priority('anybody')]).toEqual([null, 0]);
  });
});
