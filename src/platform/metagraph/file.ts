/** The metagraph as a JSON file, read again when its content changes. The last good list holds when it is broken or gone. */
import { watch, promises as fs, type FSWatcher } from 'node:fs';
import path from 'node:path';
import { z } from 'zod';
import { BadInputError } from '../../domain/errors.js';
import { parseJson } from '../fsutil.js';
import type { MetagraphSource, Neuron } from '../ports.js';

const NeuronRow = z.object({
  uid: z.number().int().min(0),
  /** SS58 address */
  hotkey: z.string().min(1),
  validatorPermit: z.boolean(),
  stake: z.number().min(0),
});
/** The neurons as a list, or under `neurons`. */
export const MetagraphFile = z.union([z.array(NeuronRow), z.object({ neurons: z.array(NeuronRow) })]);

export interface FileMetagraphOptions {
  /** time between two looks, ms, should the system not tell of a change (network disks); default 1000 */
  pollMs?: number;
  /** ms since the epoch; default: the machine's clock */
  clock?: () => number;
}

/**
 * Reads the file and watches it.
 * @throws BadInputError when the file is missing or wrong at the start; nothing is left running then
 */
export async function fileMetagraph(file: string, options: FileMetagraphOptions = {}): Promise<MetagraphSource> {
  const source = new FileMetagraph(path.resolve(file), options.clock ?? Date.now);
  await source.reload();
  if (source.problem !== null) throw new BadInputError(`The metagraph cannot be used: ${source.problem}`);
  source.watch(options.pollMs ?? 1000);
  return source;
}

class FileMetagraph implements MetagraphSource {
  readonly name: string;
  neurons: readonly Neuron[] = [];
  asOf = 0;
  problem: string | null = null;
  private text: string | null = null;
  private readonly listeners = new Set<() => void>();
  private watcher: FSWatcher | null = null;
  private timer: NodeJS.Timeout | null = null;
  private reading: Promise<void> | null = null;
  private again = false;

  constructor(
    private readonly file: string,
    private readonly clock: () => number,
  ) {
    this.name = `file ${file}`;
  }

  watch(pollMs: number): void {
    this.timer = setInterval(() => void this.reload(), pollMs);
    this.timer.unref();
    try {
      // The folder, not the file: a file that is replaced by rename would be watched no more.
      this.watcher = watch(path.dirname(this.file), { persistent: false }, (_event, name) => {
        if (name === null || name === path.basename(this.file)) void this.reload();
      });
      this.watcher.on('error', () => this.watcher?.close());
    } catch {
      // No watches left on this machine, or none on this file system: the timer looks.
      this.watcher = null;
    }
  }

  onChange(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** One reading at a time; what changed meanwhile is read by the next. */
  reload(): Promise<void> {
    if (this.reading !== null) {
      this.again = true;
      return this.reading;
    }
    this.reading = (async () => {
      do {
        this.again = false;
        await this.read();
      } while (this.again);
    })().finally(() => {
      this.reading = null;
    });
    return this.reading;
  }

  private async read(): Promise<void> {
    const before = this.problem;
    let changed = false;
    try {
      const text = await fs.readFile(this.file, 'utf8');
      if (text !== this.text) {
        const value = parseJson(text, MetagraphFile, this.file);
        this.neurons = Array.isArray(value) ? value : value.neurons;
        this.text = text;
        changed = true;
      }
      this.asOf = this.clock();
      this.problem = null;
    } catch (error) {
      this.problem = (error as Error).message;
    }
    if (changed || this.problem !== before) for (const listener of this.listeners) listener();
  }

  async close(): Promise<void> {
    if (this.timer !== null) clearInterval(this.timer);
    this.watcher?.close();
    this.listeners.clear();
    await this.reading;
  }
}
