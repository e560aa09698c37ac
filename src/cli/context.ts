/** What every command is given. */
import type { FlywheelConfig } from '../domain/config.js';
import { loadConfig } from '../platform/config.js';
import { homePaths, type HomePaths } from '../platform/home.js';
import { createLogger, type Logger } from '../platform/log.js';
import { writeOut } from './exit.js';
import { createProgress, type Progress } from './progress.js';

export interface CommandContext {
  paths: HomePaths;
  config: FlywheelConfig;
  /** the operator's file as given with --config, absolute; null: the demo preset alone */
  configFile: string | null;
  /** --json: standard output ends with one line of JSON; people read standard error */
  json: boolean;
  logger: Logger;
  progress: Progress;
  /** For people: standard output, or standard error under --json. */
  print(text: string): Promise<void>;
  /** The last line of standard output. */
  result(value: Record<string, unknown>): Promise<void>;
}

/** Options that every command has. */
export interface CommonOptions {
  home: string;
  config?: string;
  json?: boolean;
}

/** Where a command's words go. */
export function createPrinter(json: boolean): Pick<CommandContext, 'print' | 'result'> {
  return {
    print: (text) => writeOut(json ? process.stderr : process.stdout, `${text}\n`),
    result: (value) => (json ? writeOut(process.stdout, `${JSON.stringify(value)}\n`) : Promise.resolve()),
  };
}

/**
 * @param processName names the log file
 * @throws BadInputError on a wrong configuration or home
 */
export function createContext(options: CommonOptions, processName: string): CommandContext {
  const config = loadConfig(options.config === undefined ? {} : { file: options.config });
  const paths = homePaths(options.home);
  const json = options.json === true;
  return {
    paths,
    config,
    configFile: options.config ?? null,
    json,
    logger: createLogger(paths.logs, processName),
    progress: createProgress(),
    ...createPrinter(json),
  };
}
