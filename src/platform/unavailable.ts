/** What the machine lacks: a service, a tool, the network. Mended outside, then tried again. */

/** A service is out of reach or a prerequisite missing; the message says what to do. */
export class ServiceUnavailableError extends Error {
  override name = 'ServiceUnavailableError';
}
