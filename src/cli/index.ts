/**
 * The `flywheel` command: parsing, progress, supervision of processes, exit codes. It drives workflows and the miner;
 * what they do is not decided here. Rules belong to src/domain, the order of things to src/workflows.
 */
export { EXIT } from './exit.js';
