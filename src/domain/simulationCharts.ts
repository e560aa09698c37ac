/** The simulator's two pictures. */
import { svg } from './charts.js';
import type { SimulationReport } from './simulation.js';

/** Share of roadwork against the probability that was said; the larger a dot, the more answers. */
export function reliabilityDiagram(reports: readonly { name: string; report: SimulationReport }[]): string {
  const ticks = [0, 0.2, 0.4, 0.6, 0.8, 1];
  const radius = (n: number, most: number): number => 3 + 7 * Math.sqrt(n / most);
  return svg([
    {
      title: 'Reliability: how often it is roadwork when the model says so',
      x: { label: 'predicted probability', min: 0, max: 1, ticks },
      y: { label: 'share with roadwork', min: 0, max: 1, ticks },
      series: [
        ...reports.map(({ name, report }) => ({
          name: `${name}: expected calibration error ${report.overall.calibrationError.toFixed(3)}`,
          points: report.reliability.map((bin) => [bin.predicted, bin.observed] as const),
          dots: report.reliability.map((bin) => radius(bin.n, Math.max(...report.reliability.map((b) => b.n)))),
        })),
        {
          name: 'perfectly honest',
          points: [
            [0, 0],
            [1, 1],
          ],
          dashed: true,
        },
      ],
    },
  ]);
}

/** Predicted reward and score from an empty window on, with their 95% bands. */
export function rewardCurve(reports: readonly { name: string; report: SimulationReport }[]): string {
  const last = Math.max(...reports.flatMap(({ report }) => report.course.map((p) => p.challenges)));
  const days = reports[0]?.report.course.at(-1)?.days ?? null;
  const axis = {
    label: days === null ? 'challenges answered' : `challenges answered (${last} are ${days.toFixed(0)} days with one validator)`,
    min: 0,
    max: last,
  };
  const of = (key: 'reward' | 'score') =>
    reports.map(({ name, report }) => ({
      name,
      points: report.course.map((p) => [p.challenges, p[key][0]] as const),
      band: report.course.map((p) => [p.challenges, p[key][1], p[key][2]] as const),
    }));
  return svg([
    { title: 'Predicted reward of a challenge, mean and 95%', x: axis, y: { label: 'reward', min: 0, max: 1 }, series: of('reward') },
    { title: 'Predicted score (moving average), mean and 95%', x: axis, y: { label: 'score', min: 0, max: 1 }, series: of('score') },
  ]);
}
