// Writes the journal as fast as it takes records, until it is killed. Arguments: folder, first number, sync, bytes of a segment.
// A line `N` on standard output says that the journal counts the records below N as written; it is with the system before the next begins.
import { writeSync } from 'node:fs';
import { setImmediate } from 'node:timers/promises';
import { Journal } from '../../dist/miner/journal.js';
import { journalRecord } from './journalRecord.mjs';

const [dir, first, sync, segmentBytes] = process.argv.slice(2);
const logger = { info() {}, warn() {}, error() {} };
const journal = await Journal.open({ dir, maxBytes: 1e9, sync, segmentBytes: Number(segmentBytes), logger, clock: Date.now });
let told = 0;
for (let i = Number(first); ; i++) {
  // Every third image comes twice, and most are larger than a page.
  const image = Buffer.alloc(200 + ((i * 7919) % 9000), `image ${i - (i % 3 === 2 ? 1 : 0)} `);
  const record = journalRecord(`id-${String(i).padStart(7, '0')}`, image);
  while (journal.depth > 400) await setImmediate();
  if (!journal.append(record, image)) throw new Error(`record ${i} was dropped`);
  if (i % 20 === 0) await setImmediate();
  if (journal.written > told) {
    told = journal.written;
    writeSync(1, `${Number(first) + told}\n`);
  }
}
