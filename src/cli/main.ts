/** Entry of the `flywheel` command: options in, exit code out. Commands are loaded when called, so that `--help` is quick. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { PROFILE_NAMES } from '../domain/profiles/index.js';
import { packageRoot } from '../platform/entry.js';
import { describeError, errorJson, EXIT, EXIT_HELP, exitCodeOf, writeOut } from './exit.js';
import { type CommonOptions, createContext } from './context.js';
import type { SimulateOptions } from './simulateCommand.js';
import type { EmbedOptions, EvaluateOptions, ImportCheckOptions } from './jobCommands.js';
import type { ReportOptions } from './reportCommand.js';
import type { ReviewOptions } from './reviewCommand.js';

function port(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < 1 || value > 65_535) throw new InvalidArgumentError('a TCP port, 1 to 65535, expected.');
  return value;
}

function positive(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < 1 || value >= 2 ** 31) throw new InvalidArgumentError('a whole number from 1 to 2147483647 expected.');
  return value;
}

function amount(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value) || value < 0) throw new InvalidArgumentError('a number of at least 0 expected.');
  return value;
}

const absolute = (text: string): string => path.resolve(text);

function version(): string {
  return (JSON.parse(readFileSync(path.join(packageRoot, 'package.json'), 'utf8')) as { version: string }).version;
}

/** Options of `flywheel miner`; `up` passes some of them on. */
export interface MinerOptions extends CommonOptions {
  bundle?: string;
  host?: string;
  port?: number;
  controlPort?: number;
  validatorPort?: number;
  hotkeyFile?: string;
  walletName?: string;
  walletHotkey?: string;
  walletPath?: string;
  /** absolute path of a file, or `chain` */
  metagraph?: string;
  open?: boolean;
  externalIp?: string;
  externalPort?: number;
}

export interface UpOptions extends CommonOptions {
  once?: boolean;
  data?: string;
  port?: number;
}

/** Builds the command line; separate from running it, so that tests can look at it. */
export function createProgram(): Command {
  const program = new Command('flywheel');
  program
    .description(
      'The StreetVision flywheel: mines its own hard cases, retrains, tries and promotes models, and serves them to validators of Bittensor subnet 72.',
    )
    .version(version())
    .addHelpText('after', EXIT_HELP)
    .showHelpAfterError('(see `flywheel --help`)')
    .exitOverride();

  const common = (command: Command): Command =>
    command
      .exitOverride()
      .option('--home <dir>', 'folder of all state; another home is another instance', absolute, path.resolve('.flywheel'))
      .option('--config <file>', 'JSON file with what differs from its "preset" (default: demo)', absolute)
      .option('--json', 'last line on standard output is one JSON object');

  common(program.command('up'))
    .description('start everything, run a first turn, keep running')
    .option('--once', 'run exactly one turn with its trial, then exit')
    .option('--data <dir>', 'images with labels.csv (file,label[,split,...]), or a folder a class', absolute)
    .option('--port <n>', 'port of the miner (default: 8091, or a free one)', port)
    .action(async (options: UpOptions) => (await import('./up.js')).up(options));

  common(program.command('worker'))
    .description('run the Temporal worker alone (for a cluster)')
    .action(async (options: CommonOptions) => (await import('./workerService.js')).workerCommand(createContext(options, 'worker')));

  common(program.command('miner'))
    .description('run the miner alone')
    .option('--bundle <dir>', 'serve this bundle, without Temporal, catalog and store (default: the champion of the home)', absolute)
    .option('--host <address>', 'address to listen on (default: as configured)')
    .option('--port <n>', 'port of the miner', port)
    .addOption(new Option('--control-port <n>', 'loopback port for /healthz, /readyz, /swapz, /metrics').argParser(port))
    .addOption(
      new Option('--validator-port <n>', 'loopback port of the built-in validator, where the metagraph does not know it').argParser(port),
    )
    .option('--hotkey-file <file>', "the miner's hotkey, a JSON file as btcli writes it (or words in FLYWHEEL_HOTKEY_MNEMONIC)", absolute)
    .option('--wallet-name <name>', 'the hotkey in a Bittensor wallet')
    .option('--wallet-hotkey <name>', 'its name in the wallet (default: default)')
    .option('--wallet-path <dir>', 'where wallets are (default: ~/.bittensor/wallets)')
    .option('--metagraph <file|chain>', 'who may ask: a JSON file [{uid, hotkey, validatorPermit, stake}], or the chain', (text) =>
      text === 'chain' ? text : path.resolve(text),
    )
    .option('--open', 'development only, on loopback only: whoever signs correctly may ask')
    .option('--external-ip <address>', 'address that validators reach the miner at, announced with --metagraph chain')
    .option('--external-port <n>', 'its port, when another one than --port', port)
    .action(async (options: MinerOptions) => (await import('./minerCommand.js')).minerCommand(createContext(options, 'miner'), options));

  common(program.command('status'))
    .description('what runs, who is champion and how old, which dates come next')
    .action(async (options: CommonOptions) => (await import('./statusCommand.js')).statusCommand(createContext(options, 'cli')));

  common(program.command('turn'))
    .description('start a turn now')
    .action(async (options: CommonOptions) => (await import('./workflowCommands.js')).turnCommand(createContext(options, 'cli')));

  common(program.command('import'))
    .description('import a labelled data set')
    .argument('<dir>', 'images with labels.csv, or a folder a class', absolute)
    .action(async (dir: string, options: CommonOptions) =>
      (await import('./workflowCommands.js')).importCommand(createContext(options, 'cli'), dir),
    );

  common(program.command('import-check'))
    .description('look through a folder of images before it is imported: corrupt, doubled, odd; nothing is changed')
    .argument('<dir>', 'folder of images, with labels.csv or without', absolute)
    .option('--min-side <pixels>', 'a shorter side below this is told', positive)
    .action(async (dir: string, options: ImportCheckOptions) =>
      (await import('./jobCommands.js')).importCheckCommand(createContext(options, 'cli'), dir, options),
    );

  common(program.command('evaluate'))
    .description("judge a model by the Python job, an independent check of the miner's own code, and tell where the two differ")
    .option('--model <id>', 'name or digest of a model in the catalog (default: the champion)')
    .option('--bundle <dir>', 'folder of a model bundle', absolute)
    .option('--data <dir>', 'labelled images (default: the held-out pool)', absolute)
    .option('--out <dir>', 'folder for predictions.jsonl and report.json', absolute)
    .action(async (options: EvaluateOptions) => (await import('./jobCommands.js')).evaluateCommand(createContext(options, 'cli'), options));

  common(program.command('report'))
    .description("what a model's training left to be looked at: pictures, TensorBoard events, members, votes, what gives it again")
    .argument('[model]', 'name or digest of a model in the catalog (default: the newest)')
    .option('--out <dir>', 'folder for the files (default: reports/MODEL in the home)', absolute)
    .action(async (model: string | undefined, options: ReportOptions) =>
      (await import('./reportCommand.js')).reportCommand(createContext(options, 'cli'), model, options),
    );

  common(program.command('embed'))
    .description('features of images by the backbone of a member, as safetensors')
    .requiredOption('--data <dir>', 'labelled images', absolute)
    .requiredOption('--out <dir>', 'folder for embeddings.safetensors and index.jsonl', absolute)
    .option('--member <name>', 'member of the configuration (default: the first)')
    .option('--views <n>', 'challenge views of each image beside the image itself (default: none)', positive)
    .action(async (options: EmbedOptions) => (await import('./jobCommands.js')).embedCommand(createContext(options, 'cli'), options));

  common(program.command('review'))
    .description('list the images that a person is asked about, write them out, or take the answers')
    .option('--turn <id>', 'of one turn only')
    .option('--export <dir>', 'write the images and a table to fill in', absolute)
    .option('--answers <file>', 'take the answers: a table with the columns digest and label (1 roadwork, 0 none)', absolute)
    .option('--go-on', 'with --answers: a turn that waits goes on, though images are unanswered')
    .action(async (options: ReviewOptions) => (await import('./reviewCommand.js')).reviewCommand(createContext(options, 'cli'), options));

  common(program.command('promote'))
    .description('make the model champion, whatever the trial says')
    .argument('<model>', 'name of a model on trial')
    .action(async (model: string, options: CommonOptions) =>
      (await import('./workflowCommands.js')).promoteCommand(createContext(options, 'cli'), model),
    );

  common(program.command('reject'))
    .description('end the trial of a model and keep the champion')
    .argument('<model>', 'name of a model on trial')
    .action(async (model: string, options: CommonOptions) =>
      (await import('./workflowCommands.js')).rejectCommand(createContext(options, 'cli'), model),
    );

  common(program.command('rollback'))
    .description('go back to the previous champion')
    .action(async (options: CommonOptions) => (await import('./workflowCommands.js')).rollbackCommand(createContext(options, 'cli')));

  common(program.command('simulate'))
    .description('play a validator against a miner, a model or a bundle: metrics, reward, verdict')
    .option('--bundle <dir>', 'folder of a model bundle, through the production inference code', absolute)
    .option('--model <id>', 'name or digest of a model in the catalog')
    .option('--url <url>', 'any miner, http://HOST:PORT (default: the running one): signed requests, as a validator sends them')
    .option('--against <model>', 'model or bundle folder to judge the other against, on the same challenges')
    .addOption(new Option('--profile <name>', 'validator profile (default: as configured)').choices(PROFILE_NAMES))
    .option('--challenges <n>', 'challenges (default: as configured)', positive)
    .option('--data <dir>', 'labelled photographs to draw from (default: the held-out pool; for a miner the pool of traffic)', absolute)
    .option('--seed <n>', 'the same seed and data give the same challenges (default: a random one, printed)', positive)
    .option('--axon-hotkey <ss58>', 'hotkey of the miner at --url (default: that of the running miner)')
    .option('--hotkey-file <file>', "the validator's key (default: the home's own)", absolute)
    .option('--concurrency <n>', 'challenges under way at once (default: as configured)', positive)
    .option('--timeout <s>', "deadline of an answer, s (default: the profile's)", amount)
    .option('--out <dir>', 'folder for report.json and the pictures (default: simulations/ in the home)', absolute)
    .option('--field-accuracy <share>', 'share of right answers of the other miners, for organic tasks', amount)
    .option('--alpha-price <price>', 'of one alpha; with the next three: estimated earnings', amount)
    .option('--emission <alpha>', 'alpha a day of all miners together', amount)
    .option('--field-reward <reward>', 'mean reward of the other miners, (0, 1]', amount)
    .option('--miners <n>', 'miners that share the emission, this one included', positive)
    .action(async (options: CommonOptions & SimulateOptions) =>
      (await import('./simulateCommand.js')).simulateCommand(createContext(options, 'cli'), options),
    );

  program
    .command('doctor')
    .exitOverride()
    .description('name each prerequisite, found or missing, and how to get it')
    .option('--home <dir>', 'folder of all state', absolute, path.resolve('.flywheel'))
    .option('--config <file>', 'JSON file with what differs from its "preset" (default: demo)', absolute)
    .option('--json', 'last line on standard output is one JSON object')
    .action(async (options: { home: string; config?: string; json?: boolean }) => (await import('./doctor.js')).doctorCommand(options));

  common(program.command('backup'))
    .description('write catalog, objects, journal and keys of a home into one file, while it runs')
    .argument('<file>', 'archive to write', absolute)
    .action(async (file: string, options: CommonOptions) =>
      (await import('./backupCommands.js')).backupCommand(createContext(options, 'cli'), file),
    );

  program
    .command('restore')
    .exitOverride()
    .description('bring a backup back into an empty home')
    .argument('<file>', 'archive to read', absolute)
    .option('--home <dir>', 'folder of all state', absolute, path.resolve('.flywheel'))
    .option('--force', 'move a home in use aside (it is not deleted)')
    .option('--json', 'last line on standard output is one JSON object')
    .action(async (file: string, options: { home: string; json?: boolean; force?: boolean }) =>
      (await import('./backupCommands.js')).restoreCommand(options, file),
    );

  return program;
}

/**
 * @param argv arguments after the program's name
 * @returns exit code, see EXIT
 */
export async function main(argv: readonly string[]): Promise<number> {
  try {
    await createProgram().parseAsync(argv, { from: 'user' });
    return typeof process.exitCode === 'number' ? process.exitCode : EXIT.ok;
  } catch (error) {
    if (error instanceof CommanderError) {
      // commander has printed its own message already; help and version are no errors
      return error.exitCode === 0 ? EXIT.ok : EXIT.badInput;
    }
    await writeOut(process.stderr, `flywheel: ${describeError(error)}\n`);
    if (argv.includes('--json')) await writeOut(process.stdout, `${JSON.stringify(errorJson(error))}\n`);
    return exitCodeOf(error);
  }
}
