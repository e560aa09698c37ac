/**
 * The inference process: holds the ONNX sessions of one bundle and answers groups of images. Run by `child.ts` through
 * fork. `run()` of onnxruntime-node holds its thread's event loop for the whole inference, so it may hold this one only.
 * Sessions are never released: that leaks; the process ends instead, and always when its parent is gone.
 */
import os from 'node:os';
import path from 'node:path';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import type { Bundle, BundleMember } from '../../domain/contracts/bundle.js';
import type { Preprocess } from '../../domain/contracts/common.js';
import { loadBundle } from './bundle.js';
import { vote } from './ensemble.js';
import type { FromChild, ModelInput, OneResult, StartMessage, ToChild } from './messages.js';
import {
  decodeSquare,
  ImageError,
  inspectImage,
  preprocessKey,
  resizeSquare,
  tensorLength,
  writeTensor,
  type Square,
} from './preprocess.js';

interface Loaded {
  bundle: Bundle;
  members: { member: BundleMember; session: InferenceSession; key: string }[];
  start: StartMessage;
}
/** What is kept of an image until its batch runs: resized squares by size and filter (small), or the given tensor. */
type Prepared = { squares: Map<string, Square> } | { tensor: Float32Array };
interface Group {
  id: number;
  images: ({ ready: Prepared; decodeMs: number } | { failed: OneResult })[];
}

/** Images decoded at once: as many as libuv has threads; more would only hold memory. */
const DECODERS = 4;
/** A batch must bring the time an image down to this share to be worth the waiting. */
const BATCH_GAIN = 0.85;
/** A model this slow, ms an image, is not batched: the first image would wait seconds for the last. */
const SLOW_MS = 150;

let loaded: Loaded | null = null;
const toDecode: { id: number; inputs: ModelInput[] }[] = [];
const waiting: Group[] = [];
let decoding = 0;
let running = false;
/** images a batch at most: what the warm-up found to pay */
let batchLimit = 1;
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
    toDecode.push(message);
    decodeNext();
  }
});

async function start(message: StartMessage): Promise<void> {
  try {
    if (message.nice > 0) os.setPriority(0, Math.min(19, os.getPriority(0) + message.nice));
    const bundle = await loadBundle(message.bundleDir, message.digest ?? undefined);
    const members: Loaded['members'] = [];
    for (const member of bundle.members) {
      const session = await InferenceSession.create(path.join(message.bundleDir, member.onnx.path), {
        intraOpNumThreads: message.threads,
        interOpNumThreads: 1,
        executionMode: 'sequential',
        graphOptimizationLevel: 'all',
        // Spinning threads would take the core from the HTTP front between two requests.
        extra: { session: { intra_op: { allow_spinning: '0' } } },
      });
      members.push({ member, session, key: preprocessKey(member.preprocess) });
    }
    loaded = { bundle, members, start: message };
    // The first runs allocate and choose kernels: they must not be a validator's.
    const black: Group['images'][number] = { ready: prepare(loaded, { side: 2, rgb: new Uint8Array(12) }), decodeMs: 0 };
    const results: OneResult[] = [];
    const timed = async (size: number): Promise<number> => {
      const began = performance.now();
      results.push(
        ...(await runBatch(
          loaded as Loaded,
          Array.from({ length: size }, () => black),
        )),
      );
      return (performance.now() - began) / size;
    };
    await timed(1);
    const perImageMs = Math.min(await timed(1), await timed(1));
    if (message.maxBatch > 1 && perImageMs < SLOW_MS) {
      await timed(message.maxBatch);
      const batched = Math.min(await timed(message.maxBatch), await timed(message.maxBatch));
      // On CPUs a batch often takes longer an image than one alone, and keeps the first waiting for the last.
      if (batched < perImageMs * BATCH_GAIN) batchLimit = message.maxBatch;
    }
    for (const result of results) if (!result.ok) throw new Error(`the warm-up gave no prediction: ${result.message}`);
    send({ type: 'ready', members: bundle.members.map((m) => m.name), perImageMs, batchLimit });
  } catch (error) {
    const { name, message: text } = error as Error;
    process.send?.({ type: 'failed', name, message: text } satisfies FromChild, undefined, {}, () => process.exit(1));
  }
}

function decodeNext(): void {
  while (decoding < DECODERS) {
    const next = toDecode.shift();
    if (next === undefined) return;
    decoding += next.inputs.length;
    void Promise.all(next.inputs.map(decodeOne)).then((images) => {
      decoding -= next.inputs.length;
      waiting.push({ id: next.id, images });
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

/** Runs what is waiting, in the next turn of the event loop, so that requests that came together share a batch. */
function schedule(): void {
  if (running) return;
  running = true;
  setImmediate(() => void drain());
}

async function drain(): Promise<void> {
  while (waiting.length > 0 && loaded !== null) {
    const groups: Group[] = [];
    let size = 0;
    while (waiting.length > 0) {
      const next = waiting[0] as Group;
      if (groups.length > 0 && size + next.images.length > batchLimit) break;
      groups.push(waiting.shift() as Group);
      size += next.images.length;
    }
    const began = performance.now();
    const results = await runBatch(
      loaded,
      groups.flatMap((group) => group.images),
    );
    const batchMs = performance.now() - began;
    blockedMs += batchMs;
    let at = 0;
    for (const group of groups) {
      send({ type: 'result', id: group.id, results: results.slice(at, at + group.images.length), batchMs, batchSize: size });
      at += group.images.length;
    }
    // run() blocked the loop: let messages and finished decodings in before the next batch is cut.
    await new Promise((resolve) => setImmediate(resolve));
    if (!process.connected) process.exit(0);
  }
  running = false;
  if (waiting.length > 0) schedule();
}

async function runBatch(model: Loaded, images: Group['images']): Promise<OneResult[]> {
  const good = images.flatMap((image) => ('ready' in image ? [image] : []));
  const began = performance.now();
  let votes: (Omit<Extract<OneResult, { ok: true }>, 'ms'> | { ok: false; kind: 'model'; message: string })[] = [];
  if (good.length > 0) {
    try {
      const logits = await infer(model, good);
      votes = good.map((_, i) => {
        try {
          return {
            ok: true,
            ...vote(
              model.bundle,
              logits.map((of) => of[i] ?? Number.NaN),
            ),
          };
        } catch (error) {
          return { ok: false, kind: 'model', message: (error as Error).message };
        }
      });
    } catch (error) {
      votes = good.map(() => ({ ok: false, kind: 'model', message: `inference failed: ${(error as Error).message}` }));
    }
  }
  const share = good.length > 0 ? (performance.now() - began) / good.length : 0;
  let at = 0;
  return images.map((image) => {
    if ('failed' in image) return image.failed;
    const result = votes[at++] as (typeof votes)[number];
    return result.ok ? { ...result, ms: image.decodeMs + share } : result;
  });
}

/** @returns logits of each member, in the bundle's order, for each image */
async function infer(model: Loaded, images: { ready: Prepared }[]): Promise<Float32Array[]> {
  const tensors = new Map<string, Tensor>();
  const logits: Float32Array[] = [];
  for (const { member, session, key } of model.members) {
    let tensor = tensors.get(key);
    if (tensor === undefined) {
      const { size } = member.preprocess;
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
      tensor = new Tensor('float32', data, [images.length, 3, size, size]);
      tensors.set(key, tensor);
    }
    const output = (await session.run({ input: tensor }, ['logit'])).logit;
    if (output === undefined || !(output.data instanceof Float32Array) || output.data.length !== images.length) {
      throw new Error(
        `member ${member.name} gave ${output === undefined ? 'no logit' : `${output.type} [${output.dims.join(', ')}]`} for ${images.length} images; float32 [${images.length}] was expected`,
      );
    }
    logits.push(output.data);
  }
  return logits;
}
