/** Who has a permit: the metagraph as a JSON file, read again whenever it changes. The chain itself is not asked here. */
import { promises as fs } from 'node:fs';
import { z } from 'zod';
import { BadInputError } from '../domain/errors.js';
import { parseJson } from '../platform/fsutil.js';

const Neuron = z.object({
  uid: z.number().int().min(0),
  /** SS58 address */
  hotkey: z.string().min(1),
  validatorPermit: z.boolean(),
  stake: z.number(),
});
/** The neurons as a list, or under `neurons`. */
export const Metagraph = z.union([z.array(Neuron), z.object({ neurons: z.array(Neuron) })]);
export type Neuron = z.infer<typeof Neuron>;

export class Permits {
  private neurons = new Map<string, Neuron>();
  private text: string | null = null;
  /** why the newest file could not be used; null when it is in use. The last good list holds meanwhile */
  problem: string | null = null;

  private constructor(private readonly file: string | null) {}

  /** Everybody who signs correctly is let in: development on loopback only. */
  static open(): Permits {
    return new Permits(null);
  }

  /** @throws BadInputError when the file is missing or wrong */
  static async fromFile(file: string): Promise<Permits> {
    const permits = new Permits(file);
    await permits.reload();
    if (permits.problem !== null) throw new BadInputError(`The metagraph cannot be used: ${permits.problem}`);
    return permits;
  }

  /** Reads the file when its content changed. Never throws: the last good list holds. @returns whether the list is new */
  async reload(): Promise<boolean> {
    if (this.file === null) return false;
    try {
      const text = await fs.readFile(this.file, 'utf8');
      if (text === this.text) {
        this.problem = null;
        return false;
      }
      const value = parseJson(text, Metagraph, this.file);
      this.neurons = new Map((Array.isArray(value) ? value : value.neurons).map((neuron) => [neuron.hotkey, neuron]));
      this.text = text;
      this.problem = null;
      return true;
    } catch (error) {
      this.problem = (error as Error).message;
      return false;
    }
  }

  /** @returns null when the hotkey may ask, else the reason in the reference miner's words */
  refusal(hotkey: string): string | null {
    if (this.file === null) return null;
    const neuron = this.neurons.get(hotkey);
    if (neuron === undefined) return 'Unrecognized hotkey';
    return neuron.validatorPermit ? null : 'Non-validator hotkey';
  }

  get size(): number {
    return this.neurons.size;
  }
}
