/**
 * The catalogue of backbones: what each needs, and the licence of its published weights. A miner earns money, so that weights that
 * forbid commercial use are never chosen by themselves (docs/decisions/0007-weights-licences.md). The Python jobs read this table from
 * `schema/backbones.json`; one of their tests holds it against what timm says of every checkpoint.
 *
 * Memory is of the field's table where it has a figure, else interpolated by parameters (`estimated`). Multiply-adds were counted at
 * 224 x 224.
 */

/** Licence of published weights. */
export interface WeightsLicence {
  /** SPDX identifier */
  spdx: string;
  /** whether it allows commercial use */
  commercial: boolean;
}

export interface Backbone {
  /** timm's name with the tag of the checkpoint */
  name: string;
  family: 'dinov2' | 'eva02' | 'convnext' | 'convnextv2' | 'efficientnet';
  /** millions */
  parameters: number;
  /** 10^9 multiply-adds for one image of 224 x 224 */
  gmacs: number;
  inferenceGb: number;
  /** at batch 8 */
  trainingGb: number;
  /** the memory figures are interpolated */
  estimated: boolean;
  licence: WeightsLicence;
}

const APACHE: WeightsLicence = { spdx: 'Apache-2.0', commercial: true };
const MIT: WeightsLicence = { spdx: 'MIT', commercial: true };
const NON_COMMERCIAL: WeightsLicence = { spdx: 'CC-BY-NC-4.0', commercial: false };

function row(
  name: string,
  family: Backbone['family'],
  licence: WeightsLicence,
  [parameters, gmacs]: [number, number],
  [inferenceGb, trainingGb]: [number, number],
  estimated: boolean,
): Backbone {
  return { name, family, parameters, gmacs, inferenceGb, trainingGb, estimated, licence };
}

/** Best first, by what the field reports of them. */
export const BACKBONES: readonly Backbone[] = [
  row('vit_giant_patch14_reg4_dinov2.lvd142m', 'dinov2', APACHE, [1135, 304.2], [24, 48], false),
  row('vit_large_patch14_reg4_dinov2.lvd142m', 'dinov2', APACHE, [303, 82.3], [12, 24], false),
  row('eva02_large_patch14_224.mim_m38m', 'eva02', MIT, [303, 81.0], [12, 24], true),
  row('convnextv2_large.fcmae_ft_in22k_in1k', 'convnextv2', NON_COMMERCIAL, [196, 34.4], [9, 18], true),
  row('convnext_large.fb_in22k_ft_in1k', 'convnext', APACHE, [196, 34.4], [9, 18], true),
  row('vit_base_patch14_reg4_dinov2.lvd142m', 'dinov2', APACHE, [86, 23.5], [6, 12], false),
  row('eva02_base_patch14_224.mim_in22k', 'eva02', MIT, [86, 23.2], [6, 12], true),
  row('convnextv2_base.fcmae_ft_in22k_in1k', 'convnextv2', NON_COMMERCIAL, [88, 15.4], [6, 12], true),
  row('convnext_base.fb_in22k_ft_in1k', 'convnext', APACHE, [88, 15.4], [6, 12], true),
  row('vit_small_patch14_reg4_dinov2.lvd142m', 'dinov2', APACHE, [22, 6.2], [4, 8], false),
  row('convnextv2_tiny.fcmae_ft_in22k_in1k', 'convnextv2', NON_COMMERCIAL, [28, 4.5], [4, 8], true),
  row('convnext_tiny.fb_in22k_ft_in1k', 'convnext', APACHE, [28, 4.5], [4, 8], true),
  row('tf_efficientnet_lite0.in1k', 'efficientnet', APACHE, [3.4, 0.4], [1, 2], true),
];

/** Licences of families whose checkpoints are not all in the catalogue: the first that a name begins with. */
export const FAMILY_LICENCES: readonly (readonly [prefix: string, licence: WeightsLicence])[] = [
  ['convnextv2_', NON_COMMERCIAL],
  ['tf_efficientnet_lite', APACHE],
];

/** @returns the licence of a timm model's published weights; null where it is not known here (the job then asks timm) */
export function weightsLicence(backbone: string): WeightsLicence | null {
  const known = BACKBONES.find((one) => one.name === backbone || one.name.split('.')[0] === backbone);
  return known?.licence ?? FAMILY_LICENCES.find(([prefix]) => backbone.startsWith(prefix))?.[1] ?? null;
}

/** What is said of a member whose weights may not be used to earn money. Also said by the jobs, word by word. */
export function licenceWarning(member: {
  name: string;
  backbone: string;
  weights: string;
  allowNonCommercial?: boolean | undefined;
}): string | null {
  if (member.allowNonCommercial === true || member.weights === 'none') return null;
  const licence = weightsLicence(member.backbone);
  if (licence === null || licence.commercial) return null;
  return (
    `member ${member.name}: the published weights of ${member.backbone} are under ${licence.spdx}, which forbids commercial use, and a miner earns money. ` +
    'Take another backbone (convnext_* instead of convnextv2_*), or set `allowNonCommercial: true` on the member if you have the right to use them.'
  );
}

/** The warnings of a configuration's members. */
export function licenceWarnings(members: Parameters<typeof licenceWarning>[0][]): string[] {
  return members.map(licenceWarning).filter((warning) => warning !== null);
}
