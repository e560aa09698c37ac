/** What goes wrong with a chain, in words that say what to do. */

/** The node is out of reach, answers nonsense, or refuses; tried again later unless `final`. */
export class ChainError extends Error {
  override name = 'ChainError';
  constructor(
    message: string,
    /** name of the chain's own error where it gave one, e.g. ServingRateLimitExceeded */
    readonly code: string | null = null,
    options?: { cause: unknown },
  ) {
    super(message, options);
  }
}

/**
 * Codes that the runtime's transaction extension answers with before a call is let into a block
 * (opentensor/subtensor, common/src/transaction_error.rs); those that serve_axon can meet.
 */
const CUSTOM: Readonly<Record<number, string>> = {
  2: 'BalanceTooLow',
  3: 'SubnetNotExists',
  4: 'HotkeyAccountDoesntExist',
  6: 'RateLimitExceeded',
  10: 'HotKeyNotRegisteredInNetwork',
  11: 'InvalidIpAddress',
  12: 'ServingRateLimitExceeded',
  13: 'InvalidPort',
  19: 'UidNotFound',
  28: 'InvalidIpType',
  255: 'BadRequest',
};

/** What the operator can do, by the name of the chain's error. */
const WHAT_TO_DO: Readonly<Record<string, string>> = {
  HotKeyNotRegisteredInNetwork: 'register the hotkey on this subnet (btcli subnet register), or choose the netuid it is registered on',
  HotKeyNotRegisteredInSubNet: 'register the hotkey on this subnet (btcli subnet register), or choose the netuid it is registered on',
  NotRegistered: 'register the hotkey on this subnet (btcli subnet register), or choose the netuid it is registered on',
  SubnetNotExists:
    'there is no subnet of this number on this chain: choose the right netuid (72 on the main network, 323 on the test network)',
  InvalidIpAddress: 'give the address that validators reach from the internet with --external-ip',
  InvalidIpType: 'give an IPv4 or IPv6 address with --external-ip',
  InvalidPort: 'give a port from 1 to 65535 with --external-port',
  ServingRateLimitExceeded: 'nothing: it is sent again when the time is over',
};

/** @param name the chain's own name of the error */
export function refusal(name: string): ChainError {
  const todo = WHAT_TO_DO[name];
  return new ChainError(`The chain refused: ${name}.${todo === undefined ? '' : ` What to do: ${todo}.`}`, name);
}

/** Makes sense of what an RPC call threw: `1010: Invalid Transaction: Custom error: 12` and the like. */
export function explainRpcError(error: unknown): ChainError {
  if (error instanceof ChainError) return error;
  const text = error instanceof Error ? error.message : String(error);
  const custom = /Custom error: (\d+)/.exec(text)?.[1];
  if (custom !== undefined) return refusal(CUSTOM[Number(custom)] ?? `custom error ${custom}`);
  const first = text.split('\n')[0] ?? '';
  return new ChainError(`The node answered with an error: ${first.length > 300 ? `${first.slice(0, 297)}...` : first}`, null, {
    cause: error,
  });
}
