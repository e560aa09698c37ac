import path from 'node:path';
import { ESLint } from 'eslint';
import { expect, it } from 'vitest';
import { packageRoot } from '../../src/platform/entry.js';

// Under CI the parser takes files as they are on disk, once; here it is given texts that are not on disk.
process.env['TSESTREE_SINGLE_RUN'] = 'false';

// The rules are the product's promise that a workflow replays; a typing slip in their patterns would switch them off in silence.
const eslint = new ESLint({ cwd: packageRoot });

/** Rules that object to the text where a file of that path stands. */
async function objections(file: string, text: string): Promise<string[]> {
  const [result] = await eslint.lintText(text, { filePath: path.join(packageRoot, file) });
  return result?.messages.map((message) => message.ruleId ?? message.message) ?? [];
}

const workflow = 'src/workflows/ids.ts';
const domain = 'src/domain/errors.ts';
const SLOW = 60_000;

it.each([
  [
    'a Node built-in in a workflow',
    workflow,
    "import { readFileSync } from 'node:fs';\nexport const x = readFileSync('x', 'utf8');\n",
    '@typescript-eslint/no-restricted-imports',
  ],
  [
    'an adapter in a workflow',
    workflow,
    "import { homePaths } from '../platform/home.js';\nexport const x = homePaths;\n",
    '@typescript-eslint/no-restricted-imports',
  ],
  [
    'an implementation of activities in a workflow',
    workflow,
    "import { createActivities } from '../activities/index.js';\nexport const x = createActivities;\n",
    '@typescript-eslint/no-restricted-imports',
  ],
  ['the environment in a workflow', workflow, 'export const x = process.env.HOME;\n', 'no-restricted-globals'],
  [
    'a forgotten promise',
    workflow,
    "import { sleep } from '@temporalio/workflow';\nexport function x(): void {\n  sleep(1);\n}\n",
    '@typescript-eslint/no-floating-promises',
  ],
  ['unseeded randomness in a rule', domain, 'export const x = Math.random();\n', 'no-restricted-properties'],
  ['the clock in a rule', domain, 'export const x = Date.now();\n', 'no-restricted-properties'],
  ['the clock in a rule, by a new Date', domain, 'export const x = new Date();\n', 'no-restricted-syntax'],
  ['I/O in a rule', domain, "import { readFileSync } from 'node:fs';\nexport const x = readFileSync;\n", 'no-restricted-imports'],
])('the linter refuses %s', { timeout: SLOW }, async (_what, file, text, rule) => {
  expect(await objections(file, text)).toContain(rule);
});

it('lets a workflow use the domain and types of activities', { timeout: SLOW }, async () => {
  const text =
    "import type { createActivities } from '../activities/index.js';\nimport { reward } from '../domain/reward.js';\nexport type X = typeof createActivities;\nexport const x = reward;\n";
  expect(await objections(workflow, text)).toEqual([]);
});
