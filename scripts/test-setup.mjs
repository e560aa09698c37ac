// Gets what the tests need and this machine lacks: the Python environment with its test tools, a `temporal` program, the
// time-skipping server, the real Bittensor client. Needs a build (`npm run build`). Says what it does; exits 1 with what is missing.
const started = Date.now();
let last = '';
let lastAt = 0;
const say = (what) => (message, elapsed) => {
  const now = Date.now();
  if (message === last && now - lastAt < 15_000) return;
  last = message;
  lastAt = now;
  console.log(`[setup] ${what}: ${message}${elapsed ? ` (${elapsed} s)` : ''}`);
};

const steps = [
  [
    'Python environment',
    async (progress) => (await (await import('../dist/platform/python/env.js')).ensurePython(progress, { groups: 'dev' })).python,
  ],
  ['Temporal program', async (progress) => (await (await import('../dist/platform/temporal/binary.js')).ensureTemporal(progress)).path],
  [
    'time-skipping server',
    async (progress) => (await import('../dist/platform/temporal/testServer.js')).ensureTimeSkippingServer(progress),
  ],
  ['real Bittensor client', async (progress) => (await import('../test/interop/venv.mjs')).ensureInteropPython(progress)],
];
let failed = false;
for (const [what, get] of steps) {
  try {
    console.log(`[setup] ${what}: ${await get(say(what))}`);
  } catch (error) {
    failed = true;
    console.error(`[setup] ${what}: ${error instanceof Error ? error.message : String(error)}`);
  }
}
console.log(`[setup] ${failed ? 'incomplete' : 'done'} after ${Math.round((Date.now() - started) / 1000)} s`);
process.exit(failed ? 1 : 0);
