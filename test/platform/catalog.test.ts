import { readdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import Database from 'better-sqlite3';
import { describe, expect, it } from 'vitest';
import { BadInputError, BudgetExceededError, LeakError, StaleGenerationError } from '../../src/domain/errors.js';
import {
  CatalogError,
  CatalogLockedError,
  catalogLockFile,
  CatalogTooNewError,
  openCatalog,
  openCatalogReadOnly,
  SCHEMA_VERSION,
} from '../../src/platform/catalog/index.js';
import { CatalogStore } from '../../src/platform/catalog/store.js';
import { compiledEntry } from '../../src/platform/entry.js';
import type { Catalog, ChampionRecord, ModelRecord, TrialRecord } from '../../src/platform/ports.js';
import { answer, atEnd, digest, ended, image, startNode, temporaryFolder } from './support.js';

async function open(file?: string): Promise<{ catalog: Catalog; file: string }> {
  const at = file ?? path.join(await temporaryFolder(), 'catalog.db');
  const catalog = await openCatalog(at);
  atEnd(() => catalog.close());
  return { catalog, file: at };
}

const champion = (generation: number, over: Partial<ChampionRecord> = {}): ChampionRecord => ({
  hotkey: 'hk',
  pointer: { generation, digest: digest(`bundle ${generation}`), previous: generation > 1 ? digest(`bundle ${generation - 1}`) : null },
  modelId: `model-${generation}`,
  promotedAt: generation,
  submittedAt: generation,
  ...over,
});

const model = (id: string, over: Partial<ModelRecord> = {}): ModelRecord => ({
  id,
  bundle: digest(`bundle of ${id}`),
  trained: digest(`trained ${id}`),
  parent: null,
  turn: 't1',
  status: 'candidate',
  createdAt: 1,
  evidence: { gate: 1 },
  ...over,
});

describe('images', () => {
  it('adds an image once; a second row of another pool does not move it', async () => {
    const { catalog } = await open();
    expect(await catalog.addImages([image('a'), image('b', { pool: 'test' })], 1)).toEqual({ added: 2, known: 0 });
    expect(await catalog.addImages([image('a', { pool: 'test', group: 'other', label: 0 }), image('c')], 2)).toEqual({
      added: 1,
      known: 1,
    });
    const [a] = await catalog.images({ digests: [digest('a')] });
    expect(a).toEqual(image('a'));
  });

  it('gives images sorted by digest, by pool, by provider and by digest', async () => {
    const { catalog } = await open();
    const rows = [image('a'), image('b', { pool: 'validate' }), image('c')];
    await catalog.addImages(rows, 1);
    await catalog.addImages(
      [image('d', { parents: [digest('a')], provider: 'composite', intent: 0, label: null, truth: 'none', weight: 0.5 })],
      1,
    );
    expect((await catalog.images()).map((row) => row.digest)).toEqual(['a', 'b', 'c', 'd'].map(digest).sort());
    expect((await catalog.images({ pools: ['validate', 'test'] })).map((row) => row.digest)).toEqual([digest('b')]);
    expect((await catalog.images({ provider: 'composite' })).map((row) => row.digest)).toEqual([digest('d')]);
    expect(await catalog.images({ provider: null })).toHaveLength(3);
    expect(await catalog.images({ digests: [] })).toEqual([]);
    expect(await catalog.images({ pools: [] })).toEqual([]);
  });

  it('takes more rows than a statement has variables', async () => {
    const { catalog } = await open();
    const rows = Array.from({ length: 3000 }, (_, i) => image(`n${i}`));
    expect(await catalog.addImages(rows, 1)).toEqual({ added: 3000, known: 0 });
    expect(await catalog.images({ digests: rows.map((row) => row.digest) })).toHaveLength(3000);
  });

  it('takes a derived image whose parents come later in the same call', async () => {
    const { catalog } = await open();
    const derived = image('made', { parents: [digest('a'), digest('b')], provider: 'composite' });
    expect(await catalog.addImages([derived, image('a'), image('b')], 1)).toEqual({ added: 3, known: 0 });
  });

  it.each([
    ['whose parent is not in the catalog', image('made', { parents: [digest('nobody')], provider: 'weather' })],
    ['whose parents are of two pools', image('made', { parents: [digest('train'), digest('test')], provider: 'composite' })],
    ['that would carry a test photograph into training', image('made', { parents: [digest('test')], provider: 'weather' })],
    ['synthesised from the test pool', image('made', { parents: [digest('test')], provider: 'weather', pool: 'test' })],
  ])('refuses an image %s, and adds none of its batch', async (_what, leak) => {
    const { catalog } = await open();
    await catalog.addImages([image('train'), image('test', { pool: 'test' })], 1);
    const refused = catalog.addImages([image('innocent'), leak], 2);
    await expect(refused).rejects.toThrow(LeakError);
    await expect(refused).rejects.toThrow(/None of these images was added/);
    expect(await catalog.images()).toHaveLength(2);
  });
});

describe('labels and reviews', () => {
  it('lets the strongest kind hold, and of one kind the newest', async () => {
    const { catalog } = await open();
    const label = { digest: digest('a'), provenance: 'x', weight: 1 };
    await catalog.addLabels([
      { ...label, label: 1, kind: 'consensus', at: 30, provenance: 'turn 2' },
      { ...label, label: 0, kind: 'verified', at: 10, provenance: 'ann' },
      { ...label, label: 1, kind: 'verified', at: 20, provenance: 'bob' },
    ]);
    expect(await catalog.labels()).toEqual([{ ...label, label: 1, kind: 'verified', at: 20, provenance: 'bob' }]);
    expect(await catalog.labels([digest('b')])).toEqual([]);
  });

  it('counts only labels that say something new, and lets a newer word of the same source replace the older', async () => {
    const { catalog } = await open();
    const label = { digest: digest('a'), label: 1 as const, kind: 'consensus' as const, provenance: 'turn 1', weight: 0.5, at: 1 };
    expect(await catalog.addLabels([label])).toBe(1);
    expect(await catalog.addLabels([{ ...label, at: 2 }])).toBe(0);
    expect(await catalog.addLabels([{ ...label, label: 0, at: 3 }])).toBe(1);
    expect(await catalog.addLabels([{ ...label, label: 1, at: 2 }])).toBe(0);
    expect((await catalog.labels())[0]!.label).toBe(0);
  });

  it('asks about an image once, and turns the answer into a verified label', async () => {
    const { catalog } = await open();
    const item = { digest: digest('a'), turn: 't1', reason: 'sample' as const, proposed: 1 as const, votes: { m: 0.9 }, askedAt: 5 };
    expect(await catalog.askReview([item])).toBe(1);
    expect(await catalog.askReview([{ ...item, turn: 't2' }])).toBe(0);
    expect(await catalog.reviews({ open: true })).toEqual([{ ...item, answer: null, answeredAt: null }]);
    expect(await catalog.answerReview(digest('a'), 0, 9)).toBe(true);
    expect(await catalog.answerReview(digest('a'), 0, 10)).toBe(false);
    expect(await catalog.reviews({ open: true })).toEqual([]);
    expect(await catalog.reviews({ turn: 't1', open: false })).toMatchObject([{ answer: 0, answeredAt: 9 }]);
    expect(await catalog.labels()).toEqual([
      { digest: digest('a'), label: 0, kind: 'verified', provenance: 'review:t1', weight: 1, at: 9 },
    ]);
  });

  it('takes no answer to a question that was never asked', async () => {
    const { catalog } = await open();
    expect(await catalog.answerReview(digest('a'), 1, 1)).toBe(false);
    expect(await catalog.labels()).toEqual([]);
  });
});

describe('traffic', () => {
  const set = { digest: digest('set'), profile: '2026-01', seed: 1, purpose: 'traffic', turn: 't1', at: 1 };
  const challenge = { digest: digest('r1'), parent: digest('p'), pool: 'traffic' as const, group: 'g', label: 1 as const, level: 2 };

  it('adds each journal record once', async () => {
    const { catalog } = await open();
    expect(await catalog.addTraffic([answer('r1'), answer('r2', { at: 500 })])).toEqual({ added: 2 });
    expect(await catalog.addTraffic([answer('r1', { prediction: 0.1 }), answer('r3')])).toEqual({ added: 1 });
    expect((await catalog.traffic()).map((row) => row.id)).toEqual(['r2', 'r1', 'r3']);
    expect((await catalog.traffic({ limit: 2 })).map((row) => row.id)).toEqual(['r1', 'r3']);
    expect((await catalog.traffic({ sinceMs: 1000 })).map((row) => row.id)).toEqual(['r1', 'r3']);
  });

  it('joins an answer with the challenge it was given, and only that', async () => {
    const { catalog } = await open();
    await catalog.addChallengeSet(set, [challenge, challenge]);
    await catalog.addChallengeSet(set, [{ ...challenge, label: 0 }]);
    await catalog.addTraffic([answer('r1'), answer('stranger')]);
    const { digest: _image, ...facts } = challenge;
    expect((await catalog.traffic()).map((row) => row.challenge)).toEqual([{ set: set.digest, ...facts }, null]);
    expect((await catalog.traffic({ set: set.digest })).map((row) => row.id)).toEqual(['r1']);
  });

  it('keeps the shadow whole and finds answers by trial and by model', async () => {
    const { catalog } = await open();
    const shadow = { trial: 'tr', model: digest('candidate'), prediction: null, votes: {}, latencyMs: 3, error: 'boom' };
    await catalog.addTraffic([answer('r1', { shadow }), answer('r2', { model: digest('other') })]);
    expect((await catalog.traffic({ trial: 'tr' })).map((row) => row.shadow)).toEqual([shadow]);
    expect((await catalog.traffic({ model: digest('other') })).map((row) => row.id)).toEqual(['r2']);
  });

  it('moves a journal offset only forward', async () => {
    const { catalog } = await open();
    await catalog.setJournalOffset('a.jsonl', 100);
    await catalog.setJournalOffset('a.jsonl', 50);
    expect(await catalog.journalOffsets()).toEqual({ 'a.jsonl': 100 });
  });
});

describe('turns and models', () => {
  it('starts a turn once and merges its summary key by key', async () => {
    const { catalog } = await open();
    await catalog.startTurn('t1', 10);
    expect(await catalog.startTurn('t1', 99)).toMatchObject({ startedAt: 10, finishedAt: null });
    await catalog.patchTurn('t1', { a: 1, b: { x: 1 } });
    await catalog.patchTurn('t1', { b: { y: 2 } }, 20);
    await catalog.startTurn('t2', 11);
    expect(await catalog.turn('t1')).toEqual({ id: 't1', startedAt: 10, finishedAt: 20, summary: { a: 1, b: { y: 2 } } });
    expect((await catalog.turns(1)).map((turn) => turn.id)).toEqual(['t2']);
    await expect(catalog.patchTurn('nobody', {})).rejects.toThrow(BadInputError);
  });

  it('adds a model once, refuses its name for another bundle, and finds it by name and bundle', async () => {
    const { catalog } = await open();
    await catalog.addModel(model('m1'));
    await catalog.addModel(model('m1', { evidence: { other: true } }));
    await expect(catalog.addModel(model('m1', { bundle: digest('x') }))).rejects.toThrow(BadInputError);
    await catalog.setModelStatus('m1', 'trial', { trial: 2 });
    expect(await catalog.model('m1')).toEqual(model('m1', { status: 'trial', evidence: { gate: 1, trial: 2 } }));
    expect((await catalog.model(model('m1').bundle))?.id).toBe('m1');
    expect(await catalog.model('nobody')).toBeNull();
    await expect(catalog.setModelStatus('nobody', 'trial')).rejects.toThrow(BadInputError);
  });
});

describe('the champion', () => {
  it('moves only from the expected generation, and the same move repeated is no second one', async () => {
    const { catalog } = await open();
    expect(await catalog.champion('hk')).toBeNull();
    await catalog.setChampion(champion(1), 0);
    expect(await catalog.setChampion(champion(1, { promotedAt: 77 }), 0)).toEqual(champion(1));
    await expect(catalog.setChampion(champion(1, { pointer: { ...champion(1).pointer, digest: digest('other') } }), 0)).rejects.toThrow(
      StaleGenerationError,
    );
    await catalog.setChampion(champion(2), 1);
    await expect(catalog.setChampion(champion(2, { pointer: { ...champion(2).pointer, digest: digest('other') } }), 1)).rejects.toThrow(
      StaleGenerationError,
    );
    expect(await catalog.champion('hk')).toEqual(champion(2));
  });

  it('refuses a generation that does not rise', async () => {
    const { catalog } = await open();
    await catalog.setChampion(champion(5), 0);
    await expect(catalog.setChampion(champion(4), 5)).rejects.toThrow(/generation above 5/);
  });

  it('lets exactly one of two writers win the same generation', async () => {
    // Two connections, as two processes would have: the lock file is out of the way on purpose.
    const file = path.join(await temporaryFolder(), 'catalog.db');
    const first = CatalogStore.open(file, { file: `${file}.lock1`, token: 'a' });
    const second = CatalogStore.open(file, { file: `${file}.lock2`, token: 'b' });
    atEnd(() => [first, second].forEach((store) => store.close()));
    first.setChampion(champion(1), 0);
    const next = (name: string): ChampionRecord => champion(2, { pointer: { generation: 2, digest: digest(name), previous: null } });
    expect(second.setChampion(next('second'), 1).pointer.digest).toBe(digest('second'));
    expect(() => first.setChampion(next('first'), 1)).toThrow(StaleGenerationError);
    expect(first.champion('hk')!.pointer.digest).toBe(digest('second'));
  });

  it('keeps the submission of the champion that was submitted', async () => {
    const { catalog } = await open();
    await expect(catalog.setSubmitted('hk', 1)).rejects.toThrow(BadInputError);
    await catalog.setChampion(champion(1), 0);
    await catalog.setSubmitted('hk', 500);
    await catalog.setSubmitted('hk', 500);
    expect((await catalog.champion('hk'))!.submittedAt).toBe(500);
  });

  it('records a reminder once for a submission and day', async () => {
    const { catalog } = await open();
    expect(await catalog.recordReminder('hk', 500, 60, 1)).toBe(true);
    expect(await catalog.recordReminder('hk', 500, 60, 2)).toBe(false);
    expect(await catalog.recordReminder('hk', 900, 60, 3)).toBe(true);
    expect(await catalog.reminders('hk')).toEqual([
      { submittedAt: 500, day: 60, at: 1 },
      { submittedAt: 900, day: 60, at: 3 },
    ]);
  });

  it('closes a trial with its first decision', async () => {
    const { catalog } = await open();
    const trial: TrialRecord = {
      id: 'tr',
      hotkey: 'hk',
      champion: digest('c'),
      candidate: digest('d'),
      openedAt: 1,
      closedAt: null,
      simulated: true,
      decision: null,
      evidence: null,
    };
    await catalog.openTrial(trial);
    await catalog.openTrial({ ...trial, openedAt: 9 });
    await catalog.closeTrial('tr', 'keep', { n: 3 }, 5);
    await catalog.closeTrial('tr', 'keep', { n: 4 }, 6);
    await expect(catalog.closeTrial('tr', 'promote', {}, 7)).rejects.toThrow(/closed with 'keep'/);
    expect(await catalog.trials('hk')).toEqual([{ ...trial, closedAt: 5, decision: 'keep', evidence: { n: 3 } }]);
    await expect(catalog.closeTrial('nobody', 'keep', {}, 7)).rejects.toThrow(BadInputError);
  });
});

describe('the ledger', () => {
  const entry = (job: string, cents: number, month = '2026-01') => ({ job, backend: 'local', cents, month });

  it('reserves once a job, whatever is retried', async () => {
    const { catalog } = await open();
    await catalog.reserve(entry('j', 60), 100);
    await catalog.reserve(entry('j', 60), 100);
    expect(await catalog.ledger('2026-01')).toEqual([
      { job: 'j', backend: 'local', reservedCents: 60, actualCents: null, month: '2026-01', status: 'reserved' },
    ]);
  });

  it('refuses what the month no longer covers, before anything is bought', async () => {
    const { catalog } = await open();
    await catalog.reserve(entry('j1', 60), 100);
    await expect(catalog.reserve(entry('j2', 41), 100)).rejects.toThrow(BudgetExceededError);
    await catalog.reserve(entry('j2', 40), 100);
    await catalog.reserve(entry('j3', 100, '2026-02'), 100);
    expect(await catalog.ledger()).toHaveLength(3);
  });

  it('frees what a settled job did not use', async () => {
    const { catalog } = await open();
    await catalog.reserve(entry('j1', 60), 100);
    await catalog.settle('j1', 10);
    await catalog.settle('j1', 55);
    await catalog.reserve(entry('j2', 90), 100);
    expect((await catalog.ledger()).map((row) => [row.job, row.actualCents, row.status])).toEqual([
      ['j1', 10, 'settled'],
      ['j2', null, 'reserved'],
    ]);
    await expect(catalog.settle('nobody', 1)).rejects.toThrow(BadInputError);
    await expect(catalog.settle('j2', Number.NaN)).rejects.toThrow(BadInputError);
  });

  it('never spends a month twice when many reserve at once', async () => {
    const { catalog } = await open();
    const tries = await Promise.allSettled(Array.from({ length: 20 }, (_, i) => catalog.reserve(entry(`j${i}`, 30), 100)));
    expect(tries.filter((one) => one.status === 'fulfilled')).toHaveLength(3);
    expect((await catalog.ledger()).reduce((sum, row) => sum + row.reservedCents, 0)).toBe(90);
  });
});

describe('the catalog file', () => {
  const script = (file: string, body: string): string =>
    `const { openCatalog } = await import(${JSON.stringify(pathToFileURL(compiledEntry('platform/catalog/index')).href)});
     const catalog = await openCatalog(${JSON.stringify(file)});
     ${body}`;

  it('keeps what was committed when it is closed and opened again', async () => {
    const { catalog, file } = await open();
    await catalog.addImages([image('a')], 1);
    await catalog.close();
    const again = await open(file);
    expect(await again.catalog.images()).toEqual([image('a')]);
  });

  it('removes its lock on closing, and does nothing afterwards but say so', async () => {
    const { catalog, file } = await open();
    await catalog.close();
    await catalog.close();
    expect(await readdir(path.dirname(file))).toEqual(['catalog.db']);
    await expect(catalog.images()).rejects.toThrow(CatalogError);
  });

  it('refuses a second writer in this process and in another, by name of the process', async () => {
    const { file } = await open();
    await expect(openCatalog(file)).rejects.toThrow(CatalogLockedError);
    const said = await startNode(
      `const { openCatalog } = await import(${JSON.stringify(pathToFileURL(compiledEntry('platform/catalog/index')).href)});
       await openCatalog(${JSON.stringify(file)}).then(() => console.log('opened'), (error) => console.log(error.name + ': ' + error.message));`,
    );
    expect(said.line).toContain(`CatalogLockedError: The catalog is written by process ${process.pid}`);
    // The refused ones took nothing away from the holder.
    expect(JSON.parse(await readFile(catalogLockFile(file), 'utf8'))).toMatchObject({ pid: process.pid });
  });

  it('takes the lock over from a writer that was killed, with all it had committed', async () => {
    const file = path.join(await temporaryFolder(), 'catalog.db');
    const { child, line } = await startNode(
      script(file, `await catalog.startTurn('t1', 1); console.log('open'); setInterval(() => {}, 1000);`),
    );
    expect(line).toBe('open');
    await expect(openCatalog(file)).rejects.toThrow(CatalogLockedError);
    child.kill('SIGKILL');
    await ended(child);
    const { catalog } = await open(file);
    expect(await catalog.turn('t1')).toMatchObject({ startedAt: 1 });
    expect(JSON.parse(await readFile(catalogLockFile(file), 'utf8'))).toMatchObject({ pid: process.pid });
  });

  it('takes over a lock whose process id another process has by now', async () => {
    const file = path.join(await temporaryFolder(), 'catalog.db');
    await writeFile(catalogLockFile(file), JSON.stringify({ pid: process.pid, start: 'some time before', token: 'x' }));
    const { catalog } = await open(file);
    expect(await catalog.models()).toEqual([]);
  });

  it('lets only one of several writers take a stale lock over', async () => {
    const file = path.join(await temporaryFolder(), 'catalog.db');
    const lock = catalogLockFile(file);
    await writeFile(lock, JSON.stringify({ pid: 2 ** 22 + 1, start: 'gone', token: 'x' }));
    const body = `console.log('opened'); setInterval(() => {}, 1000);`;
    const tries = await Promise.allSettled([1, 2, 3].map(() => startNode(script(file, body))));
    expect(tries.filter((one) => one.status === 'fulfilled')).toHaveLength(1);
  });

  it('keeps the old state when the writer is killed in the middle of a transaction', async () => {
    const { catalog, file } = await open();
    await catalog.setChampion(champion(1), 0);
    await catalog.close();
    const sqlite = JSON.stringify(pathToFileURL(path.resolve('node_modules/better-sqlite3/lib/index.js')).href);
    const { child } = await startNode(
      `const { default: Database } = await import(${sqlite});
       const db = new Database(${JSON.stringify(file)});
       db.pragma('cache_size = 1');
       db.exec('begin immediate');
       db.exec("update champions set digest = 'half'");
       for (let i = 0; i < 5000; i++) db.prepare("insert into turns values (?, 1, null, '{}')").run('turn' + i);
       console.log('in the middle');
       setInterval(() => {}, 1000);`,
    );
    child.kill('SIGKILL');
    await ended(child);
    const again = await open(file);
    expect(await again.catalog.champion('hk')).toEqual(champion(1));
    expect(await again.catalog.turns(10)).toEqual([]);
  });

  it('refuses a catalog of a newer version and leaves it and the lock alone', async () => {
    const { catalog, file } = await open();
    await catalog.close();
    const sqlite = new Database(file);
    sqlite.prepare('insert into schema_version values (?, 1)').run(SCHEMA_VERSION + 1);
    sqlite.close();
    await expect(openCatalog(file)).rejects.toThrow(CatalogTooNewError);
    await expect(openCatalogReadOnly(file)).rejects.toThrow(CatalogTooNewError);
    expect(await readdir(path.dirname(file))).not.toContain('catalog.lock');
  });

  it('refuses a file that is no catalog, damaged or of another program', async () => {
    const dir = await temporaryFolder();
    await writeFile(path.join(dir, 'damaged.db'), 'this is no database at all, but long enough to be looked at');
    await expect(openCatalog(path.join(dir, 'damaged.db'))).rejects.toThrow(CatalogError);
    const other = new Database(path.join(dir, 'other.db'));
    other.exec('create table recipes (id)');
    other.close();
    await expect(openCatalog(path.join(dir, 'other.db'))).rejects.toThrow(/some other program/);
    expect(await readdir(dir)).not.toContain('catalog.lock');
  });

  it('does calls in the order they are made', async () => {
    const { catalog } = await open();
    await Promise.all([catalog.startTurn('t1', 1), catalog.patchTurn('t1', { a: 1 }), catalog.patchTurn('t1', { a: 2 })]);
    expect((await catalog.turn('t1'))!.summary).toEqual({ a: 2 });
  });

  it('lets a reader see what the writer committed, while it writes', async () => {
    const { catalog, file } = await open();
    await catalog.addModel(model('m1'));
    const reader = await openCatalogReadOnly(file);
    atEnd(() => reader.close());
    expect((await reader.models()).map((one) => one.id)).toEqual(['m1']);
    await catalog.addModel(model('m2'));
    expect((await reader.models()).map((one) => one.id)).toEqual(['m1', 'm2']);
    expect('addModel' in reader).toBe(false);
  });

  it('tells a reader that there is no catalog yet', async () => {
    await expect(openCatalogReadOnly(path.join(await temporaryFolder(), 'catalog.db'))).rejects.toThrow(/no catalog.*yet/);
  });

  it('copies itself whole into one file while it is open, from the writer and from a reader', async () => {
    const { catalog, file } = await open();
    await catalog.addImages([image('a')], 1);
    const reader = await openCatalogReadOnly(file);
    atEnd(() => reader.close());
    for (const [name, from] of [
      ['writer', catalog],
      ['reader', reader],
    ] as const) {
      const copy = path.join(await temporaryFolder(), `${name}.db`);
      await from.backupTo(copy);
      expect(await readdir(path.dirname(copy))).toEqual([`${name}.db`]);
      const copied = await open(copy);
      expect(await copied.catalog.images()).toEqual([image('a')]);
    }
  });
});
