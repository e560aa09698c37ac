/** The child's side of the supervisor: says when it is ready, ends when told to or when its parent is gone. */

/** What a child tells once it works; small. */
export interface ReadyMessage {
  type: 'ready';
  info: Record<string, unknown>;
}

/**
 * Runs a long-lived service in this process until SIGTERM, SIGINT, or the loss of the supervisor's channel: a process
 * whose parent was killed must not go on serving an instance that is no more.
 * @param start starts it; `failed` rejects when it ends by itself
 */
export async function runService(
  start: () => Promise<{ info: Record<string, unknown>; stop(): Promise<void>; failed?: Promise<never> }>,
): Promise<void> {
  let asked: () => void = () => undefined;
  const stopAsked = new Promise<void>((resolve) => {
    asked = resolve;
  });
  for (const name of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(name, asked);
  process.on('disconnect', asked);
  const started = start();
  const first = await Promise.race([started, stopAsked]);
  const service = first ?? (await started);
  try {
    if (first !== undefined) {
      const message: ReadyMessage = { type: 'ready', info: service.info };
      if (process.send !== undefined) process.send(message);
      await Promise.race([stopAsked, ...(service.failed === undefined ? [] : [service.failed])]);
    }
  } finally {
    await service.stop();
    if (process.connected && process.disconnect !== undefined) process.disconnect();
  }
}
