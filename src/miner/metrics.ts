/** What Prometheus is told, on the control port. */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { Counter, Gauge, Histogram, Registry } from 'prom-client';

export type MinerMetrics = ReturnType<typeof createMetrics>;

/** How a request ended, for the counter of answers. */
export type Outcome =
  | 'answered'
  | 'ping'
  | 'not-found'
  | 'not-verified'
  | 'forbidden'
  | 'rate'
  | 'bad-request'
  | 'too-large'
  | 'bad-image'
  | 'no-model'
  | 'overloaded'
  | 'late'
  | 'failed'
  | 'gone';

/** What an answered request's time went to: headers and signature; body and image header; waiting; decoding and inference. */
export type Stage = 'verify' | 'body' | 'wait' | 'inference';

/** @param read values that are counted elsewhere, read when Prometheus asks */
export function createMetrics(read: {
  queue: () => number;
  journalled: () => number;
  journalDropped: () => number;
  journalBytes: () => number;
  restarts: () => number;
  model: () => { digest: string; generation: number } | null;
  ready: () => boolean;
  journalPaused: () => boolean;
  nonces: () => number;
  noncesUnwritten: () => number;
  /** ms, null when it is not known */
  clockSkewMs: () => number | null;
  metagraph: () => { neurons: number; asOf: number };
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
  gauge('miner_journal_paused', '1 while the disk refuses the journal', () => (read.journalPaused() ? 1 : 0));
  gauge('miner_nonces', 'Requests remembered so that none is answered twice', read.nonces);
  gauge('miner_nonces_unwritten', 'Used nonces that the disk refused', read.noncesUnwritten);
  gauge('miner_metagraph_neurons', 'Neurons of the metagraph in force', () => read.metagraph().neurons);
  gauge('miner_metagraph_read_timestamp_seconds', 'When the metagraph in force was read at its source', () => read.metagraph().asOf / 1000);
  new Gauge({
    name: 'miner_clock_skew_seconds',
    help: "How far validators' clocks are ahead of this machine's, network time included; absent without requests of late",
    registers,
    collect() {
      this.reset();
      const ms = read.clockSkewMs();
      if (ms !== null) this.set(ms / 1000);
      else this.remove();
    },
  });
  const loop = monitorEventLoopDelay({ resolution: 10 });
  loop.enable();
  new Gauge<'quantile'>({
    name: 'miner_event_loop_delay_seconds',
    help: 'How late the event loop of the front was since the last reading, by quantile; 1 is the worst',
    labelNames: ['quantile'],
    registers,
    collect() {
      // The histogram holds the whole interval between two ticks: what is above the resolution is delay.
      const delay = (ns: number): number => Math.max(0, (Number.isFinite(ns) ? ns : 0) / 1e9 - 0.01);
      this.set({ quantile: '0.5' }, delay(loop.percentile(50)));
      this.set({ quantile: '0.99' }, delay(loop.percentile(99)));
      this.set({ quantile: '1' }, delay(loop.max));
      loop.reset();
    },
  });
  gauge('miner_resident_bytes', 'Memory of the front process', () => process.memoryUsage.rss());
  gauge('miner_cpu_seconds', 'CPU time of the front process', () => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1e6;
  });
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
    /** Ends what runs for the metrics' sake. */
    close: () => void loop.disable(),
    stages: new Histogram<'stage'>({
      name: 'miner_stage_seconds',
      help: 'What the time of answered requests went to',
      labelNames: ['stage'],
      buckets: [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 9],
      registers,
    }),
    predictions: new Histogram({
      name: 'miner_prediction',
      help: 'Predictions that were answered',
      buckets: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1],
      registers,
    }),
    votes: new Histogram<'member'>({
      name: 'miner_vote',
      help: 'Votes of the members of the champion that serves',
      labelNames: ['member'],
      buckets: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1],
      registers,
    }),
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
