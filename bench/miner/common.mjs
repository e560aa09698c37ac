// What the parts of `npm run bench:miner` share: places, processes, cores, memory, statistics.
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

export const here = path.dirname(fileURLToPath(import.meta.url));
export const root = path.resolve(here, '..', '..');
/** Models, images and the environment of the reference are kept here from one run to the next. */
export const cache = process.env.FLYWHEEL_BENCH_CACHE ?? path.join(os.homedir(), '.cache', 'streetvision-flywheel-bench');
export const jobsPython = path.join(root, 'gpu-jobs', '.venv', 'bin', 'python');
export const cores = os.availableParallelism();
const taskset = existsSync('/usr/bin/taskset') ? '/usr/bin/taskset' : null;
/** The client has the last core to itself where the system can pin; the server is told in each part. */
export const clientCore = taskset !== null && cores > 1 ? cores - 1 : null;

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
export const note = (text) => process.stderr.write(`${text}\n`);

const children = new Set();
/** Starts a process, on the cores asked for (a number or a list as `taskset` takes it) where possible; it ends with the benchmark. */
export function start(command, args, { core = null, env = {}, stdin = 'ignore' } = {}) {
  const pinned = core === null || taskset === null ? [command, args] : [taskset, ['-c', String(core), command, ...args]];
  const child = spawn(pinned[0], pinned[1], { stdio: [stdin, 'pipe', 'inherit'], env: { ...process.env, ...env } });
  children.add(child);
  child.once('exit', () => children.delete(child));
  const lines = createInterface({ input: child.stdout });
  const queue = [];
  const waiting = [];
  let ended = null;
  lines.on('line', (line) => {
    if (!line.startsWith('{')) return;
    const value = JSON.parse(line);
    if (waiting.length > 0) waiting.shift().resolve(value);
    else queue.push(value);
  });
  lines.on('close', () => {
    ended = new Error(`${path.basename(args.find((arg) => /\.(mjs|py)$/.test(arg)) ?? command)} ended before it said what was expected`);
    for (const one of waiting.splice(0)) one.reject(ended);
  });
  const exited = new Promise((resolve) => child.once('exit', resolve));
  return {
    child,
    pid: child.pid,
    exited,
    /** the next JSON line it prints */
    next: () =>
      queue.length > 0
        ? Promise.resolve(queue.shift())
        : ended !== null
          ? Promise.reject(ended)
          : new Promise((resolve, reject) => waiting.push({ resolve, reject })),
    async stop() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      child.kill('SIGTERM');
      const timer = setTimeout(() => child.kill('SIGKILL'), 15_000);
      await exited;
      clearTimeout(timer);
    },
  };
}
export function killAll() {
  for (const child of children) child.kill('SIGKILL');
}

/** CPU seconds of a process and of all below it, their resident memory and its own in MiB; by /proc, so Linux only. */
export function usage(pid) {
  const all = tree(pid);
  let cpuS = 0;
  let rss = 0;
  let ownRss = 0;
  for (const id of all) {
    try {
      const stat = readFileSync(`/proc/${id}/stat`, 'utf8');
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      cpuS += (Number(fields[11]) + Number(fields[12])) / 100;
      const mine = Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${id}/status`, 'utf8'))?.[1] ?? 0) * 1024;
      rss += mine;
      if (id === pid) ownRss = mine;
    } catch {
      // It ended between the listing and the reading.
    }
  }
  return { cpuS, rssMiB: rss / 2 ** 20, ownRssMiB: ownRss / 2 ** 20, processes: all.length };
}
export function tree(pid) {
  const found = [pid];
  for (let i = 0; i < found.length; i++) {
    try {
      const text = readFileSync(`/proc/${found[i]}/task/${found[i]}/children`, 'utf8').trim();
      if (text !== '') found.push(...text.split(' ').map(Number));
    } catch {
      // gone
    }
  }
  return found;
}

/** @param sorted rising */
export const quantile = (sorted, q) => (sorted.length === 0 ? null : sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))]);
export function summary(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return {
    n: sorted.length,
    p50: quantile(sorted, 0.5),
    p95: quantile(sorted, 0.95),
    p99: quantile(sorted, 0.99),
    max: sorted.at(-1) ?? null,
  };
}
/** Least-squares slope of y over x. */
export function slope(points) {
  const n = points.length;
  const mx = points.reduce((s, p) => s + p[0], 0) / n;
  const my = points.reduce((s, p) => s + p[1], 0) / n;
  const sxx = points.reduce((s, p) => s + (p[0] - mx) ** 2, 0);
  return sxx === 0 ? 0 : points.reduce((s, p) => s + (p[0] - mx) * (p[1] - my), 0) / sxx;
}

/** A seeded generator of uniform numbers in [0, 1) (mulberry32). */
export function random(seed) {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Arrival times of a Poisson process, ms from the beginning. */
export function poisson(ratePerS, seconds, seed) {
  const next = random(seed);
  const times = [];
  for (let t = 0; ;) {
    t += (-Math.log(1 - next()) * 1000) / ratePerS;
    if (t >= seconds * 1000) return times;
    times.push(t);
  }
}

/**
 * Sojourn times of one queue, first come first served, with the same arrivals and no overhead at all: what no server that
 * takes `services[i]` for an image could beat.
 */
export function idealQueue(arrivals, services, servers = 1) {
  const free = Array.from({ length: servers }, () => 0);
  return arrivals.map((at, i) => {
    let best = 0;
    for (let s = 1; s < servers; s++) if (free[s] < free[best]) best = s;
    const done = Math.max(at, free[best]) + services[i % services.length];
    free[best] = done;
    return done - at;
  });
}

let portAt = 21_000 + Math.floor((process.pid * 7) % 20_000);
/** A port that nobody had a moment ago. */
export async function freePort() {
  const net = await import('node:net');
  for (;;) {
    const port = portAt++;
    const free = await new Promise((resolve) => {
      const server = net.createServer();
      server.once('error', () => resolve(false));
      server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
    });
    if (free) return port;
  }
}

/** Drawn JPEG images of 224 x 224, as validators send them: quality 75, some 8 to 12 kB. @returns their folder */
export async function images() {
  const dir = path.join(cache, 'images');
  if (existsSync(path.join(dir, '7.jpg'))) return dir;
  mkdirSync(dir, { recursive: true });
  const { default: sharp } = await import('sharp');
  for (let k = 0; k < 8; k++) {
    const next = random(k + 1);
    const size = 224;
    const pixels = Buffer.alloc(size * size * 3);
    const blobs = Array.from({ length: 14 }, () => [
      next() * size,
      next() * size,
      8 + next() * 40,
      next() * 255,
      next() * 255,
      next() * 255,
    ]);
    for (let y = 0; y < size; y++) {
      for (let x = 0; x < size; x++) {
        const colour = [90 + y / 3, 110 + y / 4, 130];
        for (const [bx, by, r, ...c] of blobs) if ((x - bx) ** 2 + (y - by) ** 2 < r * r) c.forEach((v, i) => (colour[i] = v));
        for (let i = 0; i < 3; i++) pixels[(y * size + x) * 3 + i] = Math.max(0, Math.min(255, colour[i] + (next() - 0.5) * 24));
      }
    }
    await sharp(pixels, { raw: { width: size, height: size, channels: 3 } })
      .jpeg({ quality: 75 })
      .toFile(path.join(dir, `${k}.jpg`));
  }
  return dir;
}

/** Bundles with random weights; made once, with PyTorch from gpu-jobs. */
export function models() {
  const dir = path.join(cache, 'models');
  if (!existsSync(path.join(dir, 'vit-b', 'bundle.json')) || !existsSync(path.join(dir, 'demo', 'bundle.json'))) {
    if (!existsSync(jobsPython)) throw new Error(`${jobsPython} is missing: run "npm run test:setup" first. It exports the models.`);
    note('exporting models (once) ...');
    mkdirSync(dir, { recursive: true });
    execFileSync(jobsPython, [path.join(here, 'export_models.py'), dir], { stdio: ['ignore', 'ignore', 'inherit'] });
  }
  return dir;
}

/** Python with bittensor itself; FLYWHEEL_BENCH_PYTHON names one, otherwise an environment is made once. */
export function referencePython() {
  const given = process.env.FLYWHEEL_BENCH_PYTHON;
  if (given !== undefined) return given;
  const dir = path.join(cache, 'reference');
  const python = path.join(dir, 'bin', 'python');
  const wanted = readFileSync(path.join(here, 'requirements.txt'), 'utf8');
  const mark = path.join(dir, 'requirements.txt');
  if (existsSync(mark) && readFileSync(mark, 'utf8') === wanted) return python;
  note('installing bittensor 9.12.2 for the reference (once) ...');
  const quiet = { stdio: ['ignore', 'ignore', 'inherit'] };
  execFileSync('python3', ['-m', 'venv', dir], quiet);
  execFileSync(python, ['-m', 'pip', 'install', '-q', '-r', path.join(here, 'requirements.txt')], quiet);
  writeFileSync(mark, wanted);
  return python;
}

/** A throw-away validator key: sr25519 in WebAssembly, so that thousands of requests are signed in a second. */
export async function newKey(seed) {
  const wasm = await import('@polkadot/wasm-crypto');
  const { encodeAddress } = await import('@polkadot/util-crypto');
  await wasm.waitReady();
  const pair = wasm.sr25519KeypairFromSeed(seed);
  const secret = pair.slice(0, 64);
  const pub = pair.slice(64);
  return { address: encodeAddress(pub, 42), sign: (message) => wasm.sr25519Sign(pub, secret, Buffer.from(message, 'utf8')) };
}
