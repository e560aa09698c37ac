/** Entry of the writer's thread: one message a call, answered in order. Started by `openCatalog`, never imported. */
import { parentPort, workerData } from 'node:worker_threads';
import { packError, type SentError } from './errors.js';
import { CatalogStore } from './store.js';

export interface WriterData {
  file: string;
  lock: { file: string; token: string };
}
export interface Call {
  id: number;
  method: keyof CatalogStore;
  args: unknown[];
}
/** id 0: the opening itself. */
export type Answer = { id: number; ok: true; value: unknown } | { id: number; ok: false; error: SentError };

function serve(): void {
  const port = parentPort;
  if (!port) throw new Error('The catalog writer runs only as a worker thread.');
  const answer = (message: Answer): void => port.postMessage(message);
  const data = workerData as WriterData;
  let store: CatalogStore;
  try {
    store = CatalogStore.open(data.file, data.lock);
  } catch (error) {
    answer({ id: 0, ok: false, error: packError(error) });
    port.close();
    return;
  }
  answer({ id: 0, ok: true, value: null });
  port.on('message', (call: Call) => {
    try {
      const value = (store[call.method] as (this: CatalogStore, ...args: unknown[]) => unknown).apply(store, call.args);
      answer({ id: call.id, ok: true, value });
    } catch (error) {
      answer({ id: call.id, ok: false, error: packError(error) });
    }
    // Answered first: what was committed is reported even when this was the last call.
    if (call.method === 'close') port.close();
  });
}

serve();
