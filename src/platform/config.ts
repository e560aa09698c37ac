/** Reads a configuration: a preset of this package, an operator's JSON file merged over it, checked as a whole. */
import { readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import type { z } from 'zod';
import { FlywheelConfig } from '../domain/config.js';
import { BadInputError } from '../domain/errors.js';
import { packageRoot } from './entry.js';

type Json = Record<string, unknown>;

const isObject = (value: unknown): value is Json => typeof value === 'object' && value !== null && !Array.isArray(value);

/** Names of the presets that ship with this package. */
export function presetNames(): string[] {
  return readdirSync(path.join(packageRoot, 'presets'))
    .filter((file) => file.endsWith('.json'))
    .map((file) => file.slice(0, -'.json'.length))
    .sort();
}

/** Objects merge key by key; arrays and everything else replace what was there. */
export function deepMerge(base: Json, over: Json): Json {
  const merged: Json = { ...base };
  for (const [key, value] of Object.entries(over)) {
    if (key === '__proto__') continue;
    const before = merged[key];
    merged[key] = isObject(before) && isObject(value) ? deepMerge(before, value) : value;
  }
  return merged;
}

function at(value: unknown, keys: readonly PropertyKey[]): unknown {
  return keys.reduce<unknown>(
    (here, key) => (here !== null && typeof here === 'object' ? (here as Record<PropertyKey, unknown>)[key] : undefined),
    value,
  );
}

function show(value: unknown): string {
  if (value === undefined) return 'nothing';
  const text = JSON.stringify(value);
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

function describe(issue: z.core.$ZodIssue, value: unknown): string {
  if (issue.code === 'unrecognized_keys') {
    const where = issue.path.length > 0 ? `${issue.path.join('.')}.` : '';
    return issue.keys.map((key) => `${where}${key}: unknown key; look for a spelling mistake`).join('\n  ');
  }
  const expected = issue.message.replace(/^Invalid (input|option): /, '').replace(/, received .*$/, '');
  return `${issue.path.map(String).join('.') || '(whole file)'}: ${expected}; found ${show(at(value, issue.path))}`;
}

/** Keys of the input that the schema did not keep. */
function dropped(input: unknown, kept: unknown, where = ''): string[] {
  if (Array.isArray(input) && Array.isArray(kept))
    return input.flatMap((item, i) => dropped(item, (kept as unknown[])[i], `${where}${i}.`));
  if (!isObject(input) || !isObject(kept)) return [];
  return Object.keys(input).flatMap((key) =>
    key in kept ? dropped(input[key], kept[key], `${where}${key}.`) : [`${where}${key}: unknown key; look for a spelling mistake`],
  );
}

function readJson(file: string, what: string): Json {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw new BadInputError(
      `Cannot read the ${what} ${file}: ${(error as NodeJS.ErrnoException).code ?? String(error)}. Nothing was started. Check the path given with --config.`,
    );
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new BadInputError(`The ${what} ${file} is not JSON: ${(error as Error).message}. Nothing was started.`);
  }
  if (!isObject(value))
    throw new BadInputError(`The ${what} ${file} must hold one JSON object; found ${show(value)}. Nothing was started.`);
  return value;
}

/**
 * @param options.preset name of a shipped preset; without it the file's own `preset`, else `demo`
 * @param options.file operator's JSON file: only what differs from the preset
 * @returns the whole, checked configuration
 * @throws BadInputError naming every wrong key, what was expected and what was found
 */
export function loadConfig(options: { preset?: string; file?: string } = {}): FlywheelConfig {
  const own = options.file === undefined ? {} : readJson(path.resolve(options.file), 'configuration file');
  const preset = options.preset ?? own.preset ?? 'demo';
  if (typeof preset !== 'string' || !presetNames().includes(preset)) {
    throw new BadInputError(`preset: one of ${presetNames().join(', ')} expected; found ${show(preset)}. Nothing was started.`);
  }
  const base = readJson(path.join(packageRoot, 'presets', `${preset}.json`), 'preset');
  const merged = deepMerge(base, { ...own, preset });
  const parsed = FlywheelConfig.safeParse(merged);
  // The schema is strict only at its top; a misspelt key further down would otherwise be dropped without a word.
  const lines = parsed.success ? dropped(merged, parsed.data) : parsed.error.issues.map((issue) => describe(issue, merged));
  if (parsed.success && lines.length === 0) return parsed.data;
  throw new BadInputError(
    `The configuration${options.file === undefined ? ` preset ${preset}` : ` ${options.file}`} does not fit; nothing was started:\n  ${lines.join('\n  ')}`,
  );
}

/** @returns whether the operator's file itself sets the key, so that it counts as asked for by name */
export function sets(file: string | null, keys: readonly string[]): boolean {
  return file !== null && at(readJson(file, 'configuration file'), keys) !== undefined;
}
