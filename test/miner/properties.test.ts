/** What must hold for every header, body, nonce and rate, not for chosen ones. Seeds are random; a failure prints its own. */
import fc from 'fast-check';
import { mkdtempSync, readdirSync, rmSync, appendFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { BodyError, imageOf, structureBytes } from '../../src/miner/body.js';
import { NONCE_FUTURE_NS, NONCE_PAST_NS, NonceLog, NonceTable } from '../../src/miner/nonces.js';
import { RateLimiter } from '../../src/miner/rate.js';
import { SKEW_LIMIT_MS, SkewMeter } from '../../src/miner/skew.js';
import { NotVerifiedError, requestId, Verifier } from '../../src/miner/verify.js';
import { hotkeyFromMnemonic, type Hotkey } from '../../src/platform/bittensor/keys.js';
import {
  HEADERS,
  parseDendriteHeaders,
  parseTimeout,
  pingAnswer,
  ProtocolError,
  protocolReady,
} from '../../src/platform/bittensor/protocol.js';
import { claimedSize } from '../../src/platform/inference/imageHeader.js';
import { ImageError } from '../../src/platform/inference/preprocess.js';
import { signed } from '../support/requests.js';
import { TEST_KEYS } from './vectors.js';

const NOW = 1_795_476_273_918_569_471n;
const MINER = TEST_KEYS.miner.ss58;
let validator: Hotkey;
beforeAll(async () => {
  await protocolReady();
  validator = await hotkeyFromMnemonic(TEST_KEYS.validator.mnemonic);
});
const genuine = (nonce: bigint, uuid = 'u', timeoutSeconds = 9) => signed(validator, MINER, { nonce, uuid, timeoutSeconds });

describe('any headers', () => {
  const value = fc.oneof(
    fc.string({ unit: 'binary', maxLength: 200 }),
    fc.constant(undefined),
    fc.array(fc.string(), { maxLength: 3 }),
    fc.bigInt().map(String),
  );

  it('are parsed or refused with a reason, and nothing else happens', () => {
    fc.assert(
      fc.property(fc.record(Object.fromEntries(Object.values(HEADERS).map((name) => [name, value])), { requiredKeys: [] }), (headers) => {
        try {
          const parsed = parseDendriteHeaders(headers);
          expect(parsed.signature).toHaveLength(64);
          expect(parsed.timeoutS).toBeGreaterThan(0);
          expect(parsed.timeoutS).toBeLessThanOrEqual(9);
        } catch (error) {
          expect(error).toBeInstanceOf(ProtocolError);
        }
        const ping = pingAnswer(headers, { ip: '127.0.0.1', port: 8091 }, 0.001);
        expect(() => JSON.parse(ping.body) as unknown).not.toThrow();
        for (const text of Object.values(ping.headers)) expect(text).toMatch(/^[\x20-\x7e]*$/);
      }),
      { numRuns: 500 },
    );
  });

  it('of which one is altered do not verify, but for those nobody signs', () => {
    const signed = [HEADERS.nonce, HEADERS.uuid, HEADERS.hotkey, HEADERS.signature, HEADERS.bodyHash];
    const base = genuine(NOW);
    const verifier = new Verifier(MINER, () => NOW);
    fc.assert(
      fc.property(fc.constantFrom(...signed), value, (name, changed) => {
        fc.pre(changed !== base[name]);
        expect(() => verifier.verify({ ...base, [name]: changed })).toThrow(NotVerifiedError);
      }),
      { numRuns: 300 },
    );
    fc.assert(
      fc.property(
        fc.constantFrom(HEADERS.dendriteVersion, HEADERS.timeout, HEADERS.axonHotkey, HEADERS.totalSize, HEADERS.name),
        value,
        (name, changed) => {
          expect(verifier.verify({ ...base, [name]: changed }).nonce).toBe(NOW);
        },
      ),
      { numRuns: 30 },
    );
  });

  it('claim no time-out beyond the validators’ own', () => {
    fc.assert(
      fc.property(
        fc.oneof(fc.double().map(String), fc.string(), fc.bigInt().map(String)),
        (text) => parseTimeout(text) > 0 && parseTimeout(text) <= 9,
      ),
    );
  });
});

describe('any nonce', () => {
  const offset = fc.bigInt({ min: -40n * 10n ** 9n, max: 40n * 10n ** 9n });

  it('is accepted exactly when it is in the window and new, whatever version and time-out claim', () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.record({
            at: offset,
            uuid: fc.constantFrom('a', 'b'),
            timeout: fc.constantFrom(0.1, 9, 1e9),
            version: fc.constantFrom('1', '9012002', ''),
          }),
          { maxLength: 8 },
        ),
        (requests) => {
          const verifier = new Verifier(MINER, () => NOW);
          const used = new Set<string>();
          for (const { at, uuid, timeout, version } of requests) {
            const nonce = NOW + at;
            const expected = at > -NONCE_PAST_NS && at <= NONCE_FUTURE_NS && !used.has(`${uuid}:${nonce}`);
            let accepted = true;
            try {
              verifier.accept(verifier.verify({ ...genuine(nonce, uuid, timeout), [HEADERS.dendriteVersion]: version }));
            } catch (error) {
              expect(error).toBeInstanceOf(NotVerifiedError);
              accepted = false;
            }
            expect(accepted).toBe(expected);
            if (accepted) used.add(`${uuid}:${nonce}`);
          }
        },
      ),
      { numRuns: 40 },
    );
  });

  it('is refused a second time as long as it could be accepted, however time goes on, and the table holds the window only', () => {
    const step = fc.record({
      wait: fc.bigInt({ min: 0n, max: 4n * 10n ** 9n }),
      ahead: fc.bigInt({ min: -NONCE_PAST_NS + 1n, max: NONCE_FUTURE_NS }),
    });
    fc.assert(
      fc.property(fc.array(step, { minLength: 1, maxLength: 60 }), (steps) => {
        const table = new NonceTable(1000);
        let now = NOW;
        const seen: { id: string; nonce: bigint }[] = [];
        for (const [i, { wait, ahead }] of steps.entries()) {
          now += wait;
          const nonce = now + ahead;
          table.add(String(i), nonce, now);
          seen.push({ id: String(i), nonce });
          for (const one of seen) if (one.nonce > now - NONCE_PAST_NS) expect(table.has(one.id, one.nonce)).toBe(true);
        }
        const kept = seen.filter((one) => one.nonce > now - NONCE_PAST_NS - 10n ** 9n).length;
        expect(table.size).toBeLessThanOrEqual(kept);
      }),
      { numRuns: 100 },
    );
  });
});

describe('used nonces on disk', () => {
  const quiet = { warn: () => undefined };
  let dir: string;
  beforeEach(() => {
    dir = mkdtempSync(path.join(os.tmpdir(), 'flywheel-nonces-'));
  });
  afterEach(() => rmSync(dir, { recursive: true }));
  const id = (i: number): string => requestId({ hotkey: 'h', uuid: 'u', nonce: BigInt(i) });

  it('are there for the next process at once, without a close', () => {
    const { log } = NonceLog.open(dir, quiet);
    for (let i = 0; i < 50; i++) log.append(id(i), NOW + BigInt(i));
    const { recent, log: next } = NonceLog.open(dir, quiet);
    expect(recent).toEqual(Array.from({ length: 50 }, (_, i) => ({ id: id(i), nonce: NOW + BigInt(i) })));
    log.close();
    next.close();
  });

  it('are read although the last line is torn or a line is damaged', () => {
    const { log } = NonceLog.open(dir, quiet);
    log.append(id(1), NOW);
    log.close();
    const [file] = readdirSync(dir);
    appendFileSync(path.join(dir, file as string), `garbage\n${NOW} ${id(2)}\n${NOW} ${id(3).slice(0, 20)}`);
    expect(NonceLog.open(dir, quiet).recent.map((one) => one.id)).toEqual([id(1), id(2)]);
  });

  it('that cannot be written down are counted, and told of once', () => {
    const told: string[] = [];
    const { log } = NonceLog.open(dir, { warn: (_fields, message) => told.push(message) });
    rmSync(dir, { recursive: true });
    for (let i = 0; i < 3; i++) log.append(id(i), NOW);
    expect([log.failed, told.length]).toEqual([3, 1]);
    dir = mkdtempSync(path.join(os.tmpdir(), 'flywheel-nonces-'));
  });
});

describe('the rate of a hotkey', () => {
  const rate = fc.record({ perSecond: fc.integer({ min: 1, max: 100 }), burst: fc.integer({ min: 1, max: 50 }) });
  const asks = fc.array(fc.record({ waitMs: fc.integer({ min: 0, max: 300 }), key: fc.constantFrom('a', 'b') }), { maxLength: 300 });

  it('never lets more through in any stretch of time than the burst and what that time brings', () => {
    fc.assert(
      fc.property(rate, asks, (limits, sequence) => {
        let now = 0;
        const limiter = new RateLimiter(limits, () => now);
        const let_: Record<string, number[]> = { a: [], b: [] };
        for (const { waitMs, key } of sequence) {
          now += waitMs;
          if (limiter.take(key)) (let_[key] as number[]).push(now);
        }
        for (const times of Object.values(let_))
          for (let from = 0; from < times.length; from++)
            for (let to = from; to < times.length; to += 7)
              expect(to - from + 1).toBeLessThanOrEqual(
                limits.burst + (((times[to] as number) - (times[from] as number)) / 1000) * limits.perSecond + 1e-6,
              );
      }),
      { numRuns: 60 },
    );
  });

  it('refuses nobody who keeps within it, whatever another does', () => {
    fc.assert(
      fc.property(rate, fc.array(fc.integer({ min: 0, max: 50 }), { maxLength: 50 }), (limits, noise) => {
        let now = 0;
        const limiter = new RateLimiter(limits, () => now);
        for (const many of noise) {
          for (let i = 0; i < many; i++) limiter.take('noisy');
          now += 1000 / limits.perSecond + 1e-6;
          expect(limiter.take('steady')).toBe(true);
        }
      }),
      { numRuns: 60 },
    );
  });

  it('is not won back by a clock that goes back, and the table is bounded', () => {
    let now = 1000;
    const limiter = new RateLimiter({ perSecond: 1, burst: 1 }, () => now, 10);
    expect(limiter.take('a')).toBe(true);
    now = 0;
    expect(limiter.take('a')).toBe(false);
    now = 1999;
    expect(limiter.take('a')).toBe(false);
    now = 2001;
    expect(limiter.take('a')).toBe(true);
    for (let i = 0; i < 100; i++) limiter.take(`other ${i}`);
    expect(limiter.size).toBe(10);
  });
});

describe('the clock, seen through nonces', () => {
  it('is off by the median over validators, whatever a minority of them claims', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: -4000, max: 4000 }),
        fc.array(fc.integer({ min: -13_000, max: 5000 }), { maxLength: 2 }),
        (truth, liars) => {
          const meter = new SkewMeter(() => 0);
          for (let v = 0; v < 3; v++) for (const noise of [-30, 0, 30]) meter.note(`honest ${v}`, truth + noise, true);
          liars.forEach((lie, i) => meter.note(`liar ${i}`, lie, true));
          expect(Math.abs((meter.aheadMs as number) - truth)).toBeLessThanOrEqual(30);
          expect(meter.problem !== null).toBe(Math.abs(meter.aheadMs as number) > SKEW_LIMIT_MS);
        },
      ),
    );
  });

  it('is known for wrong even when every request is refused for its nonce', () => {
    const meter = new SkewMeter(() => 0);
    expect(meter.problem).toBeNull();
    meter.note('a', 60_000, false);
    meter.note('b', 61_000, false);
    expect(meter.aheadMs).toBeNull();
    expect(meter.problem).toMatch(/60\.5 s behind the validators'.*none is accepted/);
  });

  it('is not judged by what is long past', () => {
    let now = 0;
    const meter = new SkewMeter(() => now);
    meter.note('a', -9000, true);
    expect(meter.problem).toMatch(/9\.0 s ahead of the validators'/);
    now = 31 * 60_000;
    expect([meter.aheadMs, meter.problem]).toEqual([null, null]);
  });
});

describe('any body', () => {
  it('gives the bytes of its image, or an error with a status', () => {
    const body = fc.oneof(
      fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
      fc.json().map((text) => Buffer.from(text)),
      fc
        .record({ image: fc.oneof(fc.string(), fc.integer(), fc.base64String(), fc.constant(null)), more: fc.jsonValue() })
        .map((value) => Buffer.from(JSON.stringify(value))),
    );
    fc.assert(
      fc.property(body, (bytes) => {
        try {
          expect(imageOf(bytes).length).toBeGreaterThan(0);
        } catch (error) {
          expect(error).toBeInstanceOf(BodyError);
          expect([400, 422]).toContain((error as BodyError).status);
        }
      }),
      { numRuns: 1000 },
    );
  });

  it('brings its image through unchanged', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 1, maxLength: 500 }), fc.jsonValue(), (image, more) => {
        expect(imageOf(Buffer.from(JSON.stringify({ more, image: Buffer.from(image).toString('base64') })))).toEqual(Buffer.from(image));
      }),
    );
  });

  it('is weighed by what stands outside of its texts', () => {
    const outside = (value: unknown): number =>
      JSON.stringify(value).length - JSON.stringify(value).replace(/"(?:[^"\\]|\\.)*"/g, '""').length;
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        const text = Buffer.from(JSON.stringify(value), 'latin1');
        expect(structureBytes(text)).toBe(text.length - outside(JSON.parse(text.toString('latin1'))));
      }),
    );
  });

  it('of nothing but brackets is refused before it is built', () => {
    const deep = Buffer.alloc(16 * 1024 * 1024, '[');
    const before = process.memoryUsage().rss;
    expect(() => imageOf(deep)).toThrow(/more structure than any synapse/);
    expect(process.memoryUsage().rss - before).toBeLessThan(64 * 1024 * 1024);
  });
});

describe('the size in any image header', () => {
  const MAGIC = [
    [0xff, 0xd8, 0xff],
    [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a],
    [...Buffer.from('GIF89a')],
    [...Buffer.from('RIFF0000WEBPVP8X')],
    [...Buffer.from('RIFF0000WEBPVP8L')],
    [...Buffer.from('II*\0')],
    [...Buffer.from('MM\0*')],
  ];
  it('is read or not found, in bounded time, and nothing is thrown but an ImageError', () => {
    fc.assert(
      fc.property(fc.constantFrom(...MAGIC), fc.uint8Array({ maxLength: 400 }), (magic, rest) => {
        try {
          const size = claimedSize(Buffer.from([...magic, ...rest]));
          if (size !== null) expect([size.width >= 0, size.height >= 0]).toEqual([true, true]);
        } catch (error) {
          expect(error).toBeInstanceOf(ImageError);
        }
      }),
      { numRuns: 2000 },
    );
  });
});
