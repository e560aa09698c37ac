/** What Prometheus is told, on the control port. */
import { Counter, Gauge, Histogram, Registry } from 'prom-client';

export type MinerMetrics = ReturnType<typeof createMetrics>;

/** How a request ended, for the counter of answers. */
export type Outcome =
  | 'answered'
  | 'ping'
  | 'not-found'
  | 'not-verified'
  | 'forbidden'
  | 'bad-request'
  | 'too-large'
  | 'bad-image'
  | 'no-model'
  | 'overloaded'
  | 'failed'
  | 'gone';

/** @param read values that are counted elsewhere, read when Prometheus asks */
export function createMetrics(read: {
  queue: () => number;
  journalled: () => number;
  journalDropped: () => number;
  journalBytes: () => number;
  restarts: () => number;
  model: () => { digest: string; generation: number } | null;
  ready: () => boolean;
}) {
  const registry = new Registry();
  const registers = [registry];
  const gauge = (name: string, help: string, value: () => number) =>
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(value());
      },
    });
  gauge('miner_queue_images', 'Images waiting or being answered', read.queue);
  gauge('miner_journal_records', 'Journal records written since the start', read.journalled);
  gauge('miner_journal_dropped', 'Journal records dropped since the start', read.journalDropped);
  gauge('miner_journal_bytes', 'Bytes of the journal on disk', read.journalBytes);
  gauge('miner_inference_restarts', 'Inference processes started again after a crash', read.restarts);
  gauge('miner_ready', '1 when a model is served', () => (read.ready() ? 1 : 0));
  new Gauge({
    name: 'miner_model_info',
    help: 'The bundle that is served, by digest and generation of the pointer',
    labelNames: ['digest', 'generation'],
    registers,
    collect() {
      this.reset();
      const model = read.model();
      if (model !== null) this.set({ digest: model.digest, generation: String(model.generation) }, 1);
    },
  });
  return {
    registry,
    latency: new Histogram({
      name: 'miner_answer_seconds',
      help: 'Request received to answer ready, answered requests',
      buckets: [0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5, 9],
      registers,
    }),
    outcomes: new Counter<'outcome'>({
      name: 'miner_requests_total',
      help: 'Requests by how they ended',
      labelNames: ['outcome'],
      registers,
    }),
    swaps: new Counter<'result'>({
      name: 'miner_swaps_total',
      help: 'Changes of the champion, done and refused',
      labelNames: ['result'],
      registers,
    }),
    shadow: new Counter<'result'>({
      name: 'miner_shadow_total',
      help: 'Requests chosen for the shadow: answered, failed, or skipped because it was behind',
      labelNames: ['result'],
      registers,
    }),
    leftOut: new Counter<'member' | 'reason'>({
      name: 'miner_members_left_out_total',
      help: 'Votes that had to do without a member: it failed, or would have been late',
      labelNames: ['member', 'reason'],
      registers,
    }),
    canary: new Counter<'result'>({
      name: 'miner_canary_total',
      help: 'Requests chosen for the canary: answered by the candidate, or by the champion since the candidate could not',
      labelNames: ['result'],
      registers,
    }),
  };
}
