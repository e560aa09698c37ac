import { existsSync } from 'node:fs';
import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { hotkeyFromMnemonic, type Hotkey } from '../../src/platform/bittensor/keys.js';
import {
  askAxon,
  cacheFile,
  chainMetagraph,
  type ChainMetagraphOptions,
  type ChainMetagraphSource,
} from '../../src/platform/subtensor/index.js';
import { writeCache } from '../../src/platform/subtensor/cache.js';
import { TEST_KEYS } from '../miner/vectors.js';
import { StandIn } from '../support/subtensor.js';

const validator = TEST_KEYS.validator.ss58;
const miner = TEST_KEYS.miner.ss58;

let home: string;
let hotkey: Hotkey;
let chain: StandIn;
const logged: string[] = [];
const ends: (() => Promise<void>)[] = [];

async function begin(): Promise<void> {
  home = await mkdtemp(path.join(os.tmpdir(), 'flywheel-chain-'));
  hotkey = await hotkeyFromMnemonic(TEST_KEYS.miner.mnemonic);
  chain = new StandIn();
  chain.neurons = [
    { hotkey: validator, permit: true, alpha: 10n ** 12n },
    { hotkey: miner, permit: false },
  ];
  await chain.up();
  logged.length = 0;
}
async function end(): Promise<void> {
  for (const one of ends.splice(0).reverse()) await one();
  await chain.down();
  await rm(home, { recursive: true, force: true });
}

/** A list read some time ago, from the stand-in's chain. */
async function keep(at: number): Promise<void> {
  const neurons = [
    { uid: 0, hotkey: validator, validatorPermit: true, stake: 1_000 },
    { uid: 1, hotkey: miner, validatorPermit: false, stake: 0 },
  ];
  await writeCache(cacheFile(home, 72), { netuid: 72, genesis: chain.genesis, block: 900, blockHash: '0x00', at, neurons }, 'ws://before');
}

async function open(change: Partial<ChainMetagraphOptions> = {}): Promise<ChainMetagraphSource> {
  const note = (fields: object, message: string): void => void logged.push(`${message} ${JSON.stringify(fields)}`);
  const source = await chainMetagraph({
    home,
    endpoint: chain.url,
    netuid: 72,
    hotkey,
    seed: 1,
    logger: { debug: note, info: note, warn: note, error: note },
    timings: { backoffMs: 50, backoffMaxMs: 200, connectMs: 10_000 },
    ...change,
  });
  ends.push(() => source.close());
  return source;
}

async function until(what: string, done: () => boolean): Promise<void> {
  for (let i = 0; i < 1_500; i++) {
    if (done()) return;
    await sleep(10);
  }
  throw new Error(`${what} did not happen; logged: ${logged.slice(-8).join('\n')}`);
}

// One after the other on one source: each thread takes a second or two to begin.
describe('a source that follows the chain', () => {
  let source: ChainMetagraphSource;
  beforeAll(async () => {
    await begin();
    source = await open();
  });
  afterAll(end);

  it('has the list when it is open', () => {
    expect(source.problem).toBeNull();
    expect(source.neurons).toMatchObject([
      { uid: 0, hotkey: validator, validatorPermit: true, stake: 1_000 },
      { uid: 1, hotkey: miner, validatorPermit: false, stake: 0 },
    ]);
    expect(source.block).toBe(998);
  });

  it('keeps it on disk', async () => {
    await until('the file', () => existsSync(cacheFile(home, 72)));
    expect(JSON.parse(await readFile(cacheFile(home, 72), 'utf8'))).toMatchObject({
      v: 1,
      netuid: 72,
      block: 998,
      neurons: source.neurons,
    });
  });

  it('advertises with the key that stays outside the thread', async () => {
    source.advertise('91.121.9.254', 8091);
    await until('the advertisement', () => source.advertised.state === 'sent');
    expect(chain.received).toMatchObject([{ signer: miner, tip: 0, axon: { ip: 1_534_659_070n, port: 8091 } }]);
  });

  it('keeps the list when the node turns mad, and says so', async () => {
    const good = source.neurons;
    const permits = chain.neurons.map((neuron) => neuron.permit);
    chain.neurons.forEach((neuron) => (neuron.permit = false));
    chain.mine();
    await source.reload();
    expect(source.problem).toMatch(/nobody could ask.*The list of block 998/);
    expect(source.neurons).toBe(good);
    chain.neurons.forEach((neuron, i) => (neuron.permit = permits[i] ?? false));
    chain.mine();
    await until('the end of the problem', () => source.problem === null);
  });

  it('outlives a node that speaks no JSON, and leaves no connection behind', async () => {
    chain.fault = 'noise';
    await source.reload();
    expect(source.problem).toContain('cannot be read');
    expect(source.neurons).toHaveLength(2);
    chain.fault = null;
    await until('the end of the problem', () => source.problem === null);
    await until('the other connections to be closed', () => chain.connections === 1);
  });

  it('has not written the secret anywhere when it is closed', async () => {
    await source.close();
    const files = await Promise.all((await readdir(home)).map((name) => readFile(path.join(home, name), 'utf8')));
    expect(files).toHaveLength(1);
    const said = [...files, ...logged].join(' ');
    expect(said).toContain(miner);
    for (const word of TEST_KEYS.miner.mnemonic.split(' ')) expect(said).not.toMatch(new RegExp(`\\b${word} \\w+ `));
  });
});

describe('a source that begins', () => {
  beforeEach(begin);
  afterEach(end);

  it('serves the kept list at once while no node can be reached, says how old it is, and renews it', async () => {
    await keep(1_000_000);
    await chain.down();
    const source = await open({ clock: () => 4_600_000 });
    expect(source.neurons).toHaveLength(2);
    await until('the problem', () => source.problem !== null);
    expect(source.problem).toMatch(/No connection .*The list of block 900, 60 min old, holds\./);
    let changes = 0;
    source.onChange(() => changes++);
    chain.neurons.push({ hotkey: TEST_KEYS.stranger.ss58, permit: true });
    await chain.up();
    await until('the new list', () => source.neurons.length === 3 && source.problem === null);
    expect(changes).toBeGreaterThan(0);
  });

  it('does not mix its list with that of another network', async () => {
    await keep(Date.now());
    const other = await new StandIn({ chain: 'another chain' }).up();
    ends.push(() => other.down());
    other.neurons = [{ hotkey: TEST_KEYS.stranger.ss58, permit: true }];
    const source = await open({ endpoint: other.url });
    await until('the problem', () => source.problem !== null);
    expect(source.problem).toContain('remove the kept metagraph file');
    expect(source.neurons.map((neuron) => neuron.hotkey)).toEqual([validator, miner]);
  });

  it('reads the chain when the kept file is broken', async () => {
    await writeFile(cacheFile(home, 72), '{"v": 1, "neurons": [');
    const source = await open();
    expect(source.neurons).toHaveLength(2);
    expect(logged.some((line) => line.includes('cannot be used'))).toBe(true);
  });

  it('is empty, with a reason, without a node and without a kept file, and lets go quickly', async () => {
    chain.fault = 'silent';
    const source = await open({ firstMs: 200 });
    expect(source.neurons).toEqual([]);
    expect(source.problem).toMatch(/nobody may ask/);
    const began = performance.now();
    await source.close();
    await source.close();
    expect(performance.now() - began).toBeLessThan(6_000);
    await until('the connections to be closed', () => chain.connections === 0);
  });
});

describe('askAxon', () => {
  beforeEach(begin);
  afterEach(end);

  it('tells what the chain advertises', async () => {
    chain.axons.set(miner, { block: 7, version: 1, ip: 134_744_072n, port: 8091, ipType: 4, protocol: 4 });
    const found = await askAxon({ endpoint: chain.url, netuid: 72, hotkey: miner, timeoutMs: 10_000 });
    expect(found).toMatchObject({ uid: 1, axon: { ip: '8.8.8.8', port: 8091, block: 7 }, rateLimit: 50 });
  });

  it('fails with a reason when the node speaks no JSON', async () => {
    chain.fault = 'noise';
    await expect(askAxon({ endpoint: chain.url, netuid: 72, hotkey: miner, timeoutMs: 10_000 })).rejects.toThrow(/JSON/);
  });
});
