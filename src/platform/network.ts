/** Which TCP port a service gets, and whether an address of the internet answers. */
import { freePort, portFree } from './process.js';
import { ServiceUnavailableError } from './unavailable.js';

/**
 * @param wanted the port to prefer, 0 for any
 * @param byName the operator asked for exactly this port: another one will not do
 * @returns the wanted port when it is free, otherwise another that is
 * @throws ServiceUnavailableError when it is taken and was asked for by name
 */
export async function choosePort(host: string, wanted: number, byName: boolean, what: string): Promise<number> {
  let free: boolean;
  try {
    free = wanted !== 0 && (await portFree(wanted, host));
  } catch (error) {
    throw new ServiceUnavailableError(
      `No port can be opened on ${host}, asked for ${what}: ${(error as Error).message}. Nothing was started there. Name an address of this machine.`,
    );
  }
  if (free) return wanted;
  if (byName && wanted !== 0) {
    throw new ServiceUnavailableError(
      `Port ${wanted} of ${host}, asked for ${what}, is in use (or may not be opened). Nothing was started there. Free it, or leave the port out and a free one is taken.`,
    );
  }
  return freePort(host);
}

/** @returns whether the URL answers at all (any status) within the time, ms */
export async function answers(url: string, timeoutMs: number): Promise<boolean> {
  try {
    const response = await fetch(url, { method: 'GET', redirect: 'manual', signal: AbortSignal.timeout(timeoutMs) });
    await response.body?.cancel();
    return response.status < 500;
  } catch {
    return false;
  }
}
