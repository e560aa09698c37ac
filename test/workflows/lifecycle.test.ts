import { describe, expect, it } from 'vitest';
import { ApplicationFailure } from '@temporalio/activity';
import type { WorkflowHandle } from '@temporalio/client';
import { lifecycle } from '../../src/workflows/index.js';
import {
  candidateReady,
  lifecycleSettings,
  lifecycleStatus,
  promoteSignal,
  promoteUpdate,
  rejectUpdate,
  rollbackUpdate,
} from '../../src/workflows/messages.js';
import type { CandidateMessage, LifecycleState } from '../../src/workflows/types.js';
import { timeSkipping } from '../support/temporal.js';
import { hex, play, verdict, withWorker, type Played } from './support.js';

const DAY = 86_400_000;
const model = (n: number) => ({ id: `m${n}`, bundle: hex(300 + n), trained: hex(400 + n) });
const candidate = (n: number, over: Partial<CandidateMessage> = {}): CandidateMessage => ({
  model: model(n),
  turn: 'turn-1',
  first: false,
  simulated: true,
  config: hex(9),
  seed: 1,
  ...over,
});

describe('lifecycle', () => {
  const server = timeSkipping();
  let run = 0;

  async function withLifecycle(
    played: Played,
    state: 'empty' | 'standing',
    body: (handle: WorkflowHandle<typeof lifecycle>) => Promise<void>,
    carry: Partial<LifecycleState> = {},
  ) {
    const hotkey = `${++run}-hotkey-life`;
    const now = await server.env.currentTimeMs();
    const champion = {
      pointer: { generation: 1, digest: model(0).bundle, previous: null },
      model: model(0),
      previous: null,
      submittedAt: now,
    };
    await withWorker(server.env, played, async (taskQueue) => {
      const handle = await server.env.client.workflow.start(lifecycle, {
        taskQueue,
        workflowId: `lifecycle-${hotkey}`,
        args: [
          {
            hotkey,
            decay: 'plan-90-180',
            trial: { lookEverySeconds: 3600, maxSeconds: 7 * 86_400, maxJobSeconds: 60 },
            state: state === 'empty' ? null : { hotkey, champion, trial: null, waiting: null, reminded: [], decided: [], ...carry },
          },
        ],
      });
      try {
        await body(handle);
      } finally {
        const trial = (await handle.query(lifecycleStatus).catch(() => null))?.state.trial;
        if (trial)
          await server.env.client.workflow
            .getHandle(trial.id)
            .terminate('the test is over')
            .catch(() => undefined);
        await handle.terminate('the test is over').catch(() => undefined);
      }
    });
  }
  const stateOf = async (handle: WorkflowHandle<typeof lifecycle>) => (await handle.query(lifecycleStatus)).state;
  const eventually = (handle: WorkflowHandle<typeof lifecycle>, of: (s: LifecycleState) => unknown) =>
    expect.poll(async () => of(await stateOf(handle)), { timeout: 15_000 });

  it('makes the first model champion without a trial', async () => {
    const played = play();
    await withLifecycle(played, 'empty', async (handle) => {
      await handle.signal(candidateReady, candidate(1, { first: true }));
      await eventually(handle, (s) => s.champion?.model.id).toBe('m1');
    });
    expect(played.count('openTrial')).toBe(0);
    const names = played.calls.map((c) => c.name);
    expect(names.indexOf('moveChampion')).toBeLessThan(names.indexOf('writePointer'));
    expect(names.indexOf('writePointer')).toBeLessThan(names.indexOf('publishModel'));
  });

  it('promotes by the verdict of the trial, and remembers the previous champion', async () => {
    const played = play();
    await withLifecycle(played, 'standing', async (handle) => {
      await handle.signal(candidateReady, candidate(1));
      await eventually(handle, (s) => s.champion?.model.id).toBe('m1');
      await eventually(handle, (s) => s.trial).toBeNull();
      const state = await stateOf(handle);
      expect(state.champion?.previous?.id).toBe('m0');
      expect(state.champion?.pointer.generation).toBe(2);
      expect(state.decided[0]).toMatchObject({ model: 'm1', decision: 'promote' });
    });
  });

  it('keeps the champion when the verdict says so', async () => {
    const played = play({ judgePair: async () => verdict('keep') });
    await withLifecycle(played, 'standing', async (handle) => {
      await handle.signal(candidateReady, candidate(1));
      await eventually(handle, (s) => s.decided[0]?.decision).toBe('keep');
      expect((await stateOf(handle)).champion?.model.id).toBe('m0');
    });
    expect(played.count('moveChampion')).toBe(0);
    expect(played.count('rejectModel')).toBe(1);
  });

  it('runs one trial at a time: a newer candidate waits, the newest supersedes it', async () => {
    const played = play({ judgePair: async () => verdict('continue') });
    await withLifecycle(played, 'standing', async (handle) => {
      await handle.signal(candidateReady, candidate(1));
      await eventually(handle, (s) => s.trial?.looks ?? 0).toBeGreaterThanOrEqual(1);
      await handle.signal(candidateReady, candidate(2));
      await handle.signal(candidateReady, candidate(3));
      await eventually(handle, (s) => s.waiting?.model.id).toBe('m3');
      const state = await stateOf(handle);
      expect(state.trial?.message.model.id).toBe('m1');
      expect(state.decided[0]).toMatchObject({ model: 'm2', decision: 'superseded' });
    });
  });

  it('promotes at once on a signal during the trial, as the Temporal UI sends it', async () => {
    const played = play({ judgePair: async () => verdict('continue') });
    await withLifecycle(played, 'standing', async (handle) => {
      await handle.signal(candidateReady, candidate(1));
      await eventually(handle, (s) => s.trial?.looks ?? 0).toBeGreaterThanOrEqual(1);
      await handle.signal(promoteSignal);
      await eventually(handle, (s) => s.champion?.model.id).toBe('m1');
      await eventually(handle, (s) => s.trial).toBeNull();
    });
    expect(played.calls.find((c) => c.name === 'closeTrial')?.args).toMatchObject({ reason: 'promoted by the operator' });
  });

  it('starts the waiting candidate when the trial before it was rejected by the operator', async () => {
    const played = play({ judgePair: async () => verdict('continue') });
    await withLifecycle(played, 'standing', async (handle) => {
      await handle.signal(candidateReady, candidate(1));
      await handle.signal(candidateReady, candidate(2));
      await eventually(handle, (s) => s.waiting?.model.id).toBe('m2');
      await handle.executeUpdate(rejectUpdate, { args: [null, 'test'] });
      await eventually(handle, (s) => s.trial?.message.model.id).toBe('m2');
    });
  });

  it('rolls back to the previous champion, with a new generation', async () => {
    const played = play();
    await withLifecycle(played, 'standing', async (handle) => {
      await handle.signal(candidateReady, candidate(1));
      await eventually(handle, (s) => s.champion?.model.id).toBe('m1');
      await handle.executeUpdate(rollbackUpdate, { args: ['test'] });
      await eventually(handle, (s) => s.champion?.model.id).toBe('m0');
      expect((await stateOf(handle)).champion?.pointer.generation).toBe(3);
    });
  });

  it('refuses at once to promote when there is nothing to promote, to promote the champion, and to roll back to nothing', async () => {
    await withLifecycle(play(), 'standing', async (handle) => {
      await expect(handle.executeUpdate(promoteUpdate, { args: [null, 'test'] })).rejects.toMatchObject({
        cause: { message: expect.stringContaining('no candidate') },
      });
      await expect(handle.executeUpdate(promoteUpdate, { args: ['m0', 'test'] })).rejects.toMatchObject({
        cause: { message: expect.stringContaining('champion already') },
      });
      await expect(handle.executeUpdate(rollbackUpdate, { args: ['test'] })).rejects.toMatchObject({
        cause: { message: expect.stringContaining('no previous') },
      });
    });
  });

  it('survives a command that fails, and says so', async () => {
    const played = play({
      moveChampion: async () => {
        throw ApplicationFailure.create({ message: 'another writer was first', type: 'StaleGenerationError' });
      },
    });
    await withLifecycle(played, 'standing', async (handle) => {
      await handle.signal(promoteSignal, 'm9');
      await eventually(handle, (s) => s.decided[0]?.reason).toMatch(/another writer was first/);
      expect((await stateOf(handle)).champion?.model.id).toBe('m0');
    });
  });

  it('reminds on days 60, 75 and 85 of a submission, once each, over half a year', () =>
    server.onOwnServer(async () => {
      const played = play();
      await withLifecycle(played, 'standing', async () => {
        await server.env.sleep('180 days');
        await expect.poll(() => played.count('remind'), { timeout: 10_000 }).toBe(3);
      });
      const reminded = played.calls
        .filter((c) => c.name === 'remind')
        .map((c) => c.args as { day: number; at: number; submittedAt: number });
      expect(reminded.map((r) => r.day)).toEqual([60, 75, 85]);
      for (const r of reminded) expect(Math.round((r.at - r.submittedAt) / DAY)).toBe(r.day);
    }));

  it('follows a decay policy that the operator changed, from then on', () =>
    server.onOwnServer(async () => {
      const played = play();
      await withLifecycle(played, 'standing', async (handle) => {
        const { settings, state } = await handle.query(lifecycleStatus);
        await handle.signal(lifecycleSettings, { ...settings, decay: 'docs-45-90' });
        const clock = (await handle.query(lifecycleStatus)).clock;
        expect(clock?.resubmitBy).toBe((state.champion?.submittedAt ?? 0) + 37 * DAY);
        await server.env.sleep(40 * DAY);
        expect(played.calls.filter((c) => c.name === 'remind').map((c) => (c.args as { day: number }).day)).toEqual([30, 37]);
      });
    }));

  it('opens a trial again that was running when Temporal lost its database', async () => {
    const played = play({ judgePair: async () => verdict('continue') });
    const openedAt = await server.env.currentTimeMs();
    await withLifecycle(
      played,
      'standing',
      async (handle) => {
        await eventually(handle, (s) => s.trial?.looks ?? 0).toBeGreaterThanOrEqual(3);
        expect(played.count('openTrial')).toBeGreaterThanOrEqual(1);
      },
      { trial: { id: `trial-reopened-${run}`, message: candidate(1), looks: 2, openedAt, last: null } },
    );
  });
});
