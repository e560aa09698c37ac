// `npm run bench:miner`: the miner against the reference axon, a bare loop and an ideal queue, in one run on one machine.
//   --part a,b   of protocol, served, latency, reference, training, shadow, swaps, soak (default: all but soak)
//   --quick      a few seconds each, to see that it works; the figures then say little
//   --seconds N  of the soak, default 600
// Prints one JSON document on standard output, and a table with the goals on standard error.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { cpSync, linkSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import * as common from './miner/common.mjs';

const { cores, clientCore, freePort, here, idealQueue, note, poisson, referencePython, root, sleep, slope, start, summary, usage } = common;
const { values: flags } = parseArgs({
  options: { part: { type: 'string' }, quick: { type: 'boolean', default: false }, seconds: { type: 'string' } },
});
const PARTS = ['protocol', 'served', 'latency', 'reference', 'training', 'shadow', 'swaps', 'soak'];
const parts = (flags.part ?? PARTS.filter((part) => part !== 'soak').join(',')).split(',');
for (const part of parts) {
  if (PARTS.includes(part)) continue;
  note(`there is no part ${part}; there are ${PARTS.join(', ')}`);
  process.exit(2);
}
const wants = (part) => parts.includes(part);
const { quick } = flags;
const few = (n, q) => (quick ? q : n);

const folder = mkdtempSync(path.join(os.tmpdir(), 'flywheel-bench-miner-'));
const imagesDir = await common.images();
const script = (name) => path.join(here, name);
const seedOf = (role) => createHash('sha256').update(`bench ${role} ${folder}`).digest('hex');
const validatorSeed = seedOf('validator');
const { address: validator } = await common.newKey(Buffer.from(validatorSeed, 'hex'));

/** Makes a home whose champion is the bundle; the model's files are hard links or copies. @returns home and digest */
function homeWith(model, name = model) {
  const home = mkdtempSync(path.join(folder, 'home-'));
  mkdirSync(path.join(home, 'bundles'));
  const digest = addBundle(home, model, name);
  point(home, 1, digest);
  return { home, digest };
}
/** The same networks under another name are another bundle. */
function addBundle(home, model, name) {
  const from = path.join(common.models(), model);
  const bundle = JSON.parse(readFileSync(path.join(from, 'bundle.json'), 'utf8'));
  bundle.name = name;
  const text = `${JSON.stringify(bundle, null, 2)}\n`;
  const digest = createHash('sha256').update(text).digest('hex');
  const dir = path.join(home, 'bundles', digest);
  for (const member of bundle.members) {
    for (const file of [member.onnx.path, member.safetensors.path]) {
      mkdirSync(path.dirname(path.join(dir, file)), { recursive: true });
      try {
        linkSync(path.join(from, file), path.join(dir, file));
      } catch {
        cpSync(path.join(from, file), path.join(dir, file));
      }
    }
  }
  writeFileSync(path.join(dir, 'bundle.json'), text);
  return digest;
}
function write(home, name, value) {
  writeFileSync(path.join(home, `.${name}`), JSON.stringify(value));
  renameSync(path.join(home, `.${name}`), path.join(home, name));
}
const point = (home, generation, digest) => write(home, 'champion.json', { generation, digest, previous: null });

async function startMiner(home, { core = null } = {}) {
  const made = start(process.execPath, [script('miner.mjs'), JSON.stringify({ home, seed: seedOf('miner') })], { core });
  return { ...made, ...(await made.next()) };
}
async function status(miner) {
  return (await fetch(`${miner.control}/readyz`)).json();
}
async function until(what, done, seconds = 120) {
  for (const end = performance.now() + seconds * 1000; performance.now() < end;) {
    if (await done()) return;
    await sleep(30);
  }
  throw new Error(`waited ${seconds} s in vain until ${what}`);
}

/** Runs the client; CPU and memory of the server are read at the very moments between which it counts. */
async function load(server, job, core = clientCore) {
  const client = start(process.execPath, [script('load.mjs')], { core, stdin: 'pipe' });
  client.child.stdin.end(JSON.stringify({ port: server.port, axon: server.hotkey, seed: validatorSeed, imagesDir, ...job }));
  await client.next();
  const [before, began] = [usage(server.pid), performance.now()];
  await client.next();
  const [after, ended] = [usage(server.pid), performance.now()];
  const said = await client.next();
  await client.exited;
  const { lost, failures, statuses } = said;
  if (lost > 0) note(`  ${lost} of ${said.requests} without a prediction: ${JSON.stringify(failures ?? statuses)}`);
  return {
    ...said,
    cpuMsARequest: ((after.cpuS - before.cpuS) * 1000) / said.requests,
    serverCores: ((after.cpuS - before.cpuS) * 1000) / (ended - began),
    rssMiB: after.rssMiB,
  };
}
/** What of a run is printed. */
const brief = ({ requests, perS, lost, overDeadline, cpuMsARequest, rssMiB, latencyMs, statuses }) => ({
  requests,
  ...(perS === undefined ? {} : { perS }),
  lost,
  overDeadline,
  statuses,
  cpuMsARequest,
  rssMiB,
  latencyMs,
});
async function reference(args, core) {
  const port = await freePort();
  const made = start(referencePython(), [script('reference_axon.py'), '--port', String(port), '--validator', validator, ...args], {
    core,
    env: { BT_NO_PARSE_CLI_ARGS: '1' },
  });
  const said = await made.next();
  // It says so when its thread has begun, not when it listens.
  await sleep(1500);
  return { ...made, port, hotkey: said.hotkey };
}
/** Graphs no larger are served by processes of one thread; read from the miner's own rule. */
async function sizes(model) {
  const { deriveSizes, largestGraphBytes } = await import('../dist/platform/inference/sizing.js');
  return deriveSizes(0, 0, {
    graphBytes: largestGraphBytes(JSON.parse(readFileSync(path.join(common.models(), model, 'bundle.json'), 'utf8'))),
  });
}
/** Runs loops of `threads` threads, all at once, each on cores of its own where there are several. */
async function loops(model, { processes, threads }, seconds, arrivals) {
  const job = JSON.stringify({ bundleDir: path.join(common.models(), model), imagesDir, threads, seconds, least: 8, arrivals });
  const all = Array.from({ length: processes }, (_, i) =>
    start(process.execPath, [script('bare.mjs'), job], {
      core: processes > 1 ? Array.from({ length: threads }, (_, k) => i * threads + k).join(',') : null,
    }),
  );
  const said = await Promise.all(all.map((one) => one.next()));
  await Promise.all(all.map((one) => one.exited));
  const sum = (key) => said.reduce((total, one) => total + one[key], 0);
  return { processes, threads, images: sum('images'), perS: sum('perS'), ms: said.flatMap((one) => one.ms) };
}
/** One image at a time with all threads: the least time that an image can take, and the service times of the ideal queue. */
const ALL_THREADS = { processes: 1, threads: cores <= 2 ? cores : cores - 1 };
const bareOf = new Map();
async function bareKept(model, seconds = few(10, 3)) {
  if (!bareOf.has(model)) bareOf.set(model, await loops(model, ALL_THREADS, seconds));
  return bareOf.get(model);
}

const goals = [];
const goal = (name, measured, limit, met) => goals.push({ name, measured, limit, met });
const figures = {};

/** 1. No model: what the protocol alone costs. Server on one core, client on the other. */
async function protocol() {
  const serverCore = clientCore === null ? null : 0;
  const most = { our: few(14_000, 3000), stock: few(600, 200), memo: few(6000, 1500) };
  const seconds = few(6, 2);
  const run = async (server, name) => {
    const said = await load(server, { connections: 8, seconds, most: most[name] });
    await server.stop();
    return said;
  };
  const ours = await (async () => {
    const made = start(process.execPath, [script('noop_axon.mjs'), validator, seedOf('miner')], { core: serverCore });
    const ready = await made.next();
    return { verifyMs: ready.verifyMs, ...(await run({ ...made, ...ready }, 'our')) };
  })();
  const stock = await run(await reference([], serverCore), 'stock');
  const memo = await run(await reference(['--memo'], serverCore), 'memo');
  figures.protocol = {
    cores: { server: serverCore, client: clientCore },
    ours: { ...brief(ours), verifyCpuMs: ours.verifyMs, verifyShare: ours.verifyMs / ours.cpuMsARequest },
    reference: brief(stock),
    referenceMemo: brief(memo),
    timesTheReference: ours.perS / stock.perS,
    timesTheMemo: ours.perS / memo.perS,
  };
  goal('protocol: rate over the reference', `${(ours.perS / stock.perS).toFixed(1)} x`, '>= 10 x', ours.perS >= 10 * stock.perS);
  goal('protocol: rate over the memoised reference', `${(ours.perS / memo.perS).toFixed(2)} x`, '> 1 x', ours.perS > memo.perS);
  goal('protocol: CPU a request', `${ours.cpuMsARequest.toFixed(2)} ms`, '<= 0.9 ms', ours.cpuMsARequest <= 0.9);
  goal('protocol: requests lost', ours.lost, '0', ours.lost === 0);
}

/** 2. The served rate against loops of decoding and the same sessions: the faster of one with all threads, and of as many as the miner has processes. */
async function served() {
  figures.served = {};
  for (const model of ['demo', 'vit-b']) {
    const seconds = model === 'demo' ? few(8, 3) : few(16, 4);
    const kinds = [ALL_THREADS];
    const own = await sizes(model);
    if (own.processes !== ALL_THREADS.processes) kinds.push(own);
    const miner = await startMiner(homeWith(model).home);
    // In turns: the machine may be faster at one time than at another.
    const turns = few(3, 1);
    const bare = kinds.map(() => []);
    const runs = [];
    for (let turn = 0; turn < turns; turn++) {
      for (const [k, kind] of kinds.entries()) bare[k].push(await loops(model, kind, seconds / turns));
      runs.push(await load(miner, { connections: 4, seconds: seconds / turns, most: 1000, warmSeconds: model === 'demo' ? 1 : 2 }));
    }
    await miner.stop();
    const mean = (list) => list.reduce((sum, one) => sum + one.perS, 0) / list.length;
    bareOf.set(model, { ...bare[0][0], perS: mean(bare[0]), ms: bare[0].flatMap((one) => one.ms) });
    const rates = bare.map(mean);
    const limit = Math.max(...rates);
    const perS = mean(runs);
    const lost = runs.reduce((sum, one) => sum + one.lost, 0);
    figures.served[model] = {
      loops: kinds.map((kind, k) => ({ ...kind, perS: rates[k], ms: summary(bare[k].flatMap((one) => one.ms)) })),
      miner: own,
      perS,
      share: perS / limit,
      shareOfOneLoop: perS / rates[0],
      runs: runs.map(brief),
    };
    goal(
      `served: share of the bare loops, ${model}`,
      `${((100 * perS) / limit).toFixed(1)} % (${((100 * perS) / rates[0]).toFixed(1)} % of one loop with all threads)`,
      '>= 95 %',
      perS >= 0.95 * limit,
    );
    goal(`served: requests lost, ${model}`, lost, '0', lost === 0);
  }
}

/** Poisson arrivals at a share of what a loop with all threads does; latencies beside those of an ideal queue with the same arrivals. */
async function poissonRun(miner, model, share, seconds, seed, direct = false) {
  const loop = await bareKept(model);
  const rate = share * loop.perS;
  const arrivals = poisson(rate, seconds, seed);
  const { latencies, sentAt, ...rest } = await load(miner, { arrivals, keep: true });
  return {
    load: share,
    ratePerS: rate,
    ...brief(rest),
    sentLateMs: rest.sentLateMs,
    latencies,
    ideal: idealQueue(sentAt, loop.ms),
    // The same queue for real, in one process, on the machine as idle as the miner's.
    direct: direct ? (await loops(model, ALL_THREADS, 0, sentAt)).ms : [],
  };
}
const shown = (run) => ({ ...run, idealMs: summary(run.ideal), latencies: undefined, ideal: undefined, direct: undefined });

/** 3. Latency under Poisson arrivals, less the ideal queue; miner and queue in turns, so that a slow moment of the machine hits both. */
async function latency() {
  const own = await sizes('demo');
  const miner = await startMiner(homeWith('demo').home);
  figures.latency = [];
  for (const [share, seconds] of [
    [0.5, few(8, 3)],
    [0.8, few(5, 3)],
  ]) {
    const runs = [];
    for (let turn = 0; turn < few(5, 1); turn++) runs.push(await poissonRun(miner, 'demo', share, seconds, 11 + turn, true));
    const all = (key) => summary(runs.flatMap((run) => run[key]));
    const [measured, direct, ideal] = [all('latencies'), all('direct'), all('ideal')];
    const over = (queue) => Object.fromEntries(['p50', 'p95', 'p99'].map((q) => [q, measured[q] - queue[q]]));
    const lost = runs.reduce((sum, run) => sum + run.lost, 0);
    figures.latency.push({
      load: share,
      ratePerS: runs[0].ratePerS,
      miner: own,
      lost,
      latencyMs: measured,
      directMs: direct,
      overDirectMs: over(direct),
      idealMs: ideal,
      overIdealMs: over(ideal),
      sentLateMs: runs.map((run) => run.sentLateMs.p99),
      cpuMsARequest: runs.reduce((sum, run) => sum + run.cpuMsARequest, 0) / runs.length,
    });
    if (share === 0.5)
      goal(
        'latency: p99 at 50% over the ideal queue',
        `${over(direct).p99.toFixed(1)} ms (${over(ideal).p99.toFixed(1)} ms over the times of a loop without a pause)`,
        '<= 5 ms',
        over(direct).p99 <= 5,
      );
    goal(`latency: requests lost at ${100 * share}%`, lost, '0', lost === 0);
  }
  await miner.stop();
}

/** 4. The reference axon with the usual detector: the same networks through onnxruntime and Pillow in its forward. */
async function peer() {
  const seconds = few(10, 4);
  const miner = await startMiner(homeWith('demo').home);
  const ours = await load(miner, { connections: 4, seconds, most: 600 });
  await miner.stop();
  const axon = await reference(['--model', path.join(common.models(), 'demo'), '--threads', String(cores <= 2 ? cores : cores - 1)], null);
  const theirs = await load(axon, { connections: 4, seconds, most: 400 });
  await axon.stop();
  figures.reference = {
    ours: brief(ours),
    reference: brief(theirs),
    rateTimes: ours.perS / theirs.perS,
    p99Share: ours.latencyMs.p99 / theirs.latencyMs.p99,
  };
  goal('reference with a detector: rate', `${(ours.perS / theirs.perS).toFixed(2)} x`, '> 1 x', ours.perS > theirs.perS);
  goal(
    'reference with a detector: p99',
    `${ours.latencyMs.p99.toFixed(0)} against ${theirs.latencyMs.p99.toFixed(0)} ms`,
    'less',
    ours.latencyMs.p99 < theirs.latencyMs.p99,
  );
}

/** 5a. p99 at half load, alone and beside a training job at the niceness that jobs have. */
async function training() {
  const seconds = few(20, 5);
  const miner = await startMiner(homeWith('demo').home);
  const alone = await poissonRun(miner, 'demo', 0.5, seconds, 21);
  const job = start(common.jobsPython, [script('training_load.py'), '10', String(Math.max(1, cores - 1))]);
  await sleep(few(8000, 5000));
  const began = usage(job.pid);
  const beside = await poissonRun(miner, 'demo', 0.5, seconds, 21);
  const cpu = (usage(job.pid).cpuS - began.cpuS) / seconds;
  await job.stop();
  await miner.stop();
  figures.training = {
    alone: shown(alone),
    besideTraining: shown(beside),
    trainingCores: cpu,
    p99Times: beside.latencyMs.p99 / alone.latencyMs.p99,
  };
  goal('training: requests lost beside it', beside.lost, '0', beside.lost === 0);
}

/** 5b. p99 at half load with the shadow on and off, in turns, so that a slow moment of the machine hits both. */
async function shadow() {
  const seconds = few(15, 5);
  const { home } = homeWith('demo');
  const candidate = addBundle(home, 'demo', 'candidate');
  const miner = await startMiner(home);
  const all = { off: [], on: [] };
  const runs = [];
  for (let turn = 0; turn < few(2, 1); turn++) {
    for (const on of turn % 2 === 0 ? [false, true] : [true, false]) {
      if (on) write(home, 'shadow.json', { trial: 'bench', digest: candidate, share: 0.2 });
      else rmSync(path.join(home, 'shadow.json'), { force: true });
      await until(`the shadow is ${on ? 'on' : 'off'}`, async () => (await status(miner)).shadowReady === on);
      await sleep(1500);
      const run = await poissonRun(miner, 'demo', 0.5, seconds, 31 + turn);
      runs.push({ shadow: on, ...shown(run) });
      all[on ? 'on' : 'off'].push(...run.latencies);
    }
  }
  const metrics = await (await fetch(`${miner.control}/metrics`)).text();
  const counted = (result) => Number(new RegExp(`miner_shadow_total\\{result="${result}"\\} (\\d+)`).exec(metrics)?.[1] ?? 0);
  await miner.stop();
  const [off, on] = [summary(all.off), summary(all.on)];
  figures.shadow = {
    off,
    on,
    p99Times: on.p99 / off.p99,
    runs,
    answered: counted('answered'),
    dropped: counted('skipped'),
    failed: counted('failed'),
  };
  goal('shadow: p99 with it on', `${(100 * (on.p99 / off.p99 - 1)).toFixed(1)} %`, '<= +10 %', on.p99 <= 1.1 * off.p99);
}

/** 6. Swaps in a row under a constant load of bittensor's own client. */
async function swaps() {
  const count = few(100, 8);
  const { home, digest } = homeWith('demo', 'swap-0');
  // Three in turn: the previous champion is never the next one, so that every swap starts processes.
  const bundles = [digest, addBundle(home, 'demo', 'swap-1'), addBundle(home, 'demo', 'swap-2')];
  const miner = await startMiner(home);
  const client = start(
    referencePython(),
    [
      script('dendrite_load.py'),
      '--port',
      String(miner.port),
      '--axon',
      miner.hotkey,
      '--seed',
      `0x${validatorSeed}`,
      '--images',
      imagesDir,
      '--rate',
      '5',
    ],
    { stdin: 'pipe' },
  );
  await client.next();
  const each = usage(miner.pid).processes - 1;
  const memory = [];
  const took = [];
  const began = performance.now();
  for (let i = 1; i <= count; i++) {
    const at = performance.now();
    point(home, i + 1, bundles[i % 3]);
    await until(`generation ${i + 1} serves`, async () => (await status(miner)).serving?.generation === i + 1);
    took.push(performance.now() - at);
    // When the retired processes are gone: champion and warm previous one are left.
    await until('the retired processes are gone', async () => usage(miner.pid).processes <= 1 + 2 * each);
    const { rssMiB, ownRssMiB } = usage(miner.pid);
    memory.push([i, rssMiB, ownRssMiB]);
  }
  // Back to the warm one: what a rollback takes.
  const at = performance.now();
  const { warm } = await status(miner);
  let rollbackMs = null;
  if (warm !== null && warm !== undefined) {
    point(home, count + 2, warm);
    await until('the rollback serves', async () => (await status(miner)).serving?.generation === count + 2);
    rollbackMs = performance.now() - at;
  }
  const seconds = (performance.now() - began) / 1000;
  client.child.stdin.write('stop\n');
  const said = await client.next();
  await client.exited;
  const end = await status(miner);
  await miner.stop();
  // Processes differ by what their warm-up tried, so medians are compared: of the second fifth and the last. The front is
  // the one process that lives through all swaps.
  const fifth = Math.max(1, Math.floor(count / 5));
  const median = (rows, column) => summary(rows.map((row) => row[column])).p50;
  const [early, late] = [memory.slice(fifth, 2 * fifth), memory.slice(-fifth)];
  const drift = { all: median(late, 1) - median(early, 1), front: median(late, 2) - median(early, 2) };
  figures.swaps = {
    swaps: count,
    seconds,
    swapMs: summary(took),
    rollbackMs,
    client: said,
    rssMiB: { early: median(early, 1), late: median(late, 1), frontEarly: median(early, 2), frontLate: median(late, 2) },
    serving: end.serving,
  };
  goal(`swaps: requests lost in ${count}`, said.lost, '0', said.lost === 0 && Object.keys(said.statuses).every((code) => code === '200'));
  goal('swaps: over the deadline', said.overDeadline, '0', said.overDeadline === 0);
  goal(
    `swaps: memory drift over ${count}`,
    `${drift.all.toFixed(0)} MiB, front ${drift.front.toFixed(0)}`,
    `within 10 % of ${median(early, 1).toFixed(0)} MiB`,
    Math.abs(drift.all) < 0.1 * median(early, 1),
  );
}

/** 7. Ten minutes at half load. */
async function soak() {
  const seconds = Number(flags.seconds ?? few(600, 30));
  const miner = await startMiner(homeWith('demo').home);
  const memory = [];
  const began = performance.now();
  const timer = setInterval(() => {
    const { rssMiB, ownRssMiB } = usage(miner.pid);
    memory.push([(performance.now() - began) / 3_600_000, rssMiB, ownRssMiB]);
  }, 2000);
  const run = await poissonRun(miner, 'demo', 0.5, seconds, 41);
  clearInterval(timer);
  await miner.stop();
  const steady = memory.slice(Math.floor(memory.length / 4));
  const perHour = slope(steady);
  const front = steady.map(([at, , own]) => [at, own]);
  figures.soak = {
    seconds,
    ...shown(run),
    rssMiB: { first: steady[0]?.[1], last: steady.at(-1)?.[1], slopeMiBAnHour: perHour },
    frontRssMiB: { first: front[0]?.[1], last: front.at(-1)?.[1], slopeMiBAnHour: slope(front) },
  };
  goal('soak: memory slope', `${perHour.toFixed(1)} MiB/h`, '< 60 MiB/h', perHour < 60);
  goal('soak: requests lost', run.lost, '0', run.lost === 0);
}

const run = { protocol, served, latency, reference: peer, training, shadow, swaps, soak };
const seconds = {};
try {
  for (const part of PARTS.filter(wants)) {
    note(`${part} ...`);
    const began = performance.now();
    await run[part]();
    seconds[part] = (performance.now() - began) / 1000;
  }
} catch (error) {
  common.killAll();
  note(`the benchmark failed: ${error.stack}`);
  process.exitCode = 1;
} finally {
  rmSync(folder, { recursive: true, force: true });
}
let commit = null;
try {
  commit = execFileSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: root, encoding: 'utf8' }).trim();
} catch {
  // not a checkout
}
const [load1] = os.loadavg();
console.log(
  JSON.stringify(
    {
      bench: 'miner',
      commit,
      quick,
      machine: {
        cpus: cores,
        model: os.cpus()[0]?.model,
        memoryGiB: Math.round(os.totalmem() / 2 ** 30),
        node: process.version,
        loadAtEnd: load1,
        client:
          clientCore === null
            ? 'shares all cores'
            : `pinned to core ${clientCore}; the server has core 0 in "protocol", elsewhere all cores, the client's too`,
      },
      figures,
      goals,
      secondsTaken: seconds,
    },
    (_key, value) => (typeof value === 'number' && !Number.isInteger(value) ? Number(value.toPrecision(5)) : value),
    2,
  ),
);
const wide = Math.max(...goals.map((one) => one.name.length), 4);
for (const one of goals) note(`${one.met ? 'met   ' : 'MISSED'}  ${one.name.padEnd(wide)}  ${one.measured}  (${one.limit})`);
note(`${goals.filter((one) => one.met).length} of ${goals.length} goals met`);
