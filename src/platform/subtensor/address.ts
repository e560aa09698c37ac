/** Addresses: which may be advertised to validators, and how the chain writes them. */
import { BlockList, isIP } from 'node:net';
import { BadInputError } from '../../domain/errors.js';

export interface PublicAddress {
  /** as people write it */
  text: string;
  /** 4 or 6 */
  type: 4 | 6;
  /** the address as the chain has it: a number, most significant byte first */
  value: bigint;
}

/** Networks that nobody reaches from the internet (IANA special-purpose registries, RFC 6890), by why. */
const NOT_PUBLIC: readonly (readonly [string, readonly string[]])[] = [
  ['the unspecified address', ['0.0.0.0/8', '::/128']],
  ['a loopback address', ['127.0.0.0/8', '::1/128']],
  ['a private address', ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', 'fc00::/7']],
  ['an address of the provider behind its own translation (CGNAT)', ['100.64.0.0/10']],
  ['a link-local address', ['169.254.0.0/16', 'fe80::/10']],
  ['a multicast or broadcast address', ['224.0.0.0/4', 'ff00::/8', '255.255.255.255/32']],
  [
    'reserved for documentation, tests or the future',
    [
      '192.0.0.0/24',
      '192.0.2.0/24',
      '198.18.0.0/15',
      '198.51.100.0/24',
      '203.0.113.0/24',
      '240.0.0.0/4',
      '64:ff9b::/96',
      '100::/64',
      '2001:db8::/32',
      '3fff::/20',
    ],
  ],
];

const LISTS = NOT_PUBLIC.map(([why, nets]) => {
  const list = new BlockList();
  for (const net of nets) {
    const [address = '', bits = ''] = net.split('/');
    list.addSubnet(address, Number(bits), isIP(address) === 4 ? 'ipv4' : 'ipv6');
  }
  return [why, list] as const;
});

/** @returns the number that the chain stores for it; `text` must be an IP address without zone */
function toNumber(text: string, type: 4 | 6): bigint {
  if (type === 4) return text.split('.').reduce((sum, part) => sum * 256n + BigInt(part), 0n);
  // The last 32 bits may be written as an IPv4 address.
  const dotted = /^(.*:)(\d+\.\d+\.\d+\.\d+)$/.exec(text);
  const low = dotted === null ? null : toNumber(dotted[2] ?? '', 4);
  const plain = low === null ? text : `${dotted?.[1] ?? ''}${(low >> 16n).toString(16)}:${(low & 0xffffn).toString(16)}`;
  const [head = '', tail] = plain.split('::');
  const groups = (part: string): string[] => (part === '' ? [] : part.split(':'));
  const after = tail === undefined ? [] : groups(tail);
  const before = groups(head);
  const all = tail === undefined ? before : [...before, ...Array<string>(8 - before.length - after.length).fill('0'), ...after];
  return all.reduce((sum, group) => sum * 65_536n + BigInt(`0x${group}`), 0n);
}

/**
 * @param text IPv4 or IPv6 address
 * @throws BadInputError when it is no address, or one that validators cannot reach
 */
export function publicAddress(text: string): PublicAddress {
  const type = isIP(text);
  if ((type !== 4 && type !== 6) || text.includes('%')) {
    throw new BadInputError(
      `The external address ${JSON.stringify(text)} is no IP address. Nothing was advertised. Give the IPv4 or IPv6 address that validators reach from the internet; the chain takes no host names.`,
    );
  }
  const value = toNumber(text, type);
  const mapped = type === 6 && value >> 32n === 0xffffn ? 'an IPv4 address in IPv6 clothes: write it as IPv4' : null;
  const why = mapped ?? LISTS.find(([, list]) => list.check(text, type === 4 ? 'ipv4' : 'ipv6'))?.[0];
  if (why !== undefined) {
    throw new BadInputError(
      `The external address ${text} is ${why}. Validators cannot reach it so; nothing was advertised. Give the public address of this machine or of its router with --external-ip.`,
    );
  }
  return { text, type, value };
}

/** The address as people write it. @param value as on the chain. @param type 4 or 6; anything else is written as a number */
export function addressText(value: bigint, type: number): string {
  if (type === 4) return [24n, 16n, 8n, 0n].map((shift) => ((value >> shift) & 255n).toString()).join('.');
  if (type !== 6) return value.toString();
  const groups = Array.from({ length: 8 }, (_, i) => ((value >> BigInt(16 * (7 - i))) & 0xffffn).toString(16)).join(':');
  // The URL parser knows how an IPv6 address is shortened.
  return new URL(`http://[${groups}]/`).hostname.slice(1, -1);
}

/** An endpoint for logs and messages: without user, password, path and query, where providers put their keys. */
export function endpointName(endpoint: string): string {
  try {
    const { protocol, host } = new URL(endpoint);
    return `${protocol}//${host}`;
  } catch {
    return 'the endpoint';
  }
}
