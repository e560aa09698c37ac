/** `flywheel miner` and its options, on the built program: whose key it takes, whom it lets in, what it refuses to do. */
import { chmod, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { diagnose } from '../../src/cli/doctor.js';
import { EXIT } from '../../src/cli/exit.js';
import { makeDeps } from '../../src/cli/workerCommand.js';
import { connectDendrite } from '../../src/platform/bittensor/dendrite.js';
import { createHotkey, hotkeyFromMnemonic, loadHotkey, type Hotkey } from '../../src/platform/bittensor/keys.js';
import { loadConfig } from '../../src/platform/config.js';
import { homePaths, writeServices } from '../../src/platform/home.js';
import { writeBundle } from '../support/bundle.js';
import { greyJpeg } from '../support/images.js';
import { quiet } from '../support/miner.js';
import { MinerEnded, startProgram, type MinerProgram } from '../support/minerProgram.js';
import { TEST_KEYS } from './vectors.js';

let root: string;
let home: string;
let bundle: string;
let light: Buffer;
let validator: Hotkey;
let stranger: Hotkey;
let program: MinerProgram | null = null;
beforeAll(async () => {
  root = await mkdtemp(path.join(os.tmpdir(), 'flywheel-miner-cli-'));
  home = path.join(root, 'home');
  bundle = (await writeBundle(path.join(root, 'bundles'))).dir;
  light = await greyJpeg(200);
  validator = await hotkeyFromMnemonic(TEST_KEYS.validator.mnemonic);
  stranger = await hotkeyFromMnemonic(TEST_KEYS.stranger.mnemonic);
});
afterAll(async () => {
  await program?.stop();
  await rm(root, { recursive: true, force: true });
});

const start = async (args: readonly string[], env: Record<string, string> = {}): Promise<MinerProgram> =>
  (program = await startProgram(home, ['--bundle', bundle, ...args], env));
const stop = async (): Promise<void> => {
  expect(await program?.stop()).toBe(EXIT.ok);
  program = null;
};
/** How a challenge of that key is answered: HTTP status. */
async function ask(hotkey: Hotkey, url = program!.info.url): Promise<number | null> {
  const dendrite = connectDendrite({ hotkey });
  try {
    return (await dendrite.ask({ url, axonHotkey: program!.info.hotkey, image: light })).status;
  } finally {
    await dendrite.close();
  }
}

describe('flywheel miner', { timeout: 60_000 }, () => {
  it('--bundle --open answers whoever signs, with a key made for its home that only the owner can read', async () => {
    await start(['--open']);
    expect(await ask(stranger)).toBe(200);
    expect(program!.info.validatorUrl).toBeUndefined();
    const key = path.join(home, 'keys', 'miner.json');
    expect((await stat(key)).mode & 0o777).toBe(0o600);
    const { secretPhrase, secretSeed, ss58Address } = JSON.parse(await readFile(key, 'utf8')) as Record<string, string>;
    expect(program!.info.hotkey).toBe(ss58Address);
    await stop();
    const made = await readFile(key, 'utf8');

    // The next start has another key, by words; the first is kept as it is, and neither is told.
    await start(['--open'], { FLYWHEEL_HOTKEY_MNEMONIC: TEST_KEYS.miner.mnemonic });
    expect(program!.info.hotkey).toBe(TEST_KEYS.miner.ss58);
    expect(await ask(stranger)).toBe(200);
    const said = program!.said();
    expect(said).toContain(TEST_KEYS.miner.ss58);
    for (const secret of [secretPhrase!, secretSeed!.slice(2), TEST_KEYS.miner.mnemonic]) expect(said).not.toContain(secret);
    await stop();
    expect(await readFile(key, 'utf8')).toBe(made);
  });

  it('--hotkey-file --metagraph lets in who is on the list, as the file is now; a key that others can read is told of', async () => {
    const file = path.join(root, 'hotkey');
    const { address } = await createHotkey(file);
    await chmod(file, 0o644);
    const metagraph = path.join(root, 'metagraph.json');
    const list = (permits: boolean): Promise<void> =>
      writeFile(
        metagraph,
        JSON.stringify([
          { uid: 0, hotkey: validator.address, validatorPermit: true, stake: 10 },
          { uid: 1, hotkey: stranger.address, validatorPermit: permits, stake: 10 },
        ]),
      );
    await list(false);
    await start(['--hotkey-file', file, '--metagraph', metagraph]);
    expect(program!.info.hotkey).toBe(address);
    expect([await ask(validator), await ask(stranger)]).toEqual([200, 403]);
    await list(true);
    await expect.poll(() => ask(stranger), { timeout: 20_000, interval: 200 }).toBe(200);
    // The built-in validator is not on that list: it has a port of its own, where nobody else is let in.
    const builtIn = await loadHotkey(path.join(home, 'keys', 'validator.json'));
    const own = program!.info.validatorUrl!;
    expect(new URL(own).hostname).toBe('127.0.0.1');
    expect([await ask(builtIn), await ask(builtIn, own), await ask(validator, own)]).toEqual([403, 200, 403]);
    // The worker's requests go there, as `up` notes it.
    const paths = homePaths(home);
    await writeServices(paths, { up: null, temporal: null, miner: program!.info, children: {} });
    const worker = await makeDeps({ home: paths, config: loadConfig(), log: quiet, hotkey: address } as never).validator();
    expect(await worker.ask(light, 9)).toMatchObject({ status: 200, error: null });
    await worker.close();
    const warning = `chmod 600 ${file}`;
    expect(program!.said().split(warning).length).toBeGreaterThan(2);
    await stop();

    vi.stubEnv('FLYWHEEL_HOTKEY_FILE', file);
    const look = async () => (await diagnose(home, loadConfig())).find((finding) => finding.name === 'Hotkey');
    expect(await look()).toMatchObject({ state: 'warning', detail: expect.stringContaining(warning) as string });
    await chmod(file, 0o600);
    expect(await look()).toMatchObject({ state: 'found', detail: `${address} (${file})` });
    vi.unstubAllEnvs();
  });

  it.each([
    ['--open on a host that others can reach', () => ['--open', '--host', '0.0.0.0'], /loopback only, not on 0\.0\.0\.0/],
    ['a coldkey', () => ['--open', '--hotkey-file', path.join(root, 'coldkey')], /A coldkey holds the funds/],
  ])('refuses %s, and says why', async (_what, args, why) => {
    await writeFile(path.join(root, 'coldkey'), JSON.stringify({ secretPhrase: TEST_KEYS.miner.mnemonic }));
    const ended = await start(args()).catch((error: unknown) => error);
    expect(ended).toBeInstanceOf(MinerEnded);
    expect(ended).toMatchObject({ code: EXIT.badInput, said: expect.stringMatching(why) as string });
    expect((ended as MinerEnded).said).not.toContain(TEST_KEYS.miner.mnemonic);
  });
});
