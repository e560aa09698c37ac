/** Messages to the operator: a line a message in `<home>/notifications.jsonl`, and the log. Other channels come behind the same port. */
import { appendFile } from 'node:fs/promises';
import type { Logger } from 'pino';
import type { Notifier } from './ports.js';

export function fileNotifier(file: string, log: Logger): Notifier {
  return {
    async notify(message) {
      log.info(message, message.title);
      try {
        await appendFile(file, `${JSON.stringify(message)}\n`, { mode: 0o600 });
      } catch (error) {
        log.error({ error: String(error), message }, 'the notification could not be written; it is in this log');
      }
    },
  };
}
