"""Which backbone to take: `auto` and the table behind it. Pure; nothing is imported or measured here.

Memory is of the field's table where it has a figure, else interpolated by parameters (marked). Multiply-adds were counted
at 224 x 224. The time on the miner is multiply-adds over what the miner computes a second: within a fifth of what was measured
for ViT-S, ViT-B, ConvNeXt-V2-B and ViT-L on two CPU cores (about 100 G a second); on a GPU it is an estimate, and the gate
measures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .errors import BadInput


@dataclass(frozen=True)
class Candidate:
    """A row of the table."""

    name: str
    family: str
    parameters: float
    """millions"""
    gmacs: float
    """10^9 multiply-adds for one image of 224 x 224"""
    inference_gb: float
    training_gb: float
    """at batch 8"""
    estimated: bool
    """the memory figures are interpolated"""
    licence: str
    """of the published weights"""


TABLE = (
    Candidate("vit_giant_patch14_reg4_dinov2.lvd142m", "dinov2", 1135, 304.2, 24, 48, False, "Apache-2.0"),
    Candidate("vit_large_patch14_reg4_dinov2.lvd142m", "dinov2", 303, 82.3, 12, 24, False, "Apache-2.0"),
    Candidate("eva02_large_patch14_224.mim_m38m", "eva02", 303, 81.0, 12, 24, True, "MIT"),
    Candidate("convnextv2_large.fcmae_ft_in22k_in1k", "convnextv2", 196, 34.4, 9, 18, True, "CC-BY-NC-4.0"),
    Candidate("vit_base_patch14_reg4_dinov2.lvd142m", "dinov2", 86, 23.5, 6, 12, False, "Apache-2.0"),
    Candidate("eva02_base_patch14_224.mim_in22k", "eva02", 86, 23.2, 6, 12, True, "MIT"),
    Candidate("convnextv2_base.fcmae_ft_in22k_in1k", "convnextv2", 88, 15.4, 6, 12, True, "CC-BY-NC-4.0"),
    Candidate("vit_small_patch14_reg4_dinov2.lvd142m", "dinov2", 22, 6.2, 4, 8, False, "Apache-2.0"),
    Candidate("convnextv2_tiny.fcmae_ft_in22k_in1k", "convnextv2", 28, 4.5, 4, 8, True, "CC-BY-NC-4.0"),
    Candidate("tf_efficientnet_lite0.in1k", "efficientnet", 3.4, 0.4, 1, 2, True, "Apache-2.0"),
)
"""best first, by what the field reports of them"""

LATENCY_MS = 100.0
SERVING_GMACS = 100.0


@dataclass(frozen=True)
class Choice:
    """The backbone taken, and why in one sentence."""

    name: str
    reason: str


def is_auto(backbone: str) -> bool:
    """Whether the name asks for a choice."""
    return backbone == "auto" or backbone.startswith("auto:")


def latency_ms(candidate: Candidate, resolution: int, gmacs_per_second: float) -> float:
    """Estimated time of one image; multiply-adds grow with the area."""
    return 1000 * candidate.gmacs * (resolution / 224) ** 2 / gmacs_per_second


def choose(
    backbone: str, resolution: int, memory_gb: float, budget_ms: float = LATENCY_MS, gmacs_per_second: float = SERVING_GMACS
) -> Choice:
    """The first of the table that trains in the memory and answers in the time. `backbone`: `auto` or `auto:FAMILY`.

    Raises BadInput for an unknown family, or naming what the smallest one needs when nothing fits.
    """
    family = backbone.partition(":")[2]
    rows = [row for row in TABLE if family in ("", row.family)]
    if not rows:
        raise BadInput(f"`{backbone}` names no family of the table; there are {', '.join(sorted({row.family for row in TABLE}))}.")

    def needs(row: Candidate) -> str:
        about = "about " if row.estimated else ""
        return f"{about}{row.training_gb:g} GB to train, {latency_ms(row, resolution, gmacs_per_second):.0f} ms an image"

    passed: list[str] = []
    for row in rows:
        slow = latency_ms(row, resolution, gmacs_per_second) > budget_ms
        big = row.training_gb > memory_gb
        if not (slow or big):
            reason = (
                f"{row.name}: {needs(row)}; it is the best of the table that trains in {memory_gb:.0f} GB "
                f"and answers within {budget_ms:g} ms at {gmacs_per_second:g} G multiply-adds a second"
            )
            return Choice(row.name, reason + (f". Passed over: {'; '.join(passed)}." if passed else "."))
        passed.append(f"{row.name.split('.')[0]} ({' and '.join(['too slow'] * slow + ['too big'] * big)}: {needs(row)})")
    raise BadInput(
        f"`{backbone}`: nothing of the table trains in {memory_gb:.0f} GB and answers within {budget_ms:g} ms; "
        f"the smallest, {rows[-1].name}, needs {needs(rows[-1])}. Raise `budget.latencyMs`, use a bigger machine, or name a backbone."
    )


def chosen(member: dict[str, Any], memory_gb: float) -> Choice:
    """The choice for a MemberSpec with an automatic backbone; `memory_gb` is what this machine has."""
    budget = member.get("budget") or {}
    return choose(
        member["backbone"],
        int(member["resolution"]),
        float(budget.get("memoryGb", memory_gb)),
        float(budget.get("latencyMs", LATENCY_MS)),
        float(budget.get("servingGmacs", SERVING_GMACS)),
    )


def patch_of(backbone: str) -> int | None:
    """Patch size that a vision transformer's name tells, or None."""
    found = re.search(r"patch(\d+)", backbone)
    return int(found.group(1)) if found else None


def check_resolution(backbone: str, resolution: int, patch: int | None) -> None:
    """Raises BadInput when the resolution is no multiple of the patch size, naming the nearest ones that are."""
    if patch and resolution % patch:
        low = max(resolution // patch, 1) * patch
        raise BadInput(
            f"resolution {resolution} is no multiple of {backbone}'s patch size {patch}: take {low} or {low + patch}. Nothing was started."
        )
