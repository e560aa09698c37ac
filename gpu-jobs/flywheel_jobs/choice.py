"""Which backbone `auto` takes from the catalogue. Pure; nothing is measured here.

The time on the miner is multiply-adds over what the miner computes a second: within a fifth of what was measured for ViT-S,
ViT-B, ConvNeXt-V2-B and ViT-L on two CPU cores (about 100 G a second); on a GPU it is an estimate, and the gate measures.
Weights whose licence forbids commercial use are passed over unless they are allowed: a miner earns money.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .catalogue import TABLE, Candidate
from .errors import BadInput

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
    backbone: str,
    resolution: int,
    memory_gb: float,
    budget_ms: float = LATENCY_MS,
    gmacs_per_second: float = SERVING_GMACS,
    non_commercial: bool = False,
) -> Choice:
    """The first of the table that trains in the memory and answers in the time, and may be used to earn money (or `non_commercial`).
    `backbone`: `auto` or `auto:FAMILY`.

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
        forbidden = not (row.licence.commercial or non_commercial)
        if not (slow or big or forbidden):
            reason = (
                f"{row.name}: {needs(row)}; it is the best of the table that trains in {memory_gb:.0f} GB "
                f"and answers within {budget_ms:g} ms at {gmacs_per_second:g} G multiply-adds a second; weights under {row.licence.spdx}"
            )
            return Choice(row.name, reason + (f". Passed over: {'; '.join(passed)}." if passed else "."))
        why = ["too slow"] * slow + ["too big"] * big + [f"{row.licence.spdx} forbids commercial use"] * forbidden
        passed.append(f"{row.name.split('.')[0]} ({' and '.join(why)}: {needs(row)})")
    if not any(row.licence.commercial or non_commercial for row in rows):
        raise BadInput(
            f"`{backbone}`: all published weights of this family are under {rows[-1].licence.spdx}, which forbids commercial use, "
            "and a miner earns money. Take another family (`auto:convnext`), or set `allowNonCommercial: true` on the member if you "
            "have the right to use them."
        )
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
        bool(member.get("allowNonCommercial", False)),
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
