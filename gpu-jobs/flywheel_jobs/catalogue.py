"""The catalogue of backbones: what each needs and the licence of its published weights, as `src/domain/backbones.ts` has it.

timm is asked (and imported) only for checkpoints that the catalogue does not know.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Licence:
    """Of published weights: SPDX identifier (or timm's own word for it), and whether it allows commercial use; None: not known."""

    spdx: str
    commercial: bool | None


@dataclass(frozen=True)
class Candidate:
    """A row of the catalogue; its fields are explained there."""

    name: str
    family: str
    parameters: float
    gmacs: float
    inference_gb: float
    training_gb: float
    estimated: bool
    licence: Licence


def _read() -> tuple[tuple[Candidate, ...], tuple[tuple[str, Licence], ...]]:
    told = json.loads(resources.files(__package__).joinpath("schema", "backbones.json").read_text(encoding="utf-8"))
    rows = (
        Candidate(
            one["name"],
            one["family"],
            one["parameters"],
            one["gmacs"],
            one["inferenceGb"],
            one["trainingGb"],
            one["estimated"],
            Licence(**one["licence"]),
        )
        for one in told["backbones"]
    )
    return tuple(rows), tuple((prefix, Licence(**licence)) for prefix, licence in told["familyLicences"])


TABLE, FAMILY_LICENCES = _read()
"""best first, by what the field reports of them; and licences by the beginning of a name"""

COMMERCIAL = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "bsd-2-clause": "BSD-2-Clause"}
"""timm's words for licences that allow commercial use"""


def licence_of(backbone: str) -> Licence | None:
    """Licence of a backbone's published weights; None where neither the catalogue nor timm tells one."""
    for row in TABLE:
        if backbone in (row.name, row.name.split(".", 1)[0]):
            return row.licence
    for prefix, licence in FAMILY_LICENCES:
        if backbone.startswith(prefix):
            return licence
    import timm

    config = timm.get_pretrained_cfg(backbone)
    told = str(config.license) if config is not None and config.license else ""
    if not told:
        return None
    if told in COMMERCIAL:
        return Licence(COMMERCIAL[told], True)
    # whatever says "non-commercial" in one of its spellings forbids it; the rest a person must read
    return Licence(told, False if "-nc" in told or "noncommercial" in told.replace("-", "") else None)


def licence_warning(member: dict[str, Any], backbone: str) -> str | None:
    """What is to be said of a member's weights; None: nothing. `backbone`: the one it was given, where it asked for any.

    The words for what is forbidden are those of `licenceWarning` in the catalogue.
    """
    if member.get("allowNonCommercial") or member["weights"] == "none":
        return None
    licence = licence_of(backbone)
    if licence is None or licence.commercial:
        return None
    if licence.commercial is None:
        return (
            f"member {member['name']}: the published weights of {backbone} are under {licence.spdx}, which is not known here: "
            "read whether it allows commercial use, since a miner earns money."
        )
    return (
        f"member {member['name']}: the published weights of {backbone} are under {licence.spdx}, which forbids commercial use, "
        "and a miner earns money. Take another backbone (convnext_* instead of convnextv2_*), or set `allowNonCommercial: true` "
        "on the member if you have the right to use them."
    )
