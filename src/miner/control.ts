/** The control port, on loopback only: is it alive, is it ready, what does it count. */
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Registry } from 'prom-client';
import type { MinerStatus } from '../domain/contracts/miner.js';
import { listen } from './axon.js';

export const CONTROL_HOST = '127.0.0.1';

export interface Control {
  readonly port: number;
  stop(): Promise<void>;
}

/**
 * GET /healthz (200 while the process works), /readyz (200 when a champion serves, else 503; MinerStatus either way), /metrics.
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
      case '/metrics':
        try {
          return reply(200, registry.contentType, await registry.metrics());
        } catch (error) {
          return json(500, { message: `The metrics could not be read: ${(error as Error).message}` });
        }
      default:
        return json(404, { message: 'There are /healthz, /readyz and /metrics.' });
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
