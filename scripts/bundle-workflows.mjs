// Bundles dist/workflows for the worker once, at build time, so that a worker starts without webpack.
// Skipped when none of its inputs changed. Run by `npm run build` after tsc.
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const dist = path.join(root, 'dist');
const out = path.join(dist, 'workflow-bundle.js');
const stamp = path.join(dist, 'workflow-bundle.stamp');
const entry = path.join(dist, 'workflows', 'index.js');

if (!existsSync(entry)) {
  console.error(`${entry} is missing: run \`npm run build\`.`);
  process.exit(1);
}

const hash = createHash('sha256');
hash.update(readFileSync(path.join(root, 'node_modules', '@temporalio', 'worker', 'package.json')));
for (const folder of ['domain', 'workflows']) {
  const files = readdirSync(path.join(dist, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.js'))
    .sort();
  for (const name of files) hash.update(`${folder}/${name}\0`).update(readFileSync(path.join(dist, folder, name)));
}
const digest = hash.digest('hex');
if (existsSync(out) && existsSync(stamp) && readFileSync(stamp, 'utf8') === digest) process.exit(0);

const { bundleWorkflowCode, DefaultLogger } = await import('@temporalio/worker');
const { code } = await bundleWorkflowCode({ workflowsPath: entry, logger: new DefaultLogger('WARN') });
writeFileSync(`${out}.tmp`, code);
renameSync(`${out}.tmp`, out);
writeFileSync(stamp, digest);
console.log(`bundled the workflows (${(code.length / 1e6).toFixed(1)} MB)`);
process.exit(0);
