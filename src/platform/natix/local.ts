/** The subnet's application server, played locally: a submission is written down, not sent. The HTTP client comes behind the same port. */
import path from 'node:path';
import type { SubnetRegistry } from '../ports.js';
import { writeFileAtomic } from '../fsutil.js';

export function localRegistry(folder: string): SubnetRegistry {
  return {
    kind: 'local',
    async register(submission) {
      await writeFileAtomic(path.join(folder, `submission-${submission.version}.json`), `${JSON.stringify(submission, null, 2)}\n`);
      return { detail: 'written down locally; nothing was sent to the subnet' };
    },
  };
}
