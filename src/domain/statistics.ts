/** The few quantiles that verdicts need. */

/** Quantile of sorted values with linear interpolation (numpy's default); NaN for none. @param q in [0, 1] */
export function quantile(sorted: ArrayLike<number>, q: number): number {
  if (sorted.length === 0) return NaN;
  const at = Math.min(1, Math.max(0, q)) * (sorted.length - 1);
  const low = Math.floor(at);
  const a = sorted[low] as number;
  const b = sorted[Math.min(sorted.length - 1, low + 1)] as number;
  return a + (b - a) * (at - low);
}

/** Quantile of the standard normal distribution (P. J. Acklam's rational approximation, relative error below 1.2e-9). @param p in [0, 1] */
export function normalQuantile(p: number): number {
  if (p <= 0) return -Infinity;
  if (p >= 1) return Infinity;
  if (p > 0.5) return -normalQuantile(1 - p);
  if (p < 0.02425) {
    const q = Math.sqrt(-2 * Math.log(p));
    return (
      (((((-7.784894002430293e-3 * q - 3.223964580411365e-1) * q - 2.400758277161838) * q - 2.549732539343734) * q + 4.374664141464968) *
        q +
        2.938163982698783) /
      ((((7.784695709041462e-3 * q + 3.224671290700398e-1) * q + 2.445134137142996) * q + 3.754408661907416) * q + 1)
    );
  }
  const q = p - 0.5;
  const r = q * q;
  return (
    ((((((-39.69683028665376 * r + 220.9460984245205) * r - 275.9285104469687) * r + 138.357751867269) * r - 30.66479806614716) * r +
      2.506628277459239) *
      q) /
    (((((-54.47609879822406 * r + 161.5858368580409) * r - 155.6989798598866) * r + 66.80131188771972) * r - 13.28068155288572) * r + 1)
  );
}

/**
 * Upper quantile of Student's t: the value exceeded with probability `tail` (G. W. Hill, CACM algorithm 396).
 * @param tail in (0, 0.5]; 0 gives infinity @param df degrees of freedom, at least 1, need not be whole
 */
export function tQuantile(tail: number, df: number): number {
  if (tail <= 0) return Infinity;
  if (tail >= 0.5) return 0;
  const p = 2 * tail;
  const n = Math.max(1, df);
  if (n === 1) return Math.cos((p * Math.PI) / 2) / Math.sin((p * Math.PI) / 2);
  if (n === 2) return Math.sqrt(2 / (p * (2 - p)) - 2);
  const a = 1 / (n - 0.5);
  const b = 48 / (a * a);
  let c = (((20700 * a) / b - 98) * a - 16) * a + 96.36;
  const d = ((94.5 / (b + c) - 3) / b + 1) * Math.sqrt((a * Math.PI) / 2) * n;
  let y = (d * p) ** (2 / n);
  if (y > 0.05 + a) {
    const x = normalQuantile(p / 2);
    y = x * x;
    if (n < 5) c += 0.3 * (n - 4.5) * (x + 0.6);
    c += (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b;
    y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x;
    y = a * y * y;
    y = y > 0.002 ? Math.exp(y) - 1 : 0.5 * y * y + y;
  } else {
    y = ((1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)) * y - 1) * ((n + 1) / (n + 2)) + 1 / y;
  }
  return Math.sqrt(n * y);
}

/** Logarithm of the gamma function for x > 0 (Lanczos, g = 7, n = 9; relative error about 1e-15). */
function logGamma(x: number): number {
  const c = [
    676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059, 12.507343278686905, -0.13857109526572012,
    9.9843695780195716e-6, 1.5056327351493116e-7,
  ];
  if (x < 0.5) return Math.log(Math.PI / Math.sin(Math.PI * x)) - logGamma(1 - x);
  const z = x - 1;
  const t = z + 7.5;
  const sum = c.reduce((total, value, i) => total + value / (z + i + 1), 0.99999999999980993);
  return 0.5 * Math.log(2 * Math.PI) + (z + 0.5) * Math.log(t) - t + Math.log(sum);
}

/** Regularised incomplete beta function I_x(a, b), [0, 1] (continued fraction, Lentz's method). @param x in [0, 1] */
export function incompleteBeta(x: number, a: number, b: number): number {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - incompleteBeta(1 - x, b, a);
  const front = Math.exp(logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log1p(-x)) / a;
  const tiny = 1e-300;
  let [f, c, d] = [1, 1, 0];
  for (let i = 0; i <= 500; i++) {
    const m = i >> 1;
    const numerator =
      i === 0
        ? 1
        : i % 2 === 0
          ? (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m))
          : (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 + numerator * d;
    d = 1 / (Math.abs(d) < tiny ? tiny : d);
    c = 1 + numerator / c;
    c = Math.abs(c) < tiny ? tiny : c;
    f *= c * d;
    if (Math.abs(1 - c * d) < 1e-14) break;
  }
  return front * (f - 1);
}

/**
 * One-sided exact upper bound of a share (Clopper and Pearson): with probability 1 - tail the true share is below it.
 * @param hits of `n` independent trials, 0 to n
 */
export function shareUpperBound(hits: number, n: number, tail = 0.05): number {
  if (hits >= n) return 1;
  let [low, high] = [hits / n, 1];
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2;
    if (incompleteBeta(middle, hits + 1, n - hits) < 1 - tail) low = middle;
    else high = middle;
  }
  return high;
}

/**
 * McNemar's exact two-sided test: the probability of a split at least as uneven as `one` to `other` when each of the discordant
 * pairs falls on either side like a coin. It takes pairs as independent, so that clips make it too sure: for description only.
 * @param one pairs that only the first has right, `other` those that only the second has; whole numbers
 * @returns in (0, 1]; 1 without a discordant pair
 */
export function mcnemarP(one: number, other: number): number {
  const n = one + other;
  let log = -n * Math.LN2; // of C(n, 0) / 2^n
  let tail = 0;
  for (let k = 0; k <= Math.min(one, other); k++) {
    tail += Math.exp(log);
    log += Math.log((n - k) / (k + 1));
  }
  return Math.min(1, 2 * tail);
}

/**
 * What a quantile surely is at least: the largest value of the sample that the population's q-quantile is at or above with
 * probability `confidence` (order statistics, exact binomial). Of few values the plain quantile is just the slowest one.
 * @param sorted ascending @param q in (0, 1)
 * @returns a value of the sample; 0 where it is too small to say anything
 */
export function quantileAtLeast(sorted: ArrayLike<number>, q: number, confidence = 0.95): number {
  const n = sorted.length;
  // How many of n lie above the quantile is binomial with 1 - q: with `confidence` at most `above` do.
  let log = n * Math.log(q);
  let within = Math.exp(log);
  let above = 0;
  while (within < confidence && above < n) {
    log += Math.log((n - above) / (above + 1)) + Math.log((1 - q) / q);
    above += 1;
    within += Math.exp(log);
  }
  return above >= n ? 0 : (sorted[n - 1 - above] as number);
}
