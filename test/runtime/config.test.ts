import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { licenceWarnings, weightsLicence } from '../../src/domain/backbones.js';
import { deepMerge, loadConfig, presetNames, sets } from '../../src/platform/config.js';

const folder = mkdtempSync(path.join(os.tmpdir(), 'flywheel-config-'));
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});
let count = 0;
function file(content: string): string {
  const name = path.join(folder, `${count++}.json`);
  writeFileSync(name, content);
  return name;
}

describe('loadConfig', () => {
  it('takes every shipped preset as it is', () => {
    expect(presetNames()).toEqual(['accuracy', 'balanced', 'budget', 'demo']);
    for (const preset of presetNames()) expect(loadConfig({ preset }).preset).toBe(preset);
  });

  it('merges an operator file over the preset that it names, key by key', () => {
    const config = loadConfig({ file: file('{"preset": "budget", "miner": {"port": 9000}}') });
    const budget = loadConfig({ preset: 'budget' });
    expect(config).toEqual({ ...budget, miner: { ...budget.miner, port: 9000 } });
  });

  it('merges over demo when the file names no preset', () => {
    expect(loadConfig({ file: file('{"seed": 5}') })).toEqual({ ...loadConfig({ preset: 'demo' }), seed: 5 });
  });

  it('names the key, what was expected and what was found', () => {
    expect(() => loadConfig({ file: file('{"gate": {"challenges": "many"}}') })).toThrow('gate.challenges: expected number; found "many"');
  });

  it('names all wrong keys at once', () => {
    const load = (): unknown => loadConfig({ file: file('{"seed": -1, "miner": {"port": 70000}}') });
    expect(load).toThrow(/seed: .*found -1/);
    expect(load).toThrow(/miner\.port: .*found 70000/);
  });

  it.each(['{"sead": 1}', '{"miner": {"prot": 1}}', '{"training": {"fineTune": {"epoch": 1}}}'])(
    'refuses the misspelt key in %s',
    (text) => {
      expect(() => loadConfig({ file: file(text) })).toThrow(/unknown key/);
    },
  );

  it('refuses an unknown preset and lists the known ones', () => {
    expect(() => loadConfig({ preset: 'best' })).toThrow('preset: one of accuracy, balanced, budget, demo expected; found "best"');
  });

  it('says which file is not JSON', () => {
    const name = file('{');
    expect(() => loadConfig({ file: name })).toThrow(`The configuration file ${name} is not JSON`);
  });

  it('says which file cannot be read', () => {
    expect(() => loadConfig({ file: path.join(folder, 'none.json') })).toThrow(/none\.json: ENOENT/);
  });

  it.each(['budget', 'balanced', 'accuracy', 'demo'])('%s uses only weights that may earn money', (preset) => {
    const { members } = loadConfig({ preset }).training;
    expect(licenceWarnings(members)).toEqual([]);
    expect(members.map(({ backbone }) => weightsLicence(backbone)?.commercial)).toEqual(members.map(() => true));
  });

  it('warns of a named backbone whose weights forbid it, unless the operator has the right', () => {
    const members = [
      { name: 'a', backbone: 'convnextv2_tiny.fcmae_ft_in22k_in1k', weights: 'hub', features: 'final', resolution: 224 },
      { name: 'b', backbone: 'convnextv2_atto', weights: 'hub', features: 'final', resolution: 224, allowNonCommercial: true },
    ];
    const { training } = loadConfig({ file: file(JSON.stringify({ training: { members } })) });
    expect(licenceWarnings(training.members)).toEqual([expect.stringMatching(/member a: .* CC-BY-NC-4\.0, which forbids commercial use/)]);
  });

  it('refuses an ensemble of one', () => {
    const { members } = loadConfig({ preset: 'demo' }).training;
    expect(() => loadConfig({ file: file(JSON.stringify({ training: { members: members.slice(0, 1) } })) })).toThrow('training.members');
  });
});

it('replaces arrays instead of merging them', () => {
  expect(deepMerge({ a: [1, 2], b: { c: 1 } }, { a: [3], b: { d: 2 } })).toEqual({ a: [3], b: { c: 1, d: 2 } });
});

it('tells what the operator asked for by name from what a preset says', () => {
  const name = file('{"miner": {"port": 9000}}');
  expect(sets(name, ['miner', 'port'])).toBe(true);
  expect(sets(name, ['miner', 'host'])).toBe(false);
  expect(sets(null, ['miner', 'port'])).toBe(false);
});
