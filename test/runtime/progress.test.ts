import { PassThrough } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { createProgress, formatStage } from '../../src/cli/progress.js';

function sink(): { stream: NodeJS.WriteStream; text: () => string } {
  const stream = new PassThrough();
  let text = '';
  stream.on('data', (chunk: Buffer) => (text += chunk.toString()));
  return { stream: stream as unknown as NodeJS.WriteStream, text: () => text };
}

describe('progress on a stream that is no terminal', () => {
  it('is one line in five seconds a stage, and no control characters', () => {
    const { stream, text } = sink();
    let now = 0;
    const progress = createProgress({ stream, tty: false, now: () => now });
    const stage = progress.stage('train');
    for (now = 0; now < 20_000; now += 100) stage.update({ done: now / 100, total: 200, message: 'images' });
    stage.done('93%');
    const lines = text().trimEnd().split('\n');
    expect(lines[0]).toBe('[flywheel] train ...');
    expect(lines.slice(1, -1)).toEqual([
      '[flywheel] train: 25% 5s images',
      '[flywheel] train: 50% 10s images',
      '[flywheel] train: 75% 15s images',
    ]);
    expect(lines.at(-1)).toBe('[flywheel] train: done after 20s: 93%');
    expect(text()).not.toContain('\u001b');
  });

  it('says nothing more of a stage that has ended', () => {
    const { stream, text } = sink();
    const stage = createProgress({ stream, tty: false, now: () => 0 }).stage('import');
    stage.fail('disk full');
    stage.update({ message: 'late' });
    stage.done();
    expect(text()).toBe('[flywheel] import ...\n[flywheel] import: FAILED after 0s: disk full\n');
  });
});

describe('a bar', () => {
  const state = { done: 50, total: 200, message: 'images', began: 0, ended: null, mark: ' ' as const };

  it('shows its share and its time', () => {
    expect(formatStage('train', state, 65_000, 100)).toMatch(/train .*██████·{18} +25% +1m05s {2}images/);
  });

  it('of unknown extent claims no share', () => {
    expect(formatStage('python', { ...state, done: null, total: null }, 1_000, 100)).not.toContain('%');
  });

  it('never wraps', () => {
    expect(formatStage('train', { ...state, message: 'x'.repeat(300) }, 0, 60)).toHaveLength(59);
  });
});
