/** Requests to a miner that may be wrong in any way, unlike those of the dendrite. */
import http from 'node:http';
import { signedHeaders } from '../../src/platform/bittensor/dendrite.js';
import type { Hotkey } from '../../src/platform/bittensor/keys.js';

/** Headers that this hotkey signed for an axon, now; or whatever `change` says instead. */
export function signed(
  hotkey: Hotkey,
  axonHotkey: string,
  change: Partial<Parameters<typeof signedHeaders>[0]> = {},
): Record<string, string> {
  return signedHeaders({
    hotkey,
    axonHotkey,
    nonce: BigInt(Date.now()) * 1_000_000n,
    uuid: 'test-uuid',
    synapse: 'ImageSynapse',
    timeoutSeconds: 9,
    axonIp: '127.0.0.1',
    axonPort: 1,
    externalIp: '127.0.0.1',
    ...change,
  });
}

/** Sends exactly these headers and bytes. */
export function raw(
  url: string,
  options: { headers: Record<string, string>; body: string | Buffer; path?: string; method?: string; chunked?: boolean },
): Promise<{ status: number; headers: http.IncomingHttpHeaders; body: { prediction?: number; message?: string } }> {
  return new Promise((resolve, reject) => {
    const request = http.request(
      `${url}${options.path ?? '/ImageSynapse'}`,
      {
        method: options.method ?? 'POST',
        agent: false,
        headers: {
          'content-type': 'application/json',
          ...options.headers,
          ...(options.chunked ? { 'transfer-encoding': 'chunked' } : { 'content-length': String(Buffer.byteLength(options.body)) }),
        },
      },
      (response) => {
        const pieces: Buffer[] = [];
        response.on('data', (piece: Buffer) => pieces.push(piece));
        response.on('error', reject);
        response.on('end', () =>
          resolve({
            status: response.statusCode ?? 0,
            headers: response.headers,
            body: JSON.parse(Buffer.concat(pieces).toString()) as object,
          }),
        );
      },
    );
    request.on('error', reject);
    request.end(options.body);
  });
}
