/** Connections to Temporal, wherever it is: a dev server on loopback, a cluster with mTLS, Temporal Cloud with an API key. */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client, Connection, type TLSConfig } from '@temporalio/client';
import { NativeConnection } from '@temporalio/worker';
import { BadInputError } from '../../domain/errors.js';
import { isAlive } from '../process.js';
import { readServices, type HomePaths } from '../home.js';
import { ServiceUnavailableError } from '../unavailable.js';

/** Where Temporal is and how to speak to it. */
export interface TemporalAddress {
  /** host:port */
  address: string;
  namespace: string;
  /** base URL of its web UI, null when not known */
  ui: string | null;
}

interface Credentials {
  tls?: TLSConfig | true;
  apiKey?: string;
}

/**
 * TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE (default `default`), TEMPORAL_UI_URL.
 * @returns null when TEMPORAL_ADDRESS is not set
 */
export function temporalFromEnvironment(env: NodeJS.ProcessEnv = process.env): TemporalAddress | null {
  const address = env.TEMPORAL_ADDRESS?.trim();
  if (address === undefined || address === '') return null;
  if (!/^(\[[0-9a-f:]+\]|[^\s:/]+):\d{1,5}$/i.test(address)) {
    throw new BadInputError(`TEMPORAL_ADDRESS: host:port expected (no scheme); found ${JSON.stringify(address)}.`);
  }
  const cloud = /\.tmprl\.cloud:\d+$|\.api\.temporal\.io:\d+$/.test(address);
  const namespace = env.TEMPORAL_NAMESPACE ?? 'default';
  return { address, namespace, ui: env.TEMPORAL_UI_URL ?? (cloud ? 'https://cloud.temporal.io' : null) };
}

/**
 * TEMPORAL_TLS_CLIENT_CERT_PATH and TEMPORAL_TLS_CLIENT_KEY_PATH (mTLS), TEMPORAL_TLS_SERVER_CA_CERT_PATH and
 * TEMPORAL_TLS_SERVER_NAME (a private authority), TEMPORAL_API_KEY (implies TLS), TEMPORAL_TLS=true (TLS alone): the names
 * that Temporal's own command line uses.
 * @throws BadInputError when half of a pair is set or a file cannot be read
 */
export function temporalCredentials(env: NodeJS.ProcessEnv = process.env): Credentials {
  const read = (name: string): Buffer | undefined => {
    const file = env[name];
    if (file === undefined || file === '') return undefined;
    try {
      return readFileSync(file);
    } catch (error) {
      throw new BadInputError(`${name}: cannot read ${file}: ${(error as Error).message}. Nothing was started.`);
    }
  };
  const crt = read('TEMPORAL_TLS_CLIENT_CERT_PATH') ?? read('TEMPORAL_TLS_CERT');
  const key = read('TEMPORAL_TLS_CLIENT_KEY_PATH') ?? read('TEMPORAL_TLS_KEY');
  const serverRootCACertificate = read('TEMPORAL_TLS_SERVER_CA_CERT_PATH') ?? read('TEMPORAL_TLS_CA');
  if ((crt === undefined) !== (key === undefined)) {
    throw new BadInputError(
      'TEMPORAL_TLS_CLIENT_CERT_PATH and TEMPORAL_TLS_CLIENT_KEY_PATH belong together: one of them is not set. Nothing was started.',
    );
  }
  const apiKey = env.TEMPORAL_API_KEY === '' ? undefined : env.TEMPORAL_API_KEY;
  const serverNameOverride = env.TEMPORAL_TLS_SERVER_NAME;
  const details: TLSConfig = {
    ...(crt !== undefined && key !== undefined ? { clientCertPair: { crt, key } } : {}),
    ...(serverRootCACertificate !== undefined ? { serverRootCACertificate } : {}),
    ...(serverNameOverride !== undefined && serverNameOverride !== '' ? { serverNameOverride } : {}),
  };
  const wanted = Object.keys(details).length > 0 || apiKey !== undefined || ['true', '1'].includes(env.TEMPORAL_TLS ?? '');
  return { ...(wanted ? { tls: Object.keys(details).length > 0 ? details : true } : {}), ...(apiKey !== undefined ? { apiKey } : {}) };
}

/** Credentials are the operator's for the operator's server; the one we start on loopback speaks plain gRPC. */
function credentialsFor(info: TemporalAddress): Credentials {
  return process.env.TEMPORAL_ADDRESS === info.address ? temporalCredentials() : {};
}

/**
 * @returns a client; close its connection when done
 * @throws ServiceUnavailableError when it does not answer in time
 */
export async function connectTemporal(info: TemporalAddress, timeoutMs = 10_000): Promise<Client> {
  try {
    const connection = await Connection.connect({ address: info.address, ...credentialsFor(info), connectTimeout: timeoutMs });
    return new Client({ connection, namespace: info.namespace });
  } catch (error) {
    if (error instanceof BadInputError) throw error;
    throw new ServiceUnavailableError(
      `Temporal at ${info.address} does not answer: ${(error as Error).message}. Nothing was lost: run \`flywheel up\`, or check TEMPORAL_ADDRESS and its credentials.`,
    );
  }
}

/** The worker's connection; closed by its user. */
export async function connectWorker(info: TemporalAddress): Promise<NativeConnection> {
  return NativeConnection.connect({ address: info.address, ...credentialsFor(info) });
}

/**
 * The Temporal of a home: TEMPORAL_ADDRESS, else the one that the running `up` of this home noted.
 * @throws ServiceUnavailableError when there is none
 */
export async function locateTemporal(paths: HomePaths): Promise<TemporalAddress> {
  const given = temporalFromEnvironment();
  if (given !== null) return given;
  const services = readServices(paths);
  if (services.up !== null && services.temporal !== null && (await isAlive(services.up.pid, services.up.start))) {
    const { address, namespace, ui } = services.temporal;
    return { address, namespace, ui };
  }
  throw new ServiceUnavailableError(
    `No flywheel runs on ${paths.root}, and TEMPORAL_ADDRESS is not set. Start one with \`flywheel up\`, or name the home of the running one with --home.`,
  );
}

/**
 * Waits until the server answers a real call for its namespace, not only until the port is open.
 * @param alive asked between attempts; false means that the server's process has ended, so waiting is of no use
 */
export async function waitHealthy(info: TemporalAddress, timeoutMs: number, alive: () => boolean = () => true): Promise<void> {
  const until = Date.now() + timeoutMs;
  let last = 'no attempt yet';
  while (Date.now() < until && alive()) {
    let connection: Connection | undefined;
    try {
      connection = await Connection.connect({ address: info.address, ...credentialsFor(info), connectTimeout: 2_000 });
      const open = connection;
      await open.withDeadline(Date.now() + 5_000, async () => {
        await open.workflowService.describeNamespace({ namespace: info.namespace });
        // The namespace is known a moment before its task queues and visibility answer.
        await open.workflowService.listWorkflowExecutions({ namespace: info.namespace, pageSize: 1 });
      });
      return;
    } catch (error) {
      if (error instanceof BadInputError) throw error;
      last = (error as Error).message;
      await sleep(150);
    } finally {
      await connection?.close();
    }
  }
  throw new ServiceUnavailableError(
    `Temporal at ${info.address} (namespace ${info.namespace}) is not healthy${alive() ? ` after ${Math.round(timeoutMs / 1000)} s` : ': its process has ended'}: ${last}.`,
  );
}
