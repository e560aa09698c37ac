/** The control port, on loopback only: is it alive, is it ready, what does it count, and has a swap been made. */
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Registry } from 'prom-client';
import type { MinerStatus } from '../domain/contracts/miner.js';
import { listen } from './axon.js';

export const CONTROL_HOST = '127.0.0.1';

export interface Control {
  readonly port: number;
  stop(): Promise<void>;
}

/** How long a probe of a swap may wait, and how often it looks, ms. */
const MAX_PROBE_MS = 60_000;
const PROBE_EVERY_MS = 50;

/**
 * What a swap has come to. 200: the generation serves, or a newer one. 409: it was refused. 503: not yet.
 * @param generation of the pointer
 * @param digest given: the bundle must be this one
 */
export function swapState(status: MinerStatus, generation: number, digest: string | null): 200 | 409 | 503 {
  const { serving } = status;
  if (serving !== null && serving.generation > generation) return 200;
  if (serving !== null && serving.generation === generation) return digest === null || serving.digest === digest ? 200 : 409;
  return status.refused?.startsWith('champion: ') === true ? 409 : 503;
}

/**
 * GET /healthz (200 while the process works), /readyz (200 when a champion serves, else 503; MinerStatus either way),
 * /swapz?generation=N[&digest=D][&waitMs=M] (see `swapState`; waits while it is not decided), /metrics.
 * @throws the system's error, with its code
 */
export async function openControl(port: number, status: () => MinerStatus, registry: Registry): Promise<Control> {
  const server = http.createServer((request, response) => {
    void respond(request, response);
  });
  async function respond(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    request.resume();
    const reply = (code: number, type: string, text: string): void => {
      response.writeHead(code, { 'content-type': type, 'content-length': String(Buffer.byteLength(text)), 'cache-control': 'no-store' });
      response.end(request.method === 'HEAD' ? undefined : text);
    };
    const json = (code: number, value: object): void => reply(code, 'application/json', `${JSON.stringify(value)}\n`);
    // A page in the operator's browser must not read this by a name that resolves to loopback.
    const host = (request.headers.host ?? '').replace(/:\d+$/, '');
    if (!['127.0.0.1', 'localhost', '[::1]'].includes(host)) return json(421, { message: 'Ask 127.0.0.1 or localhost.' });
    if (request.method !== 'GET' && request.method !== 'HEAD') return json(405, { message: 'Only GET is answered.' });
    switch ((request.url ?? '').split('?', 1)[0]) {
      case '/healthz':
        return json(200, { ok: true });
      case '/readyz': {
        const now = status();
        return json(now.ready ? 200 : 503, now);
      }
      case '/swapz': {
        const query = new URL(request.url ?? '', 'http://localhost').searchParams;
        const generation = Number(query.get('generation'));
        const waitMs = Number(query.get('waitMs') ?? 0);
        if (!Number.isInteger(generation) || generation < 1 || !(waitMs >= 0))
          return json(400, { message: 'Give generation=N, a whole number from 1, and waitMs=M, if anything.' });
        const until = performance.now() + Math.min(waitMs, MAX_PROBE_MS);
        let state = swapState(status(), generation, query.get('digest'));
        while (state === 503 && performance.now() < until && !response.destroyed) {
          await sleep(PROBE_EVERY_MS, undefined, { ref: false });
          state = swapState(status(), generation, query.get('digest'));
        }
        return json(state, status());
      }
      case '/metrics':
        try {
          return reply(200, registry.contentType, await registry.metrics());
        } catch (error) {
          return json(500, { message: `The metrics could not be read: ${(error as Error).message}` });
        }
      default:
        return json(404, { message: 'There are /healthz, /readyz, /swapz and /metrics.' });
    }
  }
  await listen(server, CONTROL_HOST, port);
  return {
    port: (server.address() as AddressInfo).port,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
