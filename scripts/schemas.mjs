#!/usr/bin/env node
/**
 * Writes the JSON Schemas that the Python jobs validate against, from the zod contracts of the TypeScript build.
 * `node scripts/schemas.mjs` writes them; `node scripts/schemas.mjs --check` exits 1 when a file differs, is missing or is left over.
 * Run it after `tsc`: it reads `dist/domain/contracts`.
 */
import { existsSync, mkdirSync, readFileSync, readdirSync, unlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { z } from 'zod';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const target = join(root, 'gpu-jobs', 'flywheel_jobs', 'schema');
const contracts = join(root, 'dist', 'domain', 'contracts');

if (!existsSync(join(contracts, 'jobs.js'))) {
  console.error('schemas: dist/domain/contracts/jobs.js is missing; run `npx tsc -p .` first. Nothing was changed.');
  process.exit(2);
}
const load = (name) => import(pathToFileURL(join(contracts, name)).href);
const { PROFILES } = await import(pathToFileURL(join(root, 'dist', 'domain', 'profiles', 'index.js')).href);
const { BACKBONES, FAMILY_LICENCES } = await import(pathToFileURL(join(root, 'dist', 'domain', 'backbones.js')).href);
const [jobs, common, bundle] = await Promise.all([load('jobs.js'), load('common.js'), load('bundle.js')]);

const schemas = {
  'job-spec': jobs.JobSpec,
  'job-result': jobs.JobResult,
  'job-progress': jobs.JobProgress,
  'image-row': common.ImageRow,
  'challenge-row': jobs.ChallengeRow,
  bundle: bundle.Bundle,
};
for (const [name, { input, output }] of Object.entries(jobs.JOBS)) {
  schemas[`${name}.input`] = input;
  schemas[`${name}.output`] = output;
}

/** What the writer of a document may leave out (defaults) is optional: `io: 'input'`. */
const render = (schema) => `${JSON.stringify(z.toJSONSchema(schema, { io: 'input', target: 'draft-2020-12' }), null, 2)}\n`;
const wanted = new Map(Object.entries(schemas).map(([name, schema]) => [`${name}.json`, render(schema)]));
// The rules of the validators that the jobs draw challenges by: data, not a schema, but written once all the same.
wanted.set('profiles.json', `${JSON.stringify(PROFILES, null, 2)}\n`);
// What the jobs choose backbones by, with the licences of the weights.
wanted.set('backbones.json', `${JSON.stringify({ backbones: BACKBONES, familyLicences: FAMILY_LICENCES }, null, 2)}\n`);
// The table of failures, which the Python side is compared with: data as well.
wanted.set('job-failures.json', `${JSON.stringify(jobs.JOB_FAILURES, null, 2)}\n`);

mkdirSync(target, { recursive: true });
const present = readdirSync(target).filter((file) => file.endsWith('.json'));
const current = (file) => (present.includes(file) ? readFileSync(join(target, file), 'utf8') : null);
const stale = [...wanted].filter(([file, text]) => current(file) !== text).map(([file]) => file);
const extra = present.filter((file) => !wanted.has(file));

if (process.argv.includes('--check')) {
  if (stale.length + extra.length > 0) {
    console.error(
      `schemas: ${[...stale, ...extra].join(', ')} differ from the contracts. Run \`npx tsc -p . && node scripts/schemas.mjs\`.`,
    );
    process.exit(1);
  }
  console.log(`schemas: ${wanted.size} files match the contracts`);
} else {
  for (const file of stale) writeFileSync(join(target, file), wanted.get(file));
  for (const file of extra) unlinkSync(join(target, file));
  console.log(`schemas: ${stale.length} written, ${extra.length} removed, ${wanted.size} in all`);
}
