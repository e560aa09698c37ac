/** GPU jobs: ledger, launch or adopt, watch, collect, end; and the inputs of each kind, built from the turn's configuration. */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Context } from '@temporalio/activity';
import { monthOf } from '../domain/budget.js';
import type { FlywheelConfig } from '../domain/config.js';
import { type Digest, GateThresholds, ImageRow } from '../domain/contracts/common.js';
import {
  JOB_CONTRACT_VERSION,
  JOB_EXIT,
  jobFailure,
  JobResult,
  JOBS,
  JobSpec,
  KILLED,
  MAX_BATCH_DIVISOR,
  type JobInput,
  type JobKind,
  type JobOrder,
} from '../domain/contracts/jobs.js';
import { BadInputError, JobFailedError } from '../domain/errors.js';
import { rotate } from '../domain/rotation.js';
import { jobDir } from '../platform/gpu/local.js';
import { deriveSizes } from '../platform/inference/sizing.js';
import type { TurnPlan } from '../workflows/types.js';
import { beating, type ActivityDeps } from './deps.js';
import { configOf } from './turns.js';

export type JobEnd = { outcome: 'done' | 'bad-input' | 'out-of-memory' | 'again'; message: string };

/** How often a running job is looked at. */
const WATCH_EVERY_MS = 500;
/** From SIGTERM to SIGKILL: time to write a checkpoint. */
const END_GRACE_MS = 10_000;

/** Each purpose draws its own challenges. */
const PURPOSE_SEED = { traffic: 1, gate: 2, trial: 3 } as const;

export function jobActivities(deps: ActivityDeps) {
  const { catalog, gpu, home } = deps;

  return {
    async reserveJob(input: { name: string; kind: string; maxSeconds: number }): Promise<void> {
      const offer = await gpu.offer(input.maxSeconds);
      await catalog.reserve(
        { job: input.name, backend: gpu.kind, cents: offer.reserveCents, month: monthOf(deps.clock()) },
        deps.config.gpu.monthlyBudgetCents,
      );
    },

    async launchJob(input: {
      name: string;
      kind: JobKind;
      input: Record<string, unknown>;
      maxSeconds: number;
      turn: string;
    }): Promise<{ adopted: boolean }> {
      const checked = JOBS[input.kind].input.safeParse(input.input);
      if (!checked.success) throw new BadInputError(`the ${input.kind} job's input does not fit its contract: ${checked.error.message}`);
      const threads = deps.config.gpu.threads || deps.threads;
      const batchDivisor = await nextBatchDivisor(input.name);
      const launched = await gpu.launchOrAdopt(
        {
          version: JOB_CONTRACT_VERSION,
          job: input.kind,
          name: input.name,
          objects: { kind: 'file', root: home.objects },
          cacheDir: home.cache,
          workDir: jobDir(home.jobs, input.name),
          threads,
          ...(batchDivisor > 1 && { batchDivisor }),
          input: checked.data,
        },
        { maxSeconds: input.maxSeconds, nice: deps.config.gpu.nice },
      );
      deps.log.info({ job: input.name, ...launched }, 'job launched or adopted');
      return launched;
    },

    /** Watches until the job ends. A lost worker loses nothing: the next one watches on. */
    async watchJob(input: { name: string; turn: string; kind: string }): Promise<JobEnd> {
      const beat = beating();
      for (;;) {
        const status = await gpu.status(input.name);
        if (status.state === 'running') {
          const at = status.progress;
          beat({ turn: input.turn, what: at?.phase ?? input.kind, done: at?.done ?? 0, total: at?.total ?? 0, unit: at?.unit ?? '' });
          await sleep(WATCH_EVERY_MS, undefined, { signal: Context.current().cancellationSignal });
          continue;
        }
        if (status.state === 'unknown') return { outcome: 'again', message: 'the machine knows nothing of the job' };
        const said = await readResult(input.name);
        if (status.exitCode === JOB_EXIT.ok && said?.ok) return { outcome: 'done', message: '' };
        const outcome = await whatNext(input.name, status.exitCode);
        const next =
          outcome === 'again' ? 'it is started again with its batches halved' : 'smaller batches did not help: use a bigger machine';
        const ended =
          status.exitCode === KILLED
            ? `it was killed (SIGKILL), as the kernel does where memory is short; ${next}`
            : `exit code ${status.exitCode ?? 'unknown (killed)'}`;
        return { outcome, message: said && !said.ok ? said.error.message : `${ended}: ${status.logTail.slice(-2000)}` };
      }
    },

    async collectJob(input: { name: string; kind: JobKind }): Promise<{ output: Record<string, unknown>; seconds: number }> {
      const result = await readResult(input.name);
      if (!result?.ok) throw new JobFailedError(`job ${input.name} left no good result in ${jobDir(home.jobs, input.name)}`);
      const output = JOBS[input.kind].output.safeParse(result.output);
      if (!output.success) throw new JobFailedError(`the ${input.kind} job's result does not fit its contract: ${output.error.message}`);
      return { output: output.data, seconds: result.seconds };
    },

    /** Ends the machine and settles its cost; safe to repeat, and for a job that never started. */
    async endJob(input: { name: string }): Promise<void> {
      await gpu.end(input.name, END_GRACE_MS);
      await catalog.settle(input.name, 0);
    },

    async renderInput(input: { config: Digest; seed: number }): Promise<JobInput<'render'>> {
      const { render } = await configOf(deps, input.config);
      return { count: render.scenes, perGroup: render.perGroup, seed: input.seed, width: 400, height: 300 };
    },

    async challengesInput(input: {
      config: Digest;
      manifest: Digest;
      purpose: 'traffic' | 'gate' | 'trial';
      seed: number;
    }): Promise<JobInput<'challenges'>> {
      const config = await configOf(deps, input.config);
      const count = { traffic: config.traffic.challenges, gate: config.gate.challenges, trial: config.trial.simulatedChallenges }[
        input.purpose
      ];
      const manifest = input.purpose === 'traffic' ? input.manifest : await heldOutPart(input.manifest, input.seed, config);
      return {
        manifest,
        profile: config.profile,
        mode: 'draw',
        count,
        seed: input.seed * 10 + PURPOSE_SEED[input.purpose],
        flips: false,
      };
    },

    async labelInput(input: { config: Digest; candidates: Digest; train: Digest; seed: number }): Promise<JobInput<'label'>> {
      const { training } = await configOf(deps, input.config);
      return { candidates: input.candidates, train: input.train, members: training.members, folds: training.folds, seed: input.seed };
    },

    async neighboursInput(input: { config: Digest; queries: Digest; corpus: Digest }): Promise<JobInput<'neighbours'>> {
      const { hardCases, training } = await configOf(deps, input.config);
      // what is near is told by the scene, whatever else the member's head sees
      const member = { ...training.members[0]!, features: 'final' as const };
      return { queries: input.queries, corpus: input.corpus, k: hardCases.neighbours, member };
    },

    async synthesizeInput(input: {
      config: Digest;
      failures: Digest;
      corpus: Digest;
      neighbours: Digest;
      seed: number;
    }): Promise<JobInput<'synthesize'>> {
      const { synthesis } = await configOf(deps, input.config);
      return {
        failures: input.failures,
        corpus: input.corpus,
        neighbours: input.neighbours,
        perFailure: synthesis.perFailure,
        maxImages: synthesis.maxImages,
        providers: synthesis.providers,
        seed: input.seed,
      };
    },

    async trainInput(input: { config: Digest; snapshot: Digest; initFrom: Digest | null; seed: number }): Promise<JobOrder<'train'>> {
      const { training } = await configOf(deps, input.config);
      return {
        ...training,
        snapshot: input.snapshot,
        initFrom: input.initFrom,
        ablation: true,
        shards: null,
        report: true,
        seed: input.seed,
      };
    },

    async exportInput(input: {
      turn: string;
      trained: Digest;
      snapshot: Digest;
      parent: Digest | null;
      parity: Digest;
      first: boolean;
      seed: number;
    }): Promise<JobOrder<'export'>> {
      const plan = (await catalog.turn(input.turn))?.summary['plan'] as TurnPlan | undefined;
      const config = plan ? await configOf(deps, plan.config) : deps.config;
      const name = `${input.turn}${input.first ? '-first' : ''}`.toLowerCase().replace(/[^a-z0-9.-]+/g, '-');
      return {
        trained: input.trained,
        name,
        snapshot: input.snapshot,
        parent: input.parent,
        parity: input.parity,
        parityImages: 16,
        parityTolerance: 1e-3,
        seed: input.seed,
        ...config.export,
        gates: GateThresholds.parse(config.gates),
        // what the miner of this configuration gives a process that runs a large model: speeds are compared with that
        servingThreads: deriveSizes(config.miner.processes, config.miner.threads).threads,
      };
    },
  };

  /**
   * The part of the held-out pool that this gate or look draws from. Turns are 1000 seeds apart and looks one, so that gate,
   * looks and the next turn's gate take part after part.
   */
  async function heldOutPart(manifest: Digest, seed: number, config: FlywheelConfig): Promise<Digest> {
    const rows = await deps.objects.getJsonl(manifest, (row) => ImageRow.parse(row));
    const beyond = seed - config.seed;
    const turn = Math.floor(beyond / 1000) + (((beyond % 1000) + 1000) % 1000);
    const rotated = rotate(rows, turn, config.verdict.rotateGroupsPerClass);
    deps.log.info({ seed, parts: rotated.parts, part: rotated.part }, `challenges are drawn from ${rotated.note}`);
    return rotated.parts === 1 ? manifest : deps.objects.putJsonl(rotated.rows);
  }

  async function readResult(name: string): Promise<JobResult | null> {
    return readJson(name, 'result.json', JobResult);
  }

  async function readJson<T>(name: string, file: string, schema: { parse(value: unknown): T }): Promise<T | null> {
    try {
      return schema.parse(JSON.parse(await readFile(path.join(jobDir(home.jobs, name), file), 'utf8')));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
      throw new JobFailedError(`${file} of job ${name} can't be read: ${String(error)}`);
    }
  }

  /** What a failure asks for. A job out of memory is started again with its batches halved while that can still help. */
  async function whatNext(name: string, exitCode: number | null): Promise<Exclude<JobEnd['outcome'], 'done'>> {
    const failure = jobFailure(exitCode);
    if (failure?.kind === 'bad-input') return 'bad-input';
    if (failure?.kind !== 'out-of-memory' && exitCode !== KILLED) return 'again';
    return failure?.reason === 'one-image-too-big' || (await batchDivisor(name)) >= MAX_BATCH_DIVISOR ? 'out-of-memory' : 'again';
  }

  async function batchDivisor(name: string): Promise<number> {
    return (await readJson(name, 'spec.json', JobSpec))?.batchDivisor ?? 1;
  }

  /** Of the start to come: what the last one had, doubled when that ended out of memory. */
  async function nextBatchDivisor(name: string): Promise<number> {
    const last = await readResult(name).catch(() => null); // a result that can't be read is the backend's to judge
    const divisor = await batchDivisor(name).catch(() => 1);
    const short = last !== null && !last.ok && last.error.kind === 'out-of-memory';
    if (last === null && divisor < MAX_BATCH_DIVISOR) {
      // Without a word and by SIGKILL: the kernel, most likely. Smaller batches cost a stray kill nothing but speed.
      const status = await gpu.status(name);
      if (status.state === 'ended' && status.exitCode === KILLED) return divisor * 2;
    }
    return short ? Math.min(divisor * 2, MAX_BATCH_DIVISOR) : divisor;
  }
}
