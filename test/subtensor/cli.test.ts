import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { chainFinding } from '../../src/cli/chainFinding.js';
import { chainEndpoint, openMetagraph } from '../../src/cli/metagraph.js';
import { connectDendrite, createHotkey, hotkeyFromMnemonic } from '../../src/platform/bittensor/index.js';
import { loadConfig } from '../../src/platform/config.js';
import { packageRoot } from '../../src/platform/entry.js';
import { homePaths } from '../../src/platform/home.js';
import { freePort } from '../../src/platform/process.js';
import { cacheFile } from '../../src/platform/subtensor/index.js';
import { quiet } from '../support/miner.js';
import { TEST_KEYS } from '../miner/vectors.js';
import { StandIn } from '../support/subtensor.js';

let home: string;
let chain: StandIn;
let miner: string;
const ends: (() => Promise<unknown>)[] = [];

beforeEach(async () => {
  home = await mkdtemp(path.join(os.tmpdir(), 'flywheel-chain-cli-'));
  miner = (await createHotkey(path.join(home, 'keys', 'miner.json'))).address;
  chain = new StandIn();
  chain.neurons = [
    { hotkey: TEST_KEYS.validator.ss58, permit: true, alpha: 10n ** 12n },
    { hotkey: miner, permit: false },
  ];
  await chain.up();
});
afterEach(async () => {
  vi.unstubAllEnvs();
  for (const end of ends.splice(0).reverse()) await end();
  await chain.down();
  await rm(home, { recursive: true, force: true });
});

async function listen(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  ends.push(() => new Promise((resolve) => server.close(resolve)));
  return (server.address() as AddressInfo).port;
}

describe('doctor on the chain', () => {
  const look = (change: object = {}): ReturnType<typeof chainFinding> => {
    const config = loadConfig();
    return chainFinding(home, { netuid: 72, chain: { ...config.chain, follow: true, endpoint: chain.url, ...change } });
  };
  const advertise = (port: number): unknown =>
    chain.axons.set(miner, { block: 900, version: 1, ip: 0x7f000001n, port, ipType: 4, protocol: 4 });

  it('does not ask where no chain is configured', async () => {
    expect(await look({ follow: false })).toMatchObject({ state: 'optional', detail: expect.stringContaining('not checked') as string });
    expect(chain.asked).toEqual([]);
  });

  it('says that the advertised address answers', async () => {
    const port = await listen(createServer((_, response) => response.writeHead(404).end()));
    advertise(port);
    expect(await look()).toMatchObject({ state: 'found', detail: `127.0.0.1 port ${port} (uid 1, block 900) answers` });
  });

  it('says that it does not answer, and what to check', async () => {
    advertise(await freePort('127.0.0.1'));
    expect(await look()).toMatchObject({
      state: 'missing',
      detail: expect.stringMatching(/does not answer: .*refused.*Check firewall/) as string,
    });
  });

  it('says that the chain has another address than the configuration', async () => {
    advertise(8091);
    const detail = expect.stringMatching(
      /differs from configured: the chain has 127\.0\.0\.1 port 8091 .*91\.121\.9\.254 port 9000/,
    ) as string;
    expect(await look({ externalIp: '91.121.9.254', externalPort: 9000 })).toMatchObject({ state: 'missing', detail });
  });

  it('says that nothing was advertised yet, or that the hotkey is not registered', async () => {
    expect(await look()).toMatchObject({ state: 'missing', detail: expect.stringContaining('nothing is advertised') as string });
    chain.neurons.pop();
    chain.mine();
    expect(await look()).toMatchObject({ state: 'missing', detail: expect.stringContaining('not registered') as string });
  });

  it('says that the chain is out of reach', async () => {
    await chain.down();
    expect(await look()).toMatchObject({ state: 'missing', detail: expect.stringContaining('the chain cannot be asked') as string });
  });
});

describe('options of the miner', () => {
  const open = async (options: object): Promise<unknown> => {
    const identity = {
      hotkey: await hotkeyFromMnemonic(TEST_KEYS.miner.mnemonic),
      metagraphFile: path.join(home, 'none.json'),
      validator: TEST_KEYS.validator.ss58,
      development: true,
      warning: null,
    };
    const context = { config: loadConfig(), paths: homePaths(home), logger: quiet as never, print: () => Promise.resolve() };
    return openMetagraph(context, identity, options, 8091);
  };

  it('refuses an external address without a chain to tell it to', async () => {
    await expect(open({ externalIp: '91.121.9.254' })).rejects.toThrow('--metagraph chain');
  });

  it('refuses an address that validators cannot reach before the chain is asked', async () => {
    vi.stubEnv('FLYWHEEL_CHAIN_ENDPOINT', chain.url);
    await expect(open({ metagraph: 'chain', externalIp: '10.0.0.1' })).rejects.toThrow('private');
    expect(chain.asked).toEqual([]);
  });

  it('takes the endpoint from the environment before the configuration, and refuses nonsense there', () => {
    expect(chainEndpoint(loadConfig())).toBe('wss://entrypoint-finney.opentensor.ai:443');
    vi.stubEnv('FLYWHEEL_CHAIN_ENDPOINT', 'ws://127.0.0.1:9944');
    expect(chainEndpoint(loadConfig())).toBe('ws://127.0.0.1:9944');
    vi.stubEnv('FLYWHEEL_CHAIN_ENDPOINT', 'http://node');
    expect(() => chainEndpoint(loadConfig())).toThrow('ws:// or wss://');
  });
});

describe('flywheel miner --metagraph chain', () => {
  it("advertises itself and lets the chain's validators in, nobody else; also when the chain is gone", { timeout: 90_000 }, async () => {
    const config = path.join(home, 'config.json');
    const port = await freePort('127.0.0.1');
    await writeFile(config, JSON.stringify({ miner: { port }, chain: { endpoint: chain.url } }));
    const validator = connectDendrite({ hotkey: await hotkeyFromMnemonic(TEST_KEYS.validator.mnemonic) });
    const other = connectDendrite({ hotkey: await hotkeyFromMnemonic(TEST_KEYS.nonvalidator.mnemonic) });
    ends.push(
      () => validator.close(),
      () => other.close(),
    );
    const start = async (): Promise<{ said: () => string; end(): Promise<number | null> }> => {
      const script = path.join(packageRoot, 'bin', 'flywheel.js');
      const args = [
        'miner',
        '--home',
        home,
        '--config',
        config,
        '--metagraph',
        'chain',
        '--external-ip',
        '91.121.9.254',
        '--external-port',
        '443',
      ];
      const child = spawn(process.execPath, [script, ...args], {
        env: { ...process.env, FLYWHEEL_HOTKEY_FILE: '', FLYWHEEL_METAGRAPH_FILE: '' },
      });
      let text = '';
      for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk: Buffer) => (text += chunk.toString()));
      ends.push(async () => {
        if (child.exitCode === null && child.signalCode === null && child.kill('SIGKILL')) await once(child, 'exit');
      });
      await vi.waitFor(() => expect(text).toMatch(/Miner \S+ at/), { timeout: 40_000, interval: 100 });
      const end = async (): Promise<number | null> => {
        child.kill('SIGTERM');
        const [code] = (await once(child, 'exit')) as [number | null];
        return code;
      };
      return { said: () => text, end };
    };
    const refusals = async (): Promise<[string | null, string | null]> => {
      const question = { url: `http://127.0.0.1:${port}`, axonHotkey: miner, image: Buffer.from('no image') };
      return [(await validator.ask(question)).error, (await other.ask(question)).error];
    };

    const first = await start();
    expect(first.said()).toContain('2 neurons at block 998');
    await vi.waitFor(() => expect(chain.axons.get(miner)).toMatchObject({ ip: 1_534_659_070n, port: 443 }), { timeout: 20_000 });
    const [toValidator, toOther] = await refusals();
    // No model is there yet: that is what one who may ask gets to hear.
    expect(toValidator).not.toMatch(/hotkey/i);
    expect(toOther).toMatch(/hotkey/i);
    expect(await first.end()).toBe(0);
    expect(existsSync(cacheFile(home, 72))).toBe(true);

    await chain.down();
    const second = await start();
    expect(await refusals()).toEqual([toValidator, toOther]);
    expect(await second.end()).toBe(0);
  });
});
