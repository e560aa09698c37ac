/** `flywheel status`: what runs, who is champion and how old, what is on trial, which dates come next. Reads only. */
import { existsSync } from 'node:fs';
import { MinerStatus } from '../domain/contracts/miner.js';
import { decaySchedule, type DecayPolicy } from '../domain/decay.js';
import { lifecycleView, type Due, type LifecycleView } from '../domain/lifecycle.js';
import { openCatalogReadOnly } from '../platform/catalog/index.js';
import { isAlive } from '../platform/process.js';
import { readServices } from '../platform/home.js';
import { connectTemporal, locateTemporal } from '../platform/temporal/server.js';
import { lifecycleId } from '../workflows/ids.js';
import { lifecycleStatus } from '../workflows/messages.js';
import type { lifecycle } from '../workflows/index.js';
import type { LifecycleStatus } from '../workflows/types.js';
import type { CommandContext } from './context.js';
import { ownHotkey } from './identity.js';

/** Last words on candidates that are shown; all of them are in the catalog. */
const DECISIONS_SHOWN = 3;
/** The lifecycle's answer must not keep the operator waiting when no worker runs. */
const QUERY_WITHIN_MS = 5_000;

interface Status {
  home: string;
  running: boolean;
  temporal: { address: string; ui: string | null } | null;
  processes: Record<string, { pid: number; alive: boolean }>;
  miner: MinerStatus | null;
  /** champion, trial, and the clock of its decay; null when it could not be asked */
  lifecycle: LifecycleStatus | null;
  /** champion and its dates from the catalog, which outlives Temporal: there also while nothing runs; null when there is none */
  champion: (LifecycleView & { generation: number; reminders: { day: number; at: number; sent: boolean }[] }) | null;
  /** images on the review list that wait for a person; null while there is no catalog */
  toReview: number | null;
  /** what could not be asked, and why */
  troubles: string[];
}

async function collect(context: CommandContext): Promise<Status> {
  const { paths } = context;
  const services = readServices(paths);
  const running = services.up !== null && (await isAlive(services.up.pid, services.up.start));
  const processes: Status['processes'] = {};
  for (const [name, note] of Object.entries(services.children))
    processes[name] = { pid: note.pid, alive: await isAlive(note.pid, note.start) };
  const status: Status = {
    home: paths.root,
    running,
    temporal: null,
    processes,
    miner: null,
    lifecycle: null,
    champion: null,
    toReview: null,
    troubles: [],
  };
  const trouble = (what: string, error: unknown): void => {
    status.troubles.push(`${what}: ${(error as Error).message}`);
  };
  if (services.miner !== null && running) {
    try {
      const answer = await fetch(`${services.miner.controlUrl}/readyz`, { signal: AbortSignal.timeout(3_000) });
      status.miner = MinerStatus.parse(await answer.json());
    } catch (error) {
      trouble(`miner at ${services.miner.controlUrl}`, error);
    }
  }
  const hotkey = services.miner?.hotkey ?? (await ownHotkey(paths).catch(() => null));
  if (running || process.env['TEMPORAL_ADDRESS']) await askLifecycle();
  if (existsSync(paths.catalog)) {
    try {
      // The lifecycle that runs may follow another policy than the configuration at hand.
      Object.assign(status, await fromCatalog(context, hotkey, status.lifecycle?.settings.decay ?? context.config.decay));
    } catch (error) {
      trouble('catalog', error);
    }
  }
  return status;

  async function askLifecycle(): Promise<void> {
    try {
      const temporal = await locateTemporal(paths);
      status.temporal = { address: temporal.address, ui: temporal.ui };
      const client = await connectTemporal(temporal, 5_000);
      try {
        if (hotkey !== null)
          status.lifecycle = await client.connection.withDeadline(Date.now() + QUERY_WITHIN_MS, () =>
            client.workflow.getHandle<typeof lifecycle>(lifecycleId(hotkey)).query(lifecycleStatus),
          );
      } finally {
        await client.connection.close();
      }
    } catch (error) {
      trouble('lifecycle', error);
    }
  }
}

/** What the catalog says: it is there whatever runs. */
async function fromCatalog(
  context: CommandContext,
  hotkey: string | null,
  policy: DecayPolicy,
): Promise<Pick<Status, 'champion' | 'toReview'>> {
  const catalog = await openCatalogReadOnly(context.paths.catalog);
  try {
    const toReview = (await catalog.reviews({ open: true })).length;
    const held = hotkey === null ? null : await catalog.champion(hotkey);
    const view = held ? lifecycleView({ champion: held.modelId, submittedAt: held.submittedAt, policy, now: Date.now() }) : null;
    if (!held || !view || hotkey === null) return { champion: null, toReview };
    const sent = (await catalog.reminders(hotkey)).filter((r) => r.submittedAt === held.submittedAt).map((r) => r.day);
    const reminders = decaySchedule(policy, held.submittedAt).reminders.map((r) => ({ ...r, sent: sent.includes(r.day) }));
    return { champion: { ...view, generation: held.pointer.generation, reminders }, toReview };
  } finally {
    await catalog.close();
  }
}

const DUE: Record<Due, string> = {
  nothing: '',
  retrain: ': time to retrain',
  resubmit: ': resubmit now',
  overdue: ': OVERDUE, its reward falls',
  expired: ': EXPIRED, it earns nothing',
};

const date = (ms: number): string => new Date(ms).toISOString().slice(0, 10);

function render(status: Status): string {
  const lines = [
    `Home      ${status.home}`,
    status.running
      ? `Running   ${Object.entries(status.processes)
          .map(([name, child]) => `${name} (${child.alive ? child.pid : 'ended'})`)
          .join(', ')}`
      : 'Running   no; start it with `flywheel up`',
  ];
  if (status.temporal !== null) lines.push(`Temporal  ${status.temporal.ui ?? status.temporal.address}`);
  if (status.miner !== null) {
    const { miner } = status;
    lines.push(
      `Miner     ${miner.url}  hotkey ${miner.hotkey}  ${miner.ready ? 'ready' : 'not ready yet'}; answered ${miner.answered}, journalled ${miner.journalled}, dropped ${miner.journalDropped}`,
    );
    if (miner.refused !== null) lines.push(`          refused: ${miner.refused}`);
  }
  const { champion } = status;
  if (champion !== null) {
    lines.push(
      `Champion  ${champion.champion} (generation ${champion.generation}), day ${champion.day.toFixed(1)}, reward factor ${champion.rewardFactor.toFixed(2)}${DUE[champion.due]}`,
      `          retrain from ${date(champion.retrainOn)}, resubmit by ${date(champion.resubmitBy)}; full reward until ${date(champion.fullUntil)}, none from ${date(champion.zeroAt)}`,
      `          reminders ${champion.reminders.map((r) => `day ${r.day} ${date(r.at)}${r.sent ? ' (sent)' : ''}`).join(', ')}`,
    );
  } else if (status.toReview !== null) lines.push('Champion  none yet');
  const trial = status.lifecycle?.state.trial ?? null;
  if (trial !== null)
    lines.push(
      `Trial     ${trial.message.model.id}${trial.message.simulated ? ' (simulated traffic)' : ''}, ${trial.looks} looks${trial.last === null ? '' : `: ${trial.last.decision}, ${trial.last.reason}`}`,
    );
  for (const d of (status.lifecycle?.state.decided ?? []).slice(0, DECISIONS_SHOWN))
    lines.push(`Decided   ${d.model}: ${d.decision}, ${new Date(d.at).toISOString().slice(0, 16).replace('T', ' ')}; ${d.reason}`);
  if (status.toReview) lines.push(`Review    ${status.toReview} images wait for a person: flywheel review`);
  for (const text of status.troubles) lines.push(`!         ${text}`);
  return lines.join('\n');
}

/** Answers also when nothing runs; then it says so. */
export async function statusCommand(context: CommandContext): Promise<void> {
  const status = await collect(context);
  await context.print(render(status));
  await context.result(status as unknown as Record<string, unknown>);
}
