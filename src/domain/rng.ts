/**
 * Seeded random numbers: sfc32 (Chris Doty-Humphrey's "small fast chaotic" generator, PractRand), its 128-bit state
 * filled by splitmix32 from a number or a string. The same seed gives the same numbers on every machine.
 */

export interface Rng {
  /** uniform in [0, 1), 32 bits of it */
  next(): number;
  /** uniform whole number in [0, n). @throws RangeError unless n is a whole number of 1 to 2^32 */
  int(n: number): number;
  /** a new array in random order (Fisher-Yates); the given one is left alone */
  shuffle<T>(items: readonly T[]): T[];
  /** one of the items. @throws RangeError when there are none */
  pick<T>(items: readonly T[]): T;
  /** an independent stream, named by the label: it does not depend on how many numbers were drawn from this one */
  fork(label: string): Rng;
}

/** FNV-1a over UTF-16 code units, 32 bit. */
function hash32(text: string): number {
  let h = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) {
    h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  }
  return h >>> 0;
}

/** splitmix32: spreads a small seed over 32 bits, so that neighbouring seeds give unrelated streams. */
function splitmix(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return (z ^ (z >>> 15)) >>> 0;
  };
}

/** Two hashes over the seed's text, so that seeds collide only when 64 bits do. */
function stateOf(text: string): [number, number, number, number] {
  const one = splitmix(hash32(text));
  const two = splitmix(hash32(`${text}\u0000${text.length}`));
  return [one(), two(), one(), two()];
}

/**
 * @param seed any number (NaN and infinities are refused) or any text; 7 and '7' are different seeds
 * @throws RangeError for a number that is not finite
 */
export function seededRng(seed: number | string): Rng {
  if (typeof seed === 'number' && !Number.isFinite(seed)) throw new RangeError(`a seed must be a finite number or a text, not ${seed}`);
  const name = typeof seed === 'number' ? `n${seed}` : `s${seed}`;
  let [a, b, c, counter] = stateOf(name);

  function uint32(): number {
    const t = (((a + b) | 0) + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (c << 21) | (c >>> 11);
    c = (c + t) | 0;
    return t >>> 0;
  }
  // The first numbers still show the seed's pattern.
  for (let i = 0; i < 12; i++) uint32();

  function int(n: number): number {
    if (!Number.isInteger(n) || n < 1 || n > 2 ** 32) throw new RangeError(`int(n) needs a whole number of 1 to 2^32, not ${n}`);
    // Numbers beyond the last whole multiple of n would favour small results.
    const limit = 2 ** 32 - (2 ** 32 % n);
    let x = uint32();
    while (x >= limit) x = uint32();
    return x % n;
  }

  return {
    next: () => uint32() / 2 ** 32,
    int,
    shuffle<T>(items: readonly T[]): T[] {
      const out = [...items];
      for (let i = out.length - 1; i > 0; i--) {
        const j = int(i + 1);
        [out[i], out[j]] = [out[j] as T, out[i] as T];
      }
      return out;
    },
    pick<T>(items: readonly T[]): T {
      if (items.length === 0) throw new RangeError('nothing to pick from');
      return items[int(items.length)] as T;
    },
    fork: (label: string) => seededRng(`${name}/${label}`),
  };
}
