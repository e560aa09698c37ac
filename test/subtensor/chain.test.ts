import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { ApiPromise, WsProvider } from '@polkadot/api';
import { Keyring } from '@polkadot/keyring';
import { hotkeyFromMnemonic } from '../../src/platform/bittensor/keys.js';
import { Follower, TIMINGS, type AdvertiseState, type Timings } from '../../src/platform/subtensor/follow.js';
import { inherited, type ChainMetagraph } from '../../src/platform/subtensor/metagraph.js';
import { TEST_KEYS } from '../miner/vectors.js';
import { StandIn } from '../support/subtensor.js';
import type { MetadataVersion, Runtime } from '../support/subtensorMetadata.js';

const U64_MAX = 2n ** 64n - 1n;
const TAO = 1_000_000_000n;
const miner = TEST_KEYS.miner.ss58;
const validator = TEST_KEYS.validator.ss58;
const stranger = TEST_KEYS.stranger.ss58;

// The library prints every call that a broken connection took along.
beforeAll(() => void vi.spyOn(console, 'error').mockImplementation(() => undefined));

const ends: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

async function standIn(
  runtime: Runtime = 'wrapped',
  change: (chain: StandIn) => void = () => undefined,
  metadata: MetadataVersion = 14,
): Promise<StandIn> {
  const chain = new StandIn({ runtime, metadata });
  chain.neurons = [
    { hotkey: validator, permit: true, alpha: 5_000n * TAO, tao: 10_000n * TAO },
    { hotkey: miner, permit: false },
  ];
  change(chain);
  await chain.up();
  ends.push(() => chain.down());
  return chain;
}

interface Followed {
  follower: Follower;
  metagraphs: ChainMetagraph[];
  problems: (string | null)[];
  states: AdvertiseState[];
  until(what: string, done: () => boolean): Promise<void>;
}

async function follow(chain: StandIn, options: { timings?: Partial<Timings>; genesis?: string; netuid?: number } = {}): Promise<Followed> {
  const metagraphs: ChainMetagraph[] = [];
  const problems: (string | null)[] = [];
  const states: AdvertiseState[] = [];
  const follower = new Follower({
    endpoint: chain.url,
    netuid: options.netuid ?? 72,
    genesis: options.genesis ?? null,
    seed: 1,
    signer: await hotkeyFromMnemonic(TEST_KEYS.miner.mnemonic),
    timings: { ...TIMINGS, connectMs: 10_000, backoffMs: 20, backoffMaxMs: 100, ...options.timings },
    clock: Date.now,
    onMetagraph: (metagraph) => metagraphs.push(metagraph),
    onProblem: (problem) => problems.push(problem),
    onAdvertise: (state) => states.push(state),
    log: () => undefined,
  });
  ends.push(() => follower.stop());
  follower.start();
  const until = async (what: string, done: () => boolean): Promise<void> => {
    for (let i = 0; i < 1_000; i++) {
      if (done()) return;
      await sleep(10);
    }
    throw new Error(`${what} did not happen; problems: ${problems.join(' | ')}; states: ${JSON.stringify(states)}`);
  };
  return { follower, metagraphs, problems, states, until };
}

describe.each(['224', 'wrapped'] as const)('with runtime %s', (runtime) => {
  it('reads uid, hotkey, permit and stake weight of every neuron at one finalized block', async () => {
    const chain = await standIn(runtime);
    const { follower, metagraphs } = await follow(chain);
    await follower.look();
    expect(metagraphs[0]).toMatchObject({
      netuid: 72,
      genesis: chain.genesis,
      block: 998,
      neurons: [
        { uid: 0, hotkey: validator, validatorPermit: true },
        { uid: 1, hotkey: miner, validatorPermit: false, stake: 0 },
      ],
    });
    // 5,000 alpha and 0.18 of 10,000 TAO on the root
    expect(metagraphs[0]?.neurons[0]?.stake).toBeCloseTo(6_800, 6);
  });

  it('advertises an address once: signed by the hotkey, mortal, with the tip in its place', async () => {
    const chain = await standIn(runtime);
    const { follower, states } = await follow(chain);
    follower.advertise('91.121.9.254', 8091);
    await follower.look();
    expect(states).toMatchObject([{ state: 'sent', ip: '91.121.9.254', port: 8091 }]);
    expect(chain.received).toEqual([
      {
        signer: miner,
        mortal: true,
        nonce: 0,
        tip: 0,
        netuid: 72,
        axon: { version: 9_012_002, ip: 1_534_659_070n, port: 8091, ipType: 4, protocol: 4 },
      },
    ]);
    chain.mine();
    await follower.look();
    expect(states.at(-1)).toMatchObject({ state: 'current', block: 1001 });
    expect(chain.received).toHaveLength(1);
  });

  it('waits while the rate limit runs, says how long, and sends when it is over', async () => {
    const chain = await standIn(runtime, (c) =>
      c.axons.set(miner, { block: 990, version: 1, ip: 134_744_072n, port: 1, ipType: 4, protocol: 4 }),
    );
    const { follower, states } = await follow(chain);
    follower.advertise('91.121.9.254', 8091);
    await follower.look();
    expect(states).toMatchObject([{ state: 'waiting', blocks: 40, reason: expect.stringContaining('8.8.8.8:1') as string }]);
    expect(chain.received).toHaveLength(0);
    chain.mine(40);
    await follower.look();
    expect(states.at(-1)).toMatchObject({ state: 'sent' });
    expect(chain.axons.get(miner)?.port).toBe(8091);
  });

  it("takes the chain's own word for the rate limit when it changed in between", async () => {
    const chain = await standIn(runtime, (c) => {
      c.rateLimit = 0;
      c.axons.set(miner, { block: 999, version: 1, ip: 134_744_072n, port: 1, ipType: 4, protocol: 4 });
    });
    const { follower, states } = await follow(chain);
    await follower.look();
    chain.beforeSubmit = () => (chain.rateLimit = 50);
    follower.advertise('91.121.9.254', 8091);
    await follower.look();
    expect(states).toMatchObject([{ state: 'waiting', reason: expect.stringContaining('ServingRateLimitExceeded') as string }]);
  });

  it('says what to do when the hotkey left the subnet while the transaction was under way', async () => {
    const chain = await standIn(runtime);
    const { follower, states } = await follow(chain);
    await follower.look();
    chain.beforeSubmit = () => chain.neurons.pop();
    follower.advertise('91.121.9.254', 8091);
    await follower.look();
    expect(states).toMatchObject([
      { state: 'refused', reason: expect.stringMatching(/HotKeyNotRegisteredInNetwork.*register the hotkey/) as string },
    ]);
  });
});

it.each([15, 16] as const)('reads and advertises alike where the node gives metadata of version %s', async (version) => {
  const chain = await standIn('wrapped', () => undefined, version);
  const { follower, metagraphs, states } = await follow(chain);
  follower.advertise('91.121.9.254', 8091);
  await follower.look();
  expect(metagraphs[0]?.neurons[0]).toMatchObject({ hotkey: validator, validatorPermit: true });
  expect(states).toMatchObject([{ state: 'sent' }]);
  expect(chain.received).toMatchObject([{ signer: miner, mortal: true, tip: 0 }]);
});

describe('stake', () => {
  it('counts what parents lend and leaves out what children hold', async () => {
    const half = U64_MAX / 2n;
    const chain = await standIn('wrapped', (c) => {
      // A validator on a child hotkey: nothing of its own, half of a parent that is no neuron here.
      c.neurons = [
        { hotkey: validator, permit: true, parents: [[half, stranger]] },
        { hotkey: miner, permit: false, alpha: 100n * TAO, children: [[U64_MAX / 4n, validator]] },
      ];
      c.others.set(stranger, { alpha: 1_000n * TAO, tao: 2_000n * TAO });
    });
    const { follower, metagraphs } = await follow(chain);
    await follower.look();
    const [child, parent] = metagraphs[0]?.neurons ?? [];
    expect(child?.stake).toBeCloseTo(500 + 0.18 * 1_000, 5);
    expect(parent?.stake).toBeCloseTo(75, 5);
  });

  it('is never below zero, even when children hold more than all', () => {
    expect(inherited(10n, [{ proportion: U64_MAX }, { proportion: U64_MAX }], [])).toBe(0n);
    expect(inherited(10n, [], [{ proportion: U64_MAX, stake: 5n }])).toBe(15n);
  });
});

describe('a chain that cannot be believed', () => {
  const refuses = async (change: (chain: StandIn) => void, why: RegExp, options: Parameters<typeof follow>[1] = {}): Promise<void> => {
    const chain = await standIn('wrapped', change);
    const { follower, metagraphs, problems } = await follow(chain, options);
    await follower.look();
    expect(problems.at(-1)).toMatch(why);
    expect(metagraphs).toEqual([]);
  };

  it('is not used when no neuron has a permit', () =>
    refuses((chain) => chain.neurons.forEach((neuron) => (neuron.permit = false)), /no neuron .* validator's permit/));
  it('is not used when the subnet has no neurons', () => refuses((chain) => (chain.neurons = []), /has 0 neurons/));
  it('is not used when it has no such subnet', () => refuses(() => undefined, /no subnet 323/, { netuid: 323 }));
  it('is not used when two neurons have one hotkey', () =>
    refuses((chain) => chain.neurons.push({ hotkey: validator, permit: true }), /same hotkey/));
  it('is not used when its bytes mean nothing', () => refuses((chain) => (chain.fault = 'garbage'), /./));
  it('is not used when it is another chain than before', () =>
    refuses(() => undefined, /another chain/, { genesis: `0x${'ab'.repeat(32)}` }));
  it('is not used when it takes too long', () =>
    refuses((chain) => (chain.slowMs = 400), /within 0\.3 s/, { timings: { connectMs: 300 } }));
  it('is not used when it never answers', () =>
    refuses((chain) => (chain.fault = 'silent'), /within 0\.3 s/, { timings: { connectMs: 300 } }));
  it('is not used when it hangs up', () => refuses((chain) => (chain.fault = 'hangup'), /No connection/));
});

describe('a connection that breaks', () => {
  it('is made anew, and the list is read again', async () => {
    const chain = await standIn();
    const { follower, metagraphs, until } = await follow(chain);
    await follower.look();
    chain.neurons.push({ hotkey: stranger, permit: true });
    chain.mine();
    chain.drop();
    await until('the new list', () => metagraphs.at(-1)?.neurons.length === 3);
  });

  it('is tried again while the node is away, until it is back', async () => {
    const chain = await standIn();
    const { follower, metagraphs, problems, until } = await follow(chain);
    await follower.look();
    await chain.down();
    await until('a problem', () => typeof problems.at(-1) === 'string');
    expect(problems.at(-1)).toContain('No connection');
    expect(metagraphs).toHaveLength(1);
    await chain.up();
    await until('the chain being back', () => metagraphs.length > 1 && problems.at(-1) === null);
  });

  it('during an advertisement sends nothing twice: the next look sees what was applied', async () => {
    const chain = await standIn('wrapped', (c) => (c.hangUpBeforeBlock = true));
    const { follower, states, until } = await follow(chain);
    follower.advertise('91.121.9.254', 8091);
    await until('the failure', () => states.at(-1)?.state === 'failed');
    await until('the truth', () => states.at(-1)?.state === 'current');
    expect(chain.received).toHaveLength(1);
  });
});

describe('advertising', () => {
  it('sends nothing for a hotkey that is not registered, and says so', async () => {
    const chain = await standIn('wrapped', (c) => c.neurons.pop());
    const { follower, states } = await follow(chain);
    follower.advertise('91.121.9.254', 8091);
    await follower.look();
    expect(states).toMatchObject([{ state: 'refused', reason: expect.stringContaining('not registered on subnet 72') as string }]);
    expect(chain.received).toEqual([]);
    expect(chain.asked).not.toContain('author_submitAndWatchExtrinsic');
  });

  it('sends nothing when the chain has the address already', async () => {
    const chain = await standIn('wrapped', (c) =>
      c.axons.set(miner, { block: 5, version: 1, ip: 1_534_659_070n, port: 8091, ipType: 4, protocol: 4 }),
    );
    const { follower, states } = await follow(chain);
    follower.advertise('91.121.9.254', 8091);
    await follower.look();
    expect(states).toMatchObject([{ state: 'current', block: 5 }]);
    expect(chain.received).toEqual([]);
  });

  it('takes IPv6', async () => {
    const chain = await standIn();
    const { follower } = await follow(chain);
    follower.advertise('2a01:4f8:c17:b8f::2', 443);
    await follower.look();
    expect(chain.axons.get(miner)).toMatchObject({ ip: 55_832_868_901_789_399_629_448_837_418_287_366_146n, ipType: 6, port: 443 });
  });

  it('refuses a private address before anything is asked of the chain', async () => {
    const { follower } = await follow(await standIn());
    expect(() => follower.advertise('192.168.0.2', 8091)).toThrow('private');
  });
});

describe('the stand-in', () => {
  const submit = async (chain: StandIn, signedExtensions: Record<string, never> | undefined): Promise<unknown> => {
    const provider = new WsProvider(chain.url);
    const api = await ApiPromise.create({ provider, noInitWarn: true, ...(signedExtensions === undefined ? {} : { signedExtensions }) });
    ends.push(() => api.disconnect());
    const pair = new Keyring({ type: 'sr25519' }).addFromMnemonic(TEST_KEYS.miner.mnemonic);
    const call = api.tx.subtensorModule?.serveAxon;
    if (call === undefined) throw new Error('no serveAxon');
    return call(72, 1, 134_744_072, 8091, 4, 4, 0, 0).signAndSend(pair, { nonce: 0 });
  };

  it('refuses what the library makes by itself of the later fee extension: the byte of the tip is missing', async () => {
    const chain = await standIn('wrapped');
    await expect(submit(chain, undefined)).rejects.toThrow('1002');
    expect(chain.received).toEqual([]);
  });

  it('takes a transaction of a signer that is not ours', async () => {
    const chain = await standIn('224');
    await submit(chain, undefined);
    expect(chain.received).toMatchObject([{ signer: miner, tip: 0 }]);
  });

  it('refuses a forged signature', async () => {
    const chain = await standIn('224');
    const provider = new WsProvider(chain.url);
    const api = await ApiPromise.create({ provider, noInitWarn: true });
    ends.push(() => api.disconnect());
    const forged = { signRaw: async () => Promise.resolve({ id: 1, signature: `0x01${'11'.repeat(63)}91` as const }) };
    const call = api.tx.subtensorModule?.serveAxon;
    const sent = call?.(72, 1, 134_744_072, 8091, 4, 4, 0, 0).signAndSend(miner, { nonce: 0, signer: forged });
    await expect(sent).rejects.toThrow('bad signature');
  });
});
