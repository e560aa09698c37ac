// The limit that the miner is held against: a loop of decoding and the same ONNX sessions, with the miner's own
// preprocessing, the same number of threads, nothing else. Prints the time of each image. With `arrivals` (ms) it is the ideal
// queue itself: the same images come at those moments, one at a time is answered, and nothing lies between; idle moments then
// cool caches and threads as they do for the miner, which a loop without a pause never sees.
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { loadBundle } from '../../dist/platform/inference/bundle.js';
import { decodeSquare, resizeSquare, tensorLength, writeTensor } from '../../dist/platform/inference/preprocess.js';

const { bundleDir, imagesDir, threads, seconds, least, arrivals } = JSON.parse(process.argv[2]);
const bundle = await loadBundle(bundleDir);
const sessions = await Promise.all(
  bundle.members.map((member) =>
    InferenceSession.create(path.join(bundleDir, member.onnx.path), {
      intraOpNumThreads: threads,
      interOpNumThreads: 1,
      executionMode: 'sequential',
      graphOptimizationLevel: 'all',
      extra: { session: { intra_op: { allow_spinning: '0' } } },
    }),
  ),
);
const images = readdirSync(imagesDir)
  .sort()
  .map((name) => readFileSync(path.join(imagesDir, name)));
const { preprocess } = bundle.members[0];
async function one(i) {
  const square = resizeSquare(await decodeSquare(images[i % images.length]), preprocess.size, preprocess.interpolation);
  // Members of one preprocessing share the tensor, as in the miner.
  const data = new Float32Array(tensorLength(preprocess));
  writeTensor(square, preprocess, data, 0);
  const input = new Tensor('float32', data, [1, 3, preprocess.size, preprocess.size]);
  for (const session of sessions) await session.run({ input }, ['logit']);
}
for (let i = 0; i < 3; i++) await one(i);
const ms = [];
if (arrivals !== undefined) {
  const start = performance.now();
  for (const [i, at] of arrivals.entries()) {
    const wait = start + at - performance.now();
    if (wait > 0) await sleep(wait);
    // A timer that was late is not the queue's doing.
    const came = wait > 0 ? performance.now() : start + at;
    await one(i);
    ms.push(performance.now() - came);
  }
  // Whole, before the end: a pipe takes no more than 64 KiB at once.
  await new Promise((resolve) => process.stdout.write(`${JSON.stringify({ images: ms.length, ms })}\n`, resolve));
  process.exit(0);
}
const began = performance.now();
for (let i = 0; performance.now() - began < seconds * 1000 || i < least; i++) {
  const at = performance.now();
  await one(i);
  ms.push(performance.now() - at);
}
const s = (performance.now() - began) / 1000;
process.stdout.write(`${JSON.stringify({ images: ms.length, seconds: s, perS: ms.length / s, ms })}\n`);
