import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { connectDendrite, type Dendrite } from '../../src/platform/bittensor/dendrite.js';
import { hotkeyFromMnemonic, type Hotkey } from '../../src/platform/bittensor/keys.js';
import { TEST_KEYS } from './vectors.js';

describe('the dendrite', () => {
  let server: http.Server;
  let respond: http.RequestListener;
  let url: string;
  let key: Hotkey;
  let dendrite: Dendrite;
  beforeAll(async () => {
    key = await hotkeyFromMnemonic(TEST_KEYS.validator.mnemonic);
    dendrite = connectDendrite({ hotkey: key });
    server = http.createServer((request, response) => respond(request, response));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  afterAll(async () => {
    await dendrite.close();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
  const ask = (timeoutSeconds = 9) => dendrite.ask({ url, axonHotkey: TEST_KEYS.miner.ss58, image: Buffer.from('x'), timeoutSeconds });

  it('gives up after its time-out with 408', async () => {
    respond = (request) => request.resume();
    expect(await ask(0.2)).toMatchObject({ status: 408, prediction: null });
  });

  it('reports an answer that is not JSON as 422, as the reference does', async () => {
    respond = (_request, response) => response.writeHead(200, { 'content-type': 'text/html' }).end('<html>');
    expect(await ask()).toMatchObject({ status: 422, prediction: null });
  });

  it('believes the status in the header over that of HTTP', async () => {
    respond = (_request, response) =>
      response.writeHead(200, { 'content-type': 'application/json', bt_header_axon_status_code: '403' }).end('{"prediction":0.9}');
    expect(await ask()).toMatchObject({ status: 403, prediction: null });
  });

  it('reports a connection that is closed without an answer as 503', async () => {
    respond = (request) => request.socket.destroy();
    expect(await ask()).toMatchObject({ status: 503, prediction: null });
  });

  it('keeps its connections for the next requests', async () => {
    const ports = new Set<number | undefined>();
    respond = (request, response) => {
      ports.add(request.socket.remotePort);
      request.resume();
      request.on('end', () => response.writeHead(200, { 'content-type': 'application/json' }).end('{"prediction":0.5}'));
    };
    const fresh = connectDendrite({ hotkey: key });
    for (let i = 0; i < 20; i++)
      expect(await fresh.ask({ url, axonHotkey: TEST_KEYS.miner.ss58, image: Buffer.from('x') })).toMatchObject({
        status: 200,
        prediction: 0.5,
      });
    await fresh.close();
    // The client may open a second one while it still reads the end of the first answer.
    expect(ports.size).toBeLessThanOrEqual(2);
  });
});
