/**
 * Machines that run jobs. Here: this machine, a niced child process a job.
 * A backend knows how to start, find and end a job; what the job means and whether it may be bought is decided above.
 */
export { jobDir, LocalGpu, type LocalGpuOptions } from './local.js';
export { runJobHere, type HereOptions } from './here.js';
