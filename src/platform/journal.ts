/**
 * The miner's journal as its readers see it: `segments/<zero-padded number>.jsonl`, one JournalRecord a line, and
 * `images/<first two hex>/<digest>`. The writer is the miner's (`src/miner/journal.ts`); reading never changes a file.
 */
import { promises as fs } from 'node:fs';
import path from 'node:path';
import { JournalRecord } from '../domain/contracts/miner.js';
import type { Digest } from '../domain/contracts/common.js';

const SEGMENT = /^\d{15}\.jsonl$/;

/** @returns the file name of a segment. Numbers rise for ever, also over a journal that was deleted (they hold a time) */
export function segmentName(number: number): string {
  return `${String(number).padStart(15, '0')}.jsonl`;
}

/** @returns the number in a segment's file name, or null for another file */
export function segmentNumber(name: string): number | null {
  return SEGMENT.test(name) ? Number(name.slice(0, 15)) : null;
}

export function segmentsDir(dir: string): string {
  return path.join(dir, 'segments');
}

/** Where the image of a record lies. */
export function journalImagePath(dir: string, digest: Digest): string {
  return path.join(dir, 'images', digest.slice(0, 2), digest);
}

/** A whole line that is no record; it was skipped. */
export interface JournalProblem {
  /** absolute path of the segment */
  file: string;
  /** byte offset of the line's beginning */
  offset: number;
  reason: string;
}

export interface JournalPart {
  /** file name of the segment: the key of its offset */
  segment: string;
  records: JournalRecord[];
  /** bytes read so far, always at a line's end: give it the next time */
  nextOffset: number;
  problems: JournalProblem[];
}

/**
 * Reads what was appended since the given offsets, oldest segment first. A torn tail (the writer is at it, or was
 * killed) is left for the next time. Segments without anything new are left out, as are those deleted meanwhile.
 * @param dir the journal's folder; one that does not exist yet is an empty journal
 * @param offsets bytes read so far by segment; a segment that is not named is read from its beginning
 */
export async function readJournal(dir: string, offsets: Readonly<Record<string, number>> = {}): Promise<JournalPart[]> {
  const parts: JournalPart[] = [];
  for (const segment of await listSegments(dir)) {
    const part = await readSegment(path.join(segmentsDir(dir), segment), segment, offsets[segment] ?? 0);
    if (part !== null) parts.push(part);
  }
  return parts;
}

/** @returns file names of the segments, oldest first; none for a folder that does not exist */
export async function listSegments(dir: string): Promise<string[]> {
  try {
    return (await fs.readdir(segmentsDir(dir))).filter((name) => SEGMENT.test(name)).sort();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}

async function readSegment(file: string, segment: string, offset: number): Promise<JournalPart | null> {
  let bytes: Buffer;
  try {
    const handle = await fs.open(file, 'r');
    try {
      const { size } = await handle.stat();
      if (size <= offset) return null;
      bytes = Buffer.alloc(size - offset);
      let filled = 0;
      while (filled < bytes.length) {
        const { bytesRead } = await handle.read(bytes, filled, bytes.length - filled, offset + filled);
        if (bytesRead === 0) break;
        filled += bytesRead;
      }
      bytes = bytes.subarray(0, filled);
    } finally {
      await handle.close();
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
  const end = bytes.lastIndexOf(0x0a) + 1;
  if (end === 0) return null;
  const part: JournalPart = { segment, records: [], nextOffset: offset + end, problems: [] };
  for (let from = 0; from < end;) {
    const to = bytes.indexOf(0x0a, from);
    const line = bytes.toString('utf8', from, to);
    if (line !== '') {
      try {
        part.records.push(JournalRecord.parse(JSON.parse(line)));
      } catch (error) {
        part.problems.push({
          file,
          offset: offset + from,
          reason:
            error instanceof SyntaxError ? `not JSON: ${error.message}` : `not a journal record: ${(error as Error).message.slice(0, 300)}`,
        });
      }
    }
    from = to + 1;
  }
  return part;
}
