import type { JournalRecord } from '../../src/domain/contracts/miner.js';

/** A record of the journal that names the image. */
export function journalRecord(id: string, image: Uint8Array): JournalRecord;
