/** Where a miner is to be found: what the chain says, telling it something new (`serve_axon`), and whether it is true. */
import { request } from 'node:http';
import type { ApiPromise } from '@polkadot/api';
import type { Signer, SignerResult } from '@polkadot/api/types';
import { u8aConcat, u8aToHex, hexToU8a } from '@polkadot/util';
import { blake2AsU8a } from '@polkadot/util-crypto';
import { addressText, type PublicAddress } from './address.js';
import { withTimeout, type Chain } from './connect.js';
import { ChainError, explainRpcError, refusal } from './errors.js';
import { bigint, PALLET, storage } from './metagraph.js';

/** What the chain knows of a hotkey on a subnet. */
export interface AxonOnChain {
  /** null: the hotkey is not registered on this subnet */
  uid: number | null;
  /** null: nothing was ever advertised */
  axon: { ip: string; port: number; value: bigint; type: number; protocol: number; block: number } | null;
  /** blocks that must pass between two advertisements; 0: no limit */
  rateLimit: number;
  /** the chain's last block */
  block: number;
  blockHash: string;
}

/** Who signs: the payload's bytes in, 64 bytes sr25519 out. The key stays with whoever implements this. */
export interface PayloadSigner {
  /** SS58 */
  readonly address: string;
  sign(payload: Uint8Array): Uint8Array | Promise<Uint8Array>;
}

export interface Advertised {
  blockHash: string;
}

/** A version is advertised beside the address: that of the protocol this miner speaks, as bittensor 9.12.2 writes it. */
const PROTOCOL_VERSION = 9 * 1_000_000 + 12 * 1_000 + 2;
/** What every axon of bittensor 9 advertises (core/extrinsics/serving.py). */
const PROTOCOL = 4;
/** Blocks that a transaction is valid for: what is not in one of them can never be applied later by surprise. */
const ERA_BLOCKS = 64;
/** A longer payload is signed by its hash (sp_runtime, generic/unchecked_extrinsic.rs). */
const MAX_SIGNED_BYTES = 256;
const SR25519 = Uint8Array.of(1);

/** Reads at the chain's best block. @throws ChainError */
export async function readAxon(api: ApiPromise, netuid: number, hotkey: string): Promise<AxonOnChain> {
  const hash = await api.rpc.chain.getBlockHash();
  const [header, at] = await Promise.all([api.rpc.chain.getHeader(hash), api.at(hash)]);
  const [uid, info, limit] = await Promise.all([
    storage(at, 'uids')(netuid, hotkey),
    storage(at, 'axons')(netuid, hotkey),
    storage(at, 'servingRateLimit')(netuid),
  ]);
  const block = header.number.toNumber();
  const found = info.toJSON() as Record<string, number | string> | null;
  const base = { uid: uid.toJSON() as number | null, rateLimit: Number(bigint(limit)), block, blockHash: hash.toHex() };
  if (found === null) return { ...base, axon: null };
  const value = BigInt(found.ip ?? 0);
  const type = Number(found.ipType);
  const axon = {
    ip: addressText(value, type),
    port: Number(found.port),
    value,
    type,
    protocol: Number(found.protocol),
    block: Number(found.block),
  };
  return { ...base, axon };
}

/** Whether the chain sends validators where they should go. */
export function isCurrent(found: AxonOnChain, address: Pick<PublicAddress, 'value' | 'type'>, port: number): boolean {
  const { axon } = found;
  return axon !== null && axon.value === address.value && axon.type === address.type && axon.port === port && axon.protocol === PROTOCOL;
}

/** Blocks until another advertisement is let in (axon_passes_rate_limit, pallets/subtensor/src/subnets/serving.rs). */
export function blocksToWait(found: AxonOnChain): number {
  const last = found.axon?.block ?? 0;
  if (found.rateLimit === 0 || last === 0) return 0;
  return Math.max(0, last + found.rateLimit - found.block);
}

/** polkadot's signer on top of ours: the key never enters the library. */
function signerOf(signer: PayloadSigner): Signer {
  let last = 0;
  return {
    signRaw: async ({ data }): Promise<SignerResult> => {
      const payload = hexToU8a(data);
      const signature = await signer.sign(payload.length > MAX_SIGNED_BYTES ? blake2AsU8a(payload, 256) : payload);
      return { id: ++last, signature: u8aToHex(u8aConcat(SR25519, signature)) };
    },
  };
}

/**
 * Advertises address and port, signed by the hotkey: mortal, without a tip (the call is free of fees). Waits for the
 * block that holds it, not for its finalization: whoever lost it to a fork sees so at the next look and sends again.
 * @param timeoutMs for signing, sending and the block together; a block takes 12 s
 * @throws ChainError, with the chain's own name of the error as `code` where it refused
 */
export async function serveAxon(
  chain: Chain,
  signer: PayloadSigner,
  options: { netuid: number; address: PublicAddress; port: number; timeoutMs: number },
): Promise<Advertised> {
  const { api } = chain;
  const call = api.tx[PALLET]?.serveAxon;
  if (call === undefined) throw new ChainError("The chain's runtime has no call serve_axon: it is no subtensor. Check the endpoint.");
  const { netuid, address, port } = options;
  const send = async (): Promise<Advertised> => {
    const hash = await api.rpc.chain.getFinalizedHead();
    const [header, nonce] = await Promise.all([api.rpc.chain.getHeader(hash), api.rpc.system.accountNextIndex(signer.address)]);
    const era = api.registry.createType('ExtrinsicEra', { current: header.number.toNumber(), period: ERA_BLOCKS });
    const extrinsic = call(netuid, PROTOCOL_VERSION, address.value, port, address.type, PROTOCOL, 0, 0);
    await extrinsic.signAsync(signer.address, { signer: signerOf(signer), nonce, era, blockHash: hash, tip: 0 });
    return await new Promise<Advertised>((resolve, reject) => {
      void chain.lost.then(() =>
        reject(new ChainError('The connection was lost before the block was seen; whether it was applied shows at the next look.')),
      );
      extrinsic
        .send((result) => {
          const { status } = result;
          if (result.dispatchError !== undefined) {
            const error = result.dispatchError;
            reject(error.isModule ? refusal(api.registry.findMetaError(error.asModule).name) : refusal(error.toString()));
          } else if (result.internalError !== undefined) {
            reject(new ChainError(`The block's events could not be read: ${result.internalError.message}`));
          } else if (status.isInBlock || status.isFinalized) {
            // Finality that comes fast overtakes the news of the block.
            resolve({ blockHash: (status.isInBlock ? status.asInBlock : status.asFinalized).toHex() });
          } else if (result.isError) {
            reject(new ChainError(`The node dropped the transaction: ${status.type}.`, status.type));
          }
        })
        .catch((error: unknown) => reject(explainRpcError(error)));
    });
  };
  try {
    return await withTimeout(send(), options.timeoutMs, 'put the advertisement into a block');
  } catch (error) {
    throw explainRpcError(error);
  }
}

export type ProbeResult = { answers: true; status: number } | { answers: false; why: string };

/** Whether anything speaks HTTP at the address. Nothing is signed: any status is an answer. */
export async function probeAxon(ip: string, port: number, timeoutMs: number): Promise<ProbeResult> {
  return await new Promise<ProbeResult>((resolve) => {
    const call = request({ host: ip, port, path: '/', method: 'GET', timeout: timeoutMs, agent: false }, (response) => {
      response.resume();
      resolve({ answers: true, status: response.statusCode ?? 0 });
    });
    const deadline = setTimeout(
      () => call.destroy(Object.assign(new Error(`no answer within ${timeoutMs / 1000} s`), { code: 'ETIMEDOUT' })),
      timeoutMs,
    );
    call.on('error', (error: NodeJS.ErrnoException) => {
      const why =
        error.code === 'ECONNREFUSED'
          ? 'the connection is refused: nothing listens there'
          : error.code === 'ETIMEDOUT'
            ? error.message
            : `${error.code ?? error.message}`;
      resolve({ answers: false, why });
    });
    call.on('close', () => clearTimeout(deadline));
    call.end();
  });
}
