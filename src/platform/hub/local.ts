/** A model hub on the local disk: the publishable folder itself is the repository. The Hugging Face Hub comes behind the same port. */
import { access } from 'node:fs/promises';
import path from 'node:path';
import { BadInputError } from '../../domain/errors.js';
import type { ModelHub } from '../ports.js';

/** What a validator's check of a model repository looks for. */
const REQUIRED = ['model_card.json', 'config.json', 'bundle.json'];

/** @throws BadInputError (from `publish`) when a required file is missing */
export function localHub(): ModelHub {
  return {
    kind: 'local',
    async publish(folder, version) {
      for (const file of REQUIRED) {
        await access(path.join(folder, file)).catch(() => {
          throw new BadInputError(`${folder} has no ${file}; it was not published`);
        });
      }
      return { repo: folder, revision: version };
    },
  };
}
