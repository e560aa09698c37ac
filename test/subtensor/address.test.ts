import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { addressText, endpointName, publicAddress } from '../../src/platform/subtensor/address.js';

describe('publicAddress', () => {
  // bittensor 9.12.2 writes int(netaddr.IPAddress(text)) (utils/networking.py, ip_to_int); Python's ipaddress gives the same.
  it.each([
    ['8.8.8.8', 4, 134_744_072n],
    ['91.121.9.254', 4, 1_534_659_070n],
    ['2001:4860:4860::8888', 6, 42_541_956_123_769_884_636_017_138_956_568_135_816n],
    ['2a01:4f8:c17:b8f::2', 6, 55_832_868_901_789_399_629_448_837_418_287_366_146n],
  ])('writes %s as bittensor does', (text, type, value) => {
    expect(publicAddress(text)).toEqual({ text, type, value });
  });

  it.each([
    ['127.0.0.1', 'loopback'],
    ['::1', 'loopback'],
    ['10.1.2.3', 'private'],
    ['172.31.0.1', 'private'],
    ['192.168.1.1', 'private'],
    ['fd00::1', 'private'],
    ['100.64.0.1', 'CGNAT'],
    ['169.254.1.1', 'link-local'],
    ['fe80::1', 'link-local'],
    ['224.0.0.1', 'multicast'],
    ['255.255.255.255', 'multicast or broadcast'],
    ['0.0.0.0', 'unspecified'],
    ['::', 'unspecified'],
    ['203.0.113.7', 'reserved'],
    ['2001:db8::1', 'reserved'],
    ['::ffff:8.8.8.8', 'write it as IPv4'],
  ])('refuses %s: %s', (text, why) => {
    expect(() => publicAddress(text)).toThrow(why);
    expect(() => publicAddress(text)).toThrow('nothing was advertised');
  });

  it.each(['', 'example.com', '8.8.8', '8.8.8.8:80', 'fe80::1%eth0', '1.2.3.4.5'])('refuses %j, which is no address', (text) => {
    expect(() => publicAddress(text)).toThrow('is no IP address');
  });

  it('reads back every address that it writes', () => {
    const roundTrip = (text: string, type: number): void => {
      let found;
      try {
        found = publicAddress(text);
      } catch {
        return;
      }
      expect(publicAddress(addressText(found.value, type)).value).toBe(found.value);
    };
    fc.assert(fc.property(fc.ipV4(), (text) => roundTrip(text, 4)));
    fc.assert(fc.property(fc.ipV6(), (text) => roundTrip(text, 6)));
  });
});

describe('endpointName', () => {
  it('leaves out everything that may be a secret', () => {
    expect(endpointName('wss://user:pass@node.example:9944/v1/KEY?token=abc')).toBe('wss://node.example:9944');
    expect(endpointName('nonsense')).toBe('the endpoint');
  });
});
