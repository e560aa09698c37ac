/** The metagraph as a JSON file: for tests and private set-ups without a chain. The chain's own is in `../subtensor`. */
export { fileMetagraph, MetagraphFile, type FileMetagraphOptions } from './file.js';
