// A record of the journal as the miner writes it, for tests in TypeScript and for the program that writes until it is killed.
import { createHash } from 'node:crypto';

export function journalRecord(id, image) {
  return {
    v: 1,
    id,
    at: Date.now(),
    image: createHash('sha256').update(image).digest('hex'),
    bytes: image.length,
    prediction: 0.25,
    votes: { a: 0.25 },
    latencyMs: 12.5,
    validator: '5F7JYViuYtexS7WUCx9W1vgHArbTKR7h3rPJmz8VkLHoFxHy',
    model: 'a'.repeat(64),
    generation: 1,
    shadow: null,
  };
}
