/** `flywheel backup FILE` and `restore FILE`: what must survive, in one archive. */
import { backup, type BackupProgress, restore } from '../platform/backup.js';
import { type CommandContext, createPrinter } from './context.js';
import { createProgress, type Progress } from './progress.js';

function follow(progress: Progress): (state: BackupProgress) => void {
  return ({ phase, done, total, unit }) => {
    const stage = progress.stage(phase);
    const amount = unit === 'bytes' ? `${(done / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB` : `${done} of ${total} files`;
    stage.update({ done, total, message: amount });
    if (done >= total) stage.done();
  };
}

/** `flywheel backup FILE`: the instance may go on running meanwhile. */
export async function backupCommand(context: CommandContext, file: string): Promise<void> {
  const report = await backup(context.paths.root, file, { onProgress: follow(context.progress) });
  context.progress.close();
  await context.print(
    `Backup ${report.file}: ${report.files} files, ${(report.bytes / 1e6).toFixed(1)} MB. It holds private keys: keep it as safe as those.${
      report.damaged.length === 0 ? '' : `\n${report.damaged.length} damaged objects are not in it: ${report.damaged.join(', ')}`
    }`,
  );
  await context.result({ ...report });
}

/** `flywheel restore FILE`: into a home that must be empty, or with --force in the place of one that is moved aside. */
export async function restoreCommand(options: { home: string; json?: boolean; force?: boolean }, file: string): Promise<void> {
  // No context: that would make the home, which restore wants to put there as a whole.
  const progress = createProgress();
  const { print, result } = createPrinter(options.json === true);
  const report = await restore(file, options.home, { force: options.force === true, onProgress: follow(progress) });
  progress.close();
  await print(`Restored ${options.home} from ${file}. Start it with \`flywheel up --home ${options.home}\`.`);
  await result({ ...report });
}
