#!/usr/bin/env node
import { existsSync } from 'node:fs';

const [major, minor] = process.versions.node.split('.').map(Number);
if (major < 20 || (major === 20 && minor < 19)) {
  console.error(`flywheel: Node 20.19 or newer is needed; this is ${process.version}. Nothing was started.`);
  process.exit(4);
}
const entry = new URL('../dist/cli/main.js', import.meta.url);
if (!existsSync(entry)) {
  console.error('flywheel: not built yet. Run `npm ci && npm run build` in the folder of the project.');
  process.exit(4);
}
const { main } = await import(entry.href);
// Not by process.exitCode alone: native handles of the Temporal client may hold the loop open after all is done.
process.exit(await main(process.argv.slice(2)));
