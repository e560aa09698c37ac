/**
 * Labels by agreement: two different members, both sure, and where a generator made the image its intent as third vote.
 * Every image ends in exactly one of three ways: consensus, rejected (a sure contradiction), or undecided. A person is
 * asked about all that is not consensus, and about a random share of what is.
 */
import type { Label } from './contracts/common.js';
import { BadInputError } from './errors.js';
import { seededRng } from './rng.js';

export interface LabelCandidate {
  digest: string;
  /** probability of roadwork by member; no member was trained on the image's own group */
  votes: readonly { member: string; p: number }[];
  /** what the generator meant to make; null for a photograph */
  intent: Label | null;
}

export interface LabelDecisions {
  /** images with a label, `confidence` the least sure member's, in (0.5, 1] */
  consensus: { digest: string; label: Label; confidence: number }[];
  /** for a person: `proposed` is what models and intent lean to, null when they lean apart */
  review: { digest: string; reason: 'disagreement' | 'sample'; proposed: Label | null }[];
  /** sure contradictions: not used unless a person answers */
  rejected: { digest: string; reason: string }[];
}

/**
 * @param options `confidence`: both members must be above it; `verifyShare`: share of the consensus that a person also
 * checks, drawn by seed and digest, so that the order and the company of an image do not matter
 * @throws BadInputError for votes of fewer than two different members, of one member twice, or out of [0, 1]
 */
export function decideLabels(
  candidates: readonly LabelCandidate[],
  options: { confidence: number; verifyShare: number; seed: number },
): LabelDecisions {
  const out: LabelDecisions = { consensus: [], review: [], rejected: [] };
  for (const candidate of [...candidates].sort((a, b) => (a.digest < b.digest ? -1 : a.digest > b.digest ? 1 : 0))) {
    check(candidate);
    const { digest, intent } = candidate;
    const votes = candidate.votes.map(({ p }) => ({ side: p > 0.5 ? 1 : 0, sure: Math.max(p, 1 - p) }));
    const side = (votes[0] as { side: Label }).side;
    const least = Math.min(...votes.map((v) => v.sure));
    const together = votes.every((v) => v.side === side);
    const sure = votes.filter((v) => v.sure > options.confidence);
    if (together && least > options.confidence && (intent === null || intent === side)) {
      out.consensus.push({ digest, label: side, confidence: least });
      if (seededRng(`verify ${options.seed} ${digest}`).next() < options.verifyShare)
        out.review.push({ digest, reason: 'sample', proposed: side });
      continue;
    }
    const agreed = together && (intent === null || intent === side);
    out.review.push({ digest, reason: 'disagreement', proposed: agreed ? side : null });
    if (sure.some((v) => v.side === 0) && sure.some((v) => v.side === 1)) {
      out.rejected.push({ digest, reason: 'two sure members contradict each other' });
    } else if (together && least > options.confidence) {
      out.rejected.push({ digest, reason: `the members are sure of ${side}, the generator meant ${intent}` });
    }
  }
  return out;
}

function check({ digest, votes }: LabelCandidate): void {
  const members = new Set(votes.map((v) => v.member));
  const who = `image ${digest.slice(0, 12)}`;
  if (members.size < votes.length)
    throw new BadInputError(`${who} has two votes of one member; a member votes once. No label was decided.`);
  if (members.size < 2)
    throw new BadInputError(
      `${who} has ${members.size} vote${members.size === 1 ? '' : 's'}; a consensus needs two different members. No label was decided.`,
    );
  const bad = votes.find((v) => !(v.p >= 0 && v.p <= 1));
  if (bad) throw new BadInputError(`${who}: the vote of ${bad.member} is ${bad.p}, not a probability. No label was decided.`);
}
