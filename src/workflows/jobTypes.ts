/** Types of the job contract for workflows: types only, so that no schema library enters the sandbox. */
import type { JobOutput } from '../domain/contracts/jobs.js';
export type { JobKind } from '../domain/contracts/jobs.js';
export type ChallengesOutput = JobOutput<'challenges'>;
export type NeighboursOutput = JobOutput<'neighbours'>;
export type RenderOutput = JobOutput<'render'>;
export type SynthesizeOutput = JobOutput<'synthesize'>;
export type LabelOutput = JobOutput<'label'>;
export type TrainOutput = JobOutput<'train'>;
export type ExportOutput = JobOutput<'export'>;
