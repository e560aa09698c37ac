/** Progress of several stages at once, on standard error: bars on a terminal, sparse plain lines elsewhere. */
import { MultiBar, type SingleBar } from 'cli-progress';

/** One stage of the work. After `done` or `fail` nothing more is shown of it. */
export interface Stage {
  /** @param done, total null while the extent is unknown: then the elapsed time alone is shown */
  update(state: { done?: number | null; total?: number | null; message?: string }): void;
  done(message?: string): void;
  fail(message: string): void;
}

export interface Progress {
  /** The stage of that name; begun when it is new. */
  stage(name: string): Stage;
  /** A line of text above the bars. */
  line(text: string): void;
  /** Stops drawing; open stages are left as they are. */
  close(): void;
}

const WIDTH = 24;
const NAME = 18;

function duration(ms: number): string {
  const seconds = Math.floor(ms / 1000);
  return seconds < 60 ? `${seconds}s` : `${Math.floor(seconds / 60)}m${String(seconds % 60).padStart(2, '0')}s`;
}

interface State {
  done: number | null;
  total: number | null;
  message: string;
  began: number;
  ended: number | null;
  mark: ' ' | '✓' | '✗';
}

/** One line of a stage; `columns` bounds it, as a bar that wraps cannot be drawn over. */
export function formatStage(name: string, state: State, now: number, columns: number): string {
  const share =
    state.mark === '✓' ? 1 : state.total !== null && state.total > 0 && state.done !== null ? Math.min(1, state.done / state.total) : null;
  const time = duration((state.ended ?? now) - state.began);
  let bar: string;
  if (share === null) {
    // Of unknown extent: a block that walks shows that it lives.
    const at = Math.floor((now - state.began) / 250) % WIDTH;
    bar = state.mark === '✗' ? '·'.repeat(WIDTH) : '·'.repeat(at) + '█' + '·'.repeat(WIDTH - at - 1);
  } else {
    const full = Math.round(share * WIDTH);
    bar = '█'.repeat(full) + '·'.repeat(WIDTH - full);
  }
  const percent = share === null ? '    ' : `${String(Math.floor(share * 100)).padStart(3)}%`;
  return `${state.mark} ${name.padEnd(NAME).slice(0, NAME)} ${bar} ${percent} ${time.padStart(6)}  ${state.message}`.slice(
    0,
    Math.max(20, columns - 1),
  );
}

/**
 * @param options.everyMs on a stream that is no terminal: shortest time between two lines of one stage
 */
export function createProgress(
  options: { stream?: NodeJS.WriteStream; tty?: boolean; everyMs?: number; now?: () => number } = {},
): Progress {
  const stream = options.stream ?? process.stderr;
  const now = options.now ?? Date.now;
  // An interactive bar in a CI log is a thousand lines of control characters.
  const tty = options.tty ?? (stream.isTTY && process.env.CI === undefined && process.env.TERM !== 'dumb');
  return tty ? barProgress(stream, now) : lineProgress(stream, now, options.everyMs ?? 5_000);
}

function begin(now: () => number): State {
  return { done: null, total: null, message: '', began: now(), ended: null, mark: ' ' };
}

function apply(state: State, update: Parameters<Stage['update']>[0]): void {
  if (update.done !== undefined) state.done = update.done;
  if (update.total !== undefined) state.total = update.total;
  if (update.message !== undefined) state.message = update.message.replace(/\s+/g, ' ');
}

/** The stage of that name, made when it is named for the first time. */
function stageOf(stages: Map<string, Stage>, name: string, make: (name: string) => Stage): Stage {
  let stage = stages.get(name);
  if (stage === undefined) stages.set(name, (stage = make(name)));
  return stage;
}

/** The two ways to end a stage, from one that takes its mark. */
function endsBy(end: (mark: '✓' | '✗', message?: string) => void): Pick<Stage, 'done' | 'fail'> {
  return {
    done: (message) => {
      end('✓', message);
    },
    fail: (message) => {
      end('✗', message);
    },
  };
}

function barProgress(stream: NodeJS.WriteStream, now: () => number): Progress {
  const bars = new MultiBar({
    stream,
    fps: 8,
    hideCursor: true,
    gracefulExit: false,
    emptyOnZero: true,
    noTTYOutput: false,
    format: (_options, _params, payload: { name?: string; state?: State }) =>
      payload.name === undefined || payload.state === undefined
        ? ''
        : formatStage(payload.name, payload.state, now(), stream.columns || 100),
  });
  const stages = new Map<string, Stage>();
  let closed = false;
  const make = (name: string): Stage => {
    const state = begin(now);
    const bar: SingleBar = bars.create(1, 0, { name, state });
    const end = (mark: '✓' | '✗', message?: string): void => {
      if (state.ended !== null) return;
      state.mark = mark;
      state.ended = now();
      if (message !== undefined) state.message = message.replace(/\s+/g, ' ');
      bar.update(1);
      bar.stop();
      bars.update();
    };
    return {
      update: (update) => {
        if (state.ended === null) apply(state, update);
      },
      ...endsBy(end),
    };
  };
  return {
    stage: (name) => stageOf(stages, name, make),
    line: (text) => {
      if (closed || stages.size === 0) stream.write(`${text}\n`);
      else bars.log(`${text}\n`);
    },
    close: () => {
      if (closed) return;
      closed = true;
      bars.stop();
    },
  };
}

function lineProgress(stream: NodeJS.WriteStream, now: () => number, everyMs: number): Progress {
  const stages = new Map<string, Stage>();
  const make = (name: string): Stage => {
    const state = begin(now);
    let last = now();
    stream.write(`[flywheel] ${name} ...\n`);
    const show = (text: string): void => {
      stream.write(`[flywheel] ${name}: ${text}\n`);
    };
    const end = (mark: '✓' | '✗', message?: string): void => {
      if (state.ended !== null) return;
      state.ended = now();
      show(
        `${mark === '✓' ? 'done' : 'FAILED'} after ${duration(state.ended - state.began)}${message === undefined || message === '' ? '' : `: ${message}`}`,
      );
    };
    return {
      update: (update) => {
        if (state.ended !== null) return;
        apply(state, update);
        if (now() - last < everyMs) return;
        last = now();
        const share =
          state.total !== null && state.total > 0 && state.done !== null ? `${Math.floor((100 * state.done) / state.total)}% ` : '';
        show(`${share}${duration(now() - state.began)} ${state.message}`.trimEnd());
      },
      ...endsBy(end),
    };
  };
  return {
    stage: (name) => stageOf(stages, name, make),
    line: (text) => {
      stream.write(`${text}\n`);
    },
    close: () => undefined,
  };
}
