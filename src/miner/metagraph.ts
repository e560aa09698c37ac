/** Who may ask, and who comes first: permit and stake by hotkey, from whatever source the metagraph has. */
import type { MetagraphSource, Neuron } from '../platform/ports.js';

export class Permits {
  private byHotkey: ReadonlyMap<string, Neuron> = new Map();
  private indexed: readonly Neuron[] | null = null;

  /**
   * @param source null: everybody who signs correctly is let in (development on loopback only)
   * @param minStake validators with less are refused, in the source's unit
   */
  constructor(
    private readonly source: Pick<MetagraphSource, 'neurons'> | null,
    private readonly minStake = 0,
  ) {}

  /** @returns null when the hotkey may ask, else the reason, where there is one in the reference miner's words */
  refusal(hotkey: string): string | null {
    if (this.source === null) return null;
    const neuron = this.index().get(hotkey);
    if (neuron === undefined) return 'Unrecognized hotkey';
    if (!neuron.validatorPermit) return 'Non-validator hotkey';
    // Not `<`: a stake that is no number is no stake.
    return neuron.stake >= this.minStake ? null : 'Stake below the minimum';
  }

  /** The validator's stake; 0 for others. Greater is answered first when there is not room for all. */
  priority(hotkey: string): number {
    return this.index().get(hotkey)?.stake ?? 0;
  }

  get size(): number {
    return this.index().size;
  }

  /** The list is replaced, never changed, so one comparison tells whether it is new. */
  private index(): ReadonlyMap<string, Neuron> {
    if (this.source !== null && this.indexed !== this.source.neurons) {
      this.indexed = this.source.neurons;
      this.byHotkey = new Map(this.indexed.map((neuron) => [neuron.hotkey, neuron]));
    }
    return this.byHotkey;
  }
}
