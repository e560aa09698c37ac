/** Logs: one file a process under `<home>/logs`, JSON lines, secrets blacked out, size-bounded. */
import { existsSync, mkdirSync, renameSync, statSync } from 'node:fs';
import path from 'node:path';
import pino, { type Logger } from 'pino';
import { BadInputError } from '../domain/errors.js';

export type { Logger } from 'pino';

const LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'];
const MAX_BYTES = 10_000_000;
const KEPT = 3;
const SECRET = /(secret|passw|token|api[-_]?key|mnemonic|seedphrase|private|authorization|credential|suri)/i;

/** Copies a value with everything below a secret-looking key replaced; cycles and depth are bounded. */
export function redact(value: unknown, depth = 0): unknown {
  if (value === null || typeof value !== 'object' || value instanceof Error || value instanceof Date || Buffer.isBuffer(value))
    return value;
  if (depth > 6) return '[deep]';
  if (Array.isArray(value)) return value.map((item) => redact(item, depth + 1));
  return Object.fromEntries(
    Object.entries(value).map(([key, item]) => [
      key,
      SECRET.test(key) && item !== null && item !== undefined ? '[redacted]' : redact(item, depth + 1),
    ]),
  );
}

/** Moves a file that has grown beyond the bound aside, keeping the newest few. */
export function rotate(file: string, maxBytes = MAX_BYTES, kept = KEPT): void {
  if (!existsSync(file) || statSync(file).size <= maxBytes) return;
  for (let i = kept - 1; i >= 1; i--) if (existsSync(`${file}.${i}`)) renameSync(`${file}.${i}`, `${file}.${i + 1}`);
  renameSync(file, `${file}.1`);
}

/**
 * @param processName names the file: `<logs>/<processName>.log`
 * @throws BadInputError when FLYWHEEL_LOG_LEVEL is no level
 */
export function createLogger(logs: string, processName: string): Logger {
  const level = process.env.FLYWHEEL_LOG_LEVEL ?? 'info';
  if (!LEVELS.includes(level))
    throw new BadInputError(`FLYWHEEL_LOG_LEVEL: one of ${LEVELS.join(', ')} expected; found ${JSON.stringify(level)}.`);
  mkdirSync(logs, { recursive: true, mode: 0o700 });
  const file = path.join(logs, `${processName}.log`);
  rotate(file);
  return pino(
    { level, base: { process: processName, pid: process.pid }, formatters: { log: (object) => redact(object) as Record<string, unknown> } },
    pino.destination({ dest: file, sync: true, mkdir: true, mode: 0o600 }),
  );
}
