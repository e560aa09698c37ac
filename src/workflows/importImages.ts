/** Imports a folder of labelled images into the catalog of a running flywheel (`flywheel import DIR`). */
import { heavy } from './proxies.js';
import type { ImportSummary } from '../activities/index.js';

export async function importImages(input: { data: string }): Promise<ImportSummary> {
  return heavy.importDataset.executeWithOptions({ summary: `import ${input.data}` }, [{ turn: 'import', data: input.data, seed: 0 }]);
}
