/** The neurons of a subnet as storage has them, all at one block. */
import type { ApiPromise } from '@polkadot/api';
import { z } from 'zod';
import { ChainError } from './errors.js';

export const ChainNeuron = z.object({
  uid: z.number().int().min(0),
  /** SS58 address, prefix 42 */
  hotkey: z.string().min(1),
  validatorPermit: z.boolean(),
  /** stake weight: alpha on this subnet plus weighted TAO on the root, in units of 10^9 rao */
  stake: z.number(),
});
export type ChainNeuron = z.infer<typeof ChainNeuron>;

export const ChainMetagraph = z.object({
  netuid: z.number().int(),
  /** genesis hash of the chain */
  genesis: z.string(),
  block: z.number().int(),
  blockHash: z.string(),
  /** when it was read, ms since the epoch */
  at: z.number(),
  neurons: z.array(ChainNeuron),
});
export type ChainMetagraph = z.infer<typeof ChainMetagraph>;

export const PALLET = 'subtensorModule';
const ROOT_NETUID = 0;
const U64_MAX = 2n ** 64n - 1n;
const RAO = 1e9;
/** More than any subnet holds (256); a node that claims more is not believed. */
const MAX_NEURONS = 4096;
/** Keys asked for in one request. */
const CHUNK = 512;

/** What is needed of polkadot's storage entries; types come from the chain's metadata, so all values are checked here. */
type Codec = { toString(): string; toJSON(): unknown; toHex(): string };
type Entry = ((...args: unknown[]) => Promise<Codec>) & { multi(keys: unknown[]): Promise<Codec[]> };
type At = Awaited<ReturnType<ApiPromise['at']>>;

/** @throws ChainError when this chain's runtime has no such storage */
export function storage(at: At | ApiPromise, name: string): Entry {
  const entry = (at.query[PALLET] as unknown as Record<string, Entry> | undefined)?.[name];
  if (entry === undefined) {
    throw new ChainError(
      `The chain's runtime has no storage ${PALLET}.${name}: it is no subtensor, or one that this version of the miner does not know. Check the endpoint, or update.`,
    );
  }
  return entry;
}

async function many(entry: Entry, keys: readonly unknown[]): Promise<Codec[]> {
  const found: Codec[] = [];
  for (let i = 0; i < keys.length; i += CHUNK) found.push(...(await entry.multi(keys.slice(i, i + CHUNK))));
  if (found.length !== keys.length) throw new ChainError(`The node answered ${found.length} values for ${keys.length} keys.`);
  return found;
}

/** Numbers wrapped by the runtime's own types (NetUid, AlphaCurrency) read as the number inside. */
export function bigint(value: Codec): bigint {
  const text = value.toString();
  if (!/^\d+$/.test(text)) throw new ChainError(`The node answered ${text.slice(0, 80)} where a number belongs.`);
  return BigInt(text);
}

/** [proportion of 2^64 - 1, hotkey] */
function shares(value: Codec): { proportion: bigint; hotkey: string }[] {
  const list = value.toJSON();
  if (!Array.isArray(list)) throw new ChainError('The node answered no list where parents or children of a hotkey belong.');
  return list.map((pair: unknown) => {
    const [proportion, hotkey] = pair as [number | string, string];
    return { proportion: BigInt(proportion), hotkey };
  });
}

/**
 * Stake that a hotkey has the say of: its own less what its children hold of it, plus its part of its parents'.
 * Source: get_inherited_for_hotkey_on_subnet, pallets/subtensor/src/staking/stake_utils.rs. All in rao.
 */
export function inherited(
  own: bigint,
  children: readonly { proportion: bigint }[],
  parents: readonly { proportion: bigint; stake: bigint }[],
): bigint {
  const given = children.reduce((sum, child) => sum + (own * child.proportion) / U64_MAX, 0n);
  const got = parents.reduce((sum, parent) => sum + (parent.stake * parent.proportion) / U64_MAX, 0n);
  return (given > own ? 0n : own - given) + got;
}

/**
 * Reads the subnet at the last finalized block.
 *
 * Stake is the subnet's stake weight, the figure validators' permits and `btcli`'s metagraph go by
 * (get_stake_weights_for_network): alpha on this subnet + TaoWeight x TAO on the root, each with what is delegated to and
 * from child hotkeys. A validator on a child hotkey has hardly any stake of its own, so own stake alone would refuse it.
 * @param at ms since the epoch, now
 * @throws ChainError when the node answers nonsense, or a subnet without neurons or without a single permit: such an
 *   answer never replaces a good list
 */
export async function readMetagraph(api: ApiPromise, genesis: string, netuid: number, at: number): Promise<ChainMetagraph> {
  const hash = await api.rpc.chain.getFinalizedHead();
  const [header, state] = await Promise.all([api.rpc.chain.getHeader(hash), api.at(hash)]);
  const query = (name: string): Entry => storage(state, name);
  const [added, count, permits, taoWeight] = await Promise.all([
    query('networksAdded')(netuid),
    query('subnetworkN')(netuid),
    query('validatorPermit')(netuid),
    query('taoWeight')(),
  ]);
  if (added.toJSON() !== true) {
    throw new ChainError(
      `This chain (genesis ${genesis.slice(0, 10)}...) has no subnet ${netuid}. Check endpoint and netuid: 72 on the main network, 323 on the test network.`,
    );
  }
  const n = Number(bigint(count));
  if (n < 1 || n > MAX_NEURONS) throw new ChainError(`The node says that subnet ${netuid} has ${n} neurons: not believed.`);
  const permitted = permits.toJSON();
  if (!Array.isArray(permitted) || permitted.length < n)
    throw new ChainError(
      `The node knows the permits of ${Array.isArray(permitted) ? permitted.length : 'none'} of ${n} neurons: not believed.`,
    );
  if (!permitted.some((permit) => permit === true))
    throw new ChainError(`The node says that no neuron of subnet ${netuid} has a validator's permit: not believed, nobody could ask.`);

  const uids = Array.from({ length: n }, (_, uid) => uid);
  const hotkeys = (
    await many(
      query('keys'),
      uids.map((uid) => [netuid, uid]),
    )
  ).map((key) => key.toString());
  if (new Set(hotkeys).size !== n) throw new ChainError(`The node gave the same hotkey to several of the ${n} neurons: not believed.`);
  const onSubnet = hotkeys.map((hotkey) => [hotkey, netuid]);
  const [alphas, taos, parents, children] = await Promise.all([
    many(query('totalHotkeyAlpha'), onSubnet),
    many(
      query('totalHotkeyAlpha'),
      hotkeys.map((hotkey) => [hotkey, ROOT_NETUID]),
    ),
    many(query('parentKeys'), onSubnet).then((list) => list.map(shares)),
    many(query('childKeys'), onSubnet).then((list) => list.map(shares)),
  ]);
  const elders = [...new Set(parents.flat().map((parent) => parent.hotkey))];
  const [elderAlphas, elderTaos] = await Promise.all([
    many(
      query('totalHotkeyAlpha'),
      elders.map((hotkey) => [hotkey, netuid]),
    ),
    many(
      query('totalHotkeyAlpha'),
      elders.map((hotkey) => [hotkey, ROOT_NETUID]),
    ),
  ]);
  const of = (values: readonly Codec[], i: number): bigint => {
    const value = values[i];
    return value === undefined ? 0n : bigint(value);
  };
  const elder = new Map(elders.map((hotkey, i) => [hotkey, { alpha: of(elderAlphas, i), tao: of(elderTaos, i) }]));
  const weight = bigint(taoWeight);
  const neurons = hotkeys.map((hotkey, uid): ChainNeuron => {
    const from = (kind: 'alpha' | 'tao'): { proportion: bigint; stake: bigint }[] =>
      (parents[uid] ?? []).map((parent) => ({ proportion: parent.proportion, stake: elder.get(parent.hotkey)?.[kind] ?? 0n }));
    const alpha = inherited(of(alphas, uid), children[uid] ?? [], from('alpha'));
    const tao = inherited(of(taos, uid), children[uid] ?? [], from('tao'));
    return { uid, hotkey, validatorPermit: permitted[uid] === true, stake: Number(alpha + (tao * weight) / U64_MAX) / RAO };
  });
  return { netuid, genesis, block: header.number.toNumber(), blockHash: hash.toHex(), at, neurons };
}
