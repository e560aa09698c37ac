/**
 * The inference process: holds the ONNX sessions of one bundle and answers groups of images. Run by `child.ts` through
 * fork. `run()` of onnxruntime-node holds its thread's event loop for the whole inference, so it may hold this one only.
 * Sessions are never released: that leaks; the process ends instead, and always when its parent is gone.
 */
import os from 'node:os';
import path from 'node:path';
import { InferenceSession, listSupportedBackends, Tensor } from 'onnxruntime-node';
import type { Bundle, BundleMember } from '../../domain/contracts/bundle.js';
import type { Preprocess } from '../../domain/contracts/common.js';
import { holdMs } from './batching.js';
import { loadBundle } from './bundle.js';
import { MIN_WEIGHT, runningOrder, viewFits, vote } from './ensemble.js';
import {
  monotonicMs,
  type FromChild,
  type LeftOut,
  type ModelInput,
  type OneResult,
  type StartMessage,
  type ToChild,
  type Urgency,
} from './messages.js';
import {
  decodeSquare,
  ImageError,
  inspectImage,
  mirror,
  preprocessKey,
  resizeSquare,
  tensorLength,
  writeTensor,
  type Square,
} from './preprocess.js';
import { chooseProviders, machineProbe, sessionProviders, type Provider } from './providers.js';

interface Loaded {
  bundle: Bundle;
  members: {
    member: BundleMember;
    session: InferenceSession;
    key: string;
    /** of late, ms an image */
    ms: number;
  }[];
  /** the members by weight: the order in which they run */
  order: number[];
  start: StartMessage;
}
/** What is kept of an image until its batch runs: resized squares by size and filter (small), or the given tensor. */
type Prepared = { squares: Map<string, Square> } | { tensor: Float32Array };
interface Group {
  id: number;
  images: ({ ready: Prepared; decodeMs: number } | { failed: OneResult })[];
  urgency: Urgency;
  /** monotonic ms when it came */
  arrived: number;
}
interface Incoming {
  id: number;
  inputs: ModelInput[];
  urgency: Urgency;
  arrived: number;
}
/** What bounds a batch: augmentation must fit into `budget`, members into `deadline`; monotonic ms. */
interface Bounds {
  deadline: number;
  budget: number;
  /** images that wait behind this batch, here and with the sender */
  behind: number;
}

/** Images decoded at once: as many as libuv has threads; more would only hold memory. */
const DECODERS = 4;
/** A batch must bring the time an image down to this share to be worth the waiting. */
const BATCH_GAIN = 0.9;
/** What each doubling must bring the time an image down to, for the next to be tried. */
const STEP_GAIN = 0.95;
/** A model this slow, ms an image, is not batched: the first image would wait seconds for the last. */
const SLOW_MS = 150;
/** Weight of each new measurement in the moving average of a member's time. */
const SMOOTHING = 0.2;
const NO_URGENCY: Urgency = { deadline: null, behind: 0, interarrivalMs: null };
const UNBOUNDED: Bounds = { deadline: Number.POSITIVE_INFINITY, budget: Number.POSITIVE_INFINITY, behind: 0 };

let loaded: Loaded | null = null;
const toDecode: Incoming[] = [];
const waiting: Group[] = [];
let decoding = 0;
let running = false;
/** images a batch at most: what the warm-up found to pay */
let batchLimit = 1;
/** ms that an image saves by joining a batch instead of running alone */
let savingMs = 0;
/** begins the batch that is held open for company; null when none is */
let beginHeld: (() => void) | null = null;
/** ms spent so far in inference, which holds the event loop: a decoding that waited for it did not take that long */
let blockedMs = 0;
/** pixels being decoded; one image of the largest allowed size, or several smaller ones, at a time */
let pixels = 0;
const forPixels: (() => void)[] = [];

function send(message: FromChild): void {
  // The parent may go at any moment; 'disconnect' then ends this process.
  if (process.connected) process.send?.(message, undefined, {}, () => undefined);
}

process.on('disconnect', () => process.exit(0));
// Ctrl-C and a service manager's SIGTERM reach the whole process group: the parent drains first, then lets us go.
process.on('SIGINT', () => undefined);
process.on('SIGTERM', () => undefined);

process.on('message', (message: ToChild) => {
  if (message.type === 'start') {
    void start(message);
  } else {
    toDecode.push({ ...message, urgency: message.urgency ?? NO_URGENCY, arrived: monotonicMs() });
    decodeNext();
  }
});

async function start(message: StartMessage): Promise<void> {
  try {
    if (message.nice > 0) os.setPriority(0, Math.min(19, os.getPriority(0) + message.nice));
    const bundle = await loadBundle(message.bundleDir, message.digest ?? undefined);
    const { members, provider, passedOver } = await openSessions(bundle, message);
    loaded = { bundle, members, order: runningOrder(bundle), start: message };
    // The first runs allocate and choose kernels: they must not be a validator's.
    const black: Group['images'][number] = { ready: prepare(loaded, { side: 2, rgb: new Uint8Array(12) }), decodeMs: 0 };
    const results: OneResult[] = [];
    const timed = async (size: number): Promise<number> => {
      results.push(
        ...(await runBatch(
          loaded as Loaded,
          Array.from({ length: size }, () => black),
          UNBOUNDED,
        )),
      );
      return plainMs / size;
    };
    await timed(1);
    const perImageMs = Math.min(await timed(1), await timed(1));
    // Twice as many as long as that pays. What a size takes of memory is never given back, so every size is run that may be
    // served, also when it brings nothing: else a process would hold more or less by the chance of its measurements. On CPUs
    // sizes beyond the threads gain next to nothing.
    const most = provider === 'cpu' ? Math.min(message.maxBatch, Math.max(2, message.threads)) : message.maxBatch;
    let best = { size: 1, ms: perImageMs };
    let pays = true;
    for (let size = 2; size <= most && perImageMs < SLOW_MS; size *= 2) {
      const ms = Math.min(await timed(size), await timed(size), await timed(size));
      pays &&= ms <= best.ms * STEP_GAIN;
      if (pays) best = { size, ms };
    }
    // The first image waits for the last: a small gain is not worth that.
    if (best.ms < perImageMs * BATCH_GAIN) {
      batchLimit = best.size;
      savingMs = perImageMs - best.ms;
    }
    for (const result of results) {
      if (!result.ok) throw new Error(`the warm-up gave no prediction: ${result.message}`);
      // Under load a member may be left out; one that cannot even answer a black image is a broken bundle.
      const [broken] = result.leftOut;
      if (broken !== undefined)
        throw new Error(`the warm-up gave no prediction: ${lastFailure ?? `member ${broken.member} gave no number`}`);
    }
    const rssBytes = process.memoryUsage.rss();
    send({ type: 'ready', members: bundle.members.map((m) => m.name), perImageMs, batchLimit, provider, passedOver, rssBytes });
  } catch (error) {
    const { name, message: text } = error as Error;
    process.send?.({ type: 'failed', name, message: text } satisfies FromChild, undefined, {}, () => process.exit(1));
  }
}

/** Opens a session a member, all with the same provider: the first of those wanted with which every one opens. */
async function openSessions(
  bundle: Bundle,
  message: StartMessage,
): Promise<{ members: Loaded['members']; provider: Provider; passedOver: { provider: Provider; reason: string }[] }> {
  const backends = listSupportedBackends().map((backend) => backend.name);
  const { order, passedOver } = chooseProviders(message.providers, machineProbe(backends));
  for (const [i, provider] of order.entries()) {
    const members: Loaded['members'] = [];
    try {
      for (const member of bundle.members) {
        const session = await InferenceSession.create(path.join(message.bundleDir, member.onnx.path), {
          executionProviders: sessionProviders(order.slice(i), message.deviceId),
          intraOpNumThreads: message.threads,
          interOpNumThreads: 1,
          executionMode: 'sequential',
          graphOptimizationLevel: 'all',
          // Spinning threads would take the core from the HTTP front between two requests.
          extra: { session: { intra_op: { allow_spinning: '0' } } },
        });
        members.push({ member, session, key: preprocessKey(member.preprocess), ms: 0 });
      }
      return { members, provider, passedOver };
    } catch (error) {
      // The model itself is at fault when it does not open on the CPU either.
      if (provider === 'cpu') throw error;
      passedOver.push({ provider, reason: `its session did not open: ${(error as Error).message}` });
    }
  }
  throw new Error('no execution provider was left to try');
}

function decodeNext(): void {
  while (decoding < DECODERS) {
    const next = toDecode.shift();
    if (next === undefined) return;
    decoding += next.inputs.length;
    void Promise.all(next.inputs.map(decodeOne)).then((images) => {
      decoding -= next.inputs.length;
      waiting.push({ id: next.id, images, urgency: next.urgency, arrived: next.arrived });
      if (beginHeld !== null && imagesWaiting() >= batchLimit) beginHeld();
      schedule();
      decodeNext();
    });
  }
}

async function decodeOne(input: ModelInput): Promise<Group['images'][number]> {
  if (loaded === null) return { failed: { ok: false, kind: 'model', message: 'no model is loaded' } };
  if (!(input instanceof Uint8Array)) return { ready: input, decodeMs: 0 };
  const { limits } = loaded.start;
  let held = 0;
  try {
    const header = await inspectImage(input, limits);
    const need = header.width * header.height;
    while (pixels > 0 && pixels + need > limits.maxPixels) await new Promise<void>((resolve) => forPixels.push(resolve));
    pixels += need;
    held = need;
    const began = performance.now();
    const blocked = blockedMs;
    const ready = prepare(loaded, await decodeSquare(input, limits, header));
    return { ready, decodeMs: Math.max(0, performance.now() - began - (blockedMs - blocked)) };
  } catch (error) {
    if (error instanceof ImageError) return { failed: { ok: false, kind: error.kind, message: error.message } };
    return { failed: { ok: false, kind: 'undecodable', message: `the image could not be decoded: ${(error as Error).message}` } };
  } finally {
    pixels -= held;
    for (const resume of forPixels.splice(0)) resume();
  }
}

/** Resizes at once for every member, so that the decoded image need not be kept until its batch runs. */
function prepare(model: Loaded, square: Square): Prepared {
  const squares = new Map<string, Square>();
  for (const { member } of model.members) {
    const key = squareKey(member.preprocess);
    if (!squares.has(key)) squares.set(key, resizeSquare(square, member.preprocess.size, member.preprocess.interpolation));
  }
  return { squares };
}

function squareKey(preprocess: Preprocess): string {
  return `${preprocess.size} ${preprocess.interpolation}`;
}

function imagesWaiting(): number {
  return waiting.reduce((sum, group) => sum + group.images.length, 0);
}

/** Runs what is waiting, in the next turn of the event loop, so that requests that came together share a batch. */
function schedule(): void {
  if (running) return;
  running = true;
  setImmediate(() => void drain());
}

/** Holds a batch open while company that pays is to be expected; see `holdMs`. */
async function gather(): Promise<void> {
  const now = monotonicMs();
  const slack = Math.min(...waiting.map((group) => budgetEnd(group) - now)) - batchLimit * perImage();
  const interarrivalMs = waiting.at(-1)?.urgency.interarrivalMs ?? Number.POSITIVE_INFINITY;
  const hold = holdMs({ waiting: imagesWaiting(), limit: batchLimit, savingMs, interarrivalMs, slackMs: slack });
  if (hold < 1) return;
  await new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, hold);
    beginHeld = () => {
      clearTimeout(timer);
      resolve();
    };
  });
  beginHeld = null;
}

/** ms an image of late, all members, without augmentation */
function perImage(): number {
  return loaded?.members.reduce((sum, member) => sum + member.ms, 0) ?? 0;
}

/** Monotonic ms until which an answer may be put off for quality's sake. */
function budgetEnd(group: Group): number {
  const budget = loaded?.start.budgetMs ?? null;
  return Math.min(group.urgency.deadline ?? Number.POSITIVE_INFINITY, budget === null ? Number.POSITIVE_INFINITY : group.arrived + budget);
}

async function drain(): Promise<void> {
  while (waiting.length > 0 && loaded !== null) {
    await gather();
    const groups: Group[] = [];
    let size = 0;
    while (waiting.length > 0) {
      const next = waiting[0] as Group;
      if (groups.length > 0 && size + next.images.length > batchLimit) break;
      groups.push(waiting.shift() as Group);
      size += next.images.length;
    }
    const began = performance.now();
    const now = monotonicMs();
    // A deadline that has passed is lost anyhow, and must not cost the others a member.
    const deadlines = groups.map((group) => group.urgency.deadline ?? Number.POSITIVE_INFINITY).filter((deadline) => deadline > now);
    const results = await runBatch(
      loaded,
      groups.flatMap((group) => group.images),
      {
        deadline: Math.min(...deadlines),
        budget: Math.min(...groups.map(budgetEnd)),
        behind: imagesWaiting() + decoding + toDecode.length + (groups.at(-1)?.urgency.behind ?? 0),
      },
    );
    blockedMs += performance.now() - began;
    let at = 0;
    for (const group of groups) {
      send({ type: 'result', id: group.id, results: results.slice(at, at + group.images.length), batchMs: plainMs, batchSize: size });
      at += group.images.length;
    }
    // run() blocked the loop: let messages and finished decodings in before the next batch is cut.
    await new Promise((resolve) => setImmediate(resolve));
    if (!process.connected) process.exit(0);
  }
  running = false;
  if (waiting.length > 0) schedule();
}

/** ms that the last batch took without augmentation */
let plainMs = 0;
/** what the last member that failed said */
let lastFailure: string | null = null;

async function runBatch(model: Loaded, images: Group['images'], bounds: Bounds): Promise<OneResult[]> {
  const good = images.flatMap((image) => ('ready' in image ? [image] : []));
  const began = performance.now();
  let inferred: Inferred = { logits: model.members.map(() => []), leftOut: new Map(), augmented: false };
  plainMs = 0;
  if (good.length > 0) inferred = await infer(model, good, bounds);
  const share = good.length > 0 ? (performance.now() - began) / good.length : 0;
  let at = 0;
  return images.map((image): OneResult => {
    if ('failed' in image) return image.failed;
    const i = at++;
    try {
      const { prediction, votes, leftOut } = vote(
        model.bundle,
        inferred.logits.map((views) => views.map((view) => view[i] ?? Number.NaN)),
        model.start.strict ? 1 : MIN_WEIGHT,
      );
      const reasons = leftOut.map((member): LeftOut => ({ member, reason: inferred.leftOut.get(member) ?? 'failed' }));
      return { ok: true, prediction, votes, leftOut: reasons, augmented: inferred.augmented, ms: image.decodeMs + share };
    } catch (error) {
      const why = lastFailure !== null && inferred.leftOut.size > 0 ? ` (${lastFailure})` : '';
      return { ok: false, kind: 'model', message: `${(error as Error).message}${why}` };
    }
  });
}

interface Inferred {
  /** of each member, in the bundle's order: one list of logits a view, none for a member that was left out */
  logits: Float32Array[][];
  leftOut: Map<string, LeftOut['reason']>;
  augmented: boolean;
}

/**
 * Runs the members, the heaviest first. One that throws is left out; one that would pass the most urgent deadline is left
 * out as late, once those that ran have weight enough for an answer. Then the mirrored view, if the budget allows.
 */
async function infer(model: Loaded, images: { ready: Prepared }[], bounds: Bounds): Promise<Inferred> {
  const { members, order, bundle, start } = model;
  const began = performance.now();
  const inferred: Inferred = { logits: members.map(() => []), leftOut: new Map(), augmented: false };
  const tensors = new Map<string, Float32Array>();
  lastFailure = null;
  let weight = 0;
  for (const i of order) {
    const one = members[i] as Loaded['members'][number];
    if (!start.strict && weight >= MIN_WEIGHT - 1e-9 && monotonicMs() + one.ms * images.length > bounds.deadline) {
      inferred.leftOut.set(one.member.name, 'late');
      continue;
    }
    try {
      inferred.logits[i] = [await runMember(one, images, tensors)];
      weight += one.member.weight;
    } catch (error) {
      inferred.leftOut.set(one.member.name, 'failed');
      lastFailure = (error as Error).message;
    }
  }
  plainMs = performance.now() - began;
  if (bundle.tta?.flip === true && inferred.leftOut.size === 0) {
    const leftMs = Math.min(bounds.budget, bounds.deadline) - monotonicMs();
    // Weighed with what it costs now, not with the average: the load may have changed.
    if (viewFits(plainMs, bounds.behind, plainMs / images.length, leftMs))
      inferred.augmented = await addMirrored(model, images, tensors, inferred);
  }
  return inferred;
}

/** The mirrored view of every member, or of none: members must not disagree about what they saw. */
async function addMirrored(
  model: Loaded,
  images: { ready: Prepared }[],
  tensors: Map<string, Float32Array>,
  into: Inferred,
): Promise<boolean> {
  const mirrored = new Map<string, Float32Array>();
  for (const { member, key } of model.members) {
    const plain = tensors.get(key);
    if (plain !== undefined && !mirrored.has(key)) mirrored.set(key, mirror(plain, member.preprocess.size));
  }
  const views: Float32Array[] = [];
  try {
    for (const one of model.members) views.push(await runMember(one, images, mirrored));
  } catch (error) {
    lastFailure = (error as Error).message;
    return false;
  }
  views.forEach((view, i) => into.logits[i]?.push(view));
  return true;
}

/** @returns logits, one an image. @throws Error when the model or its output is not as the contract says */
async function runMember(
  one: Loaded['members'][number],
  images: { ready: Prepared }[],
  tensors: Map<string, Float32Array>,
): Promise<Float32Array> {
  const { member, session, key } = one;
  const { size } = member.preprocess;
  const began = performance.now();
  let data = tensors.get(key);
  if (data === undefined) {
    data = batchTensor(member, images);
    tensors.set(key, data);
  }
  const output = (await session.run({ input: new Tensor('float32', data, [images.length, 3, size, size]) }, ['logit'])).logit;
  if (output === undefined || !(output.data instanceof Float32Array) || output.data.length !== images.length) {
    throw new Error(
      `member ${member.name} gave ${output === undefined ? 'no logit' : `${output.type} [${output.dims.join(', ')}]`} for ${images.length} images; float32 [${images.length}] was expected`,
    );
  }
  const ms = (performance.now() - began) / images.length;
  one.ms = one.ms === 0 ? ms : one.ms * (1 - SMOOTHING) + ms * SMOOTHING;
  return output.data;
}

/** Input of the batch for members that preprocess like this one, [n, 3, size, size]. */
function batchTensor(member: BundleMember, images: { ready: Prepared }[]): Float32Array {
  const length = tensorLength(member.preprocess);
  const data = new Float32Array(images.length * length);
  images.forEach((image, i) => {
    if ('tensor' in image.ready) {
      if (image.ready.tensor.length !== length)
        throw new Error(`a tensor of ${image.ready.tensor.length} floats came where ${member.name} needs ${length}`);
      data.set(image.ready.tensor, i * length);
    } else {
      writeTensor(image.ready.squares.get(squareKey(member.preprocess)) as Square, member.preprocess, data, i * length);
    }
  });
  return data;
}
