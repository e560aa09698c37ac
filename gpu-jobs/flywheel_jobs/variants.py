"""What each number format of a member costs and brings: time on this machine, and loss on labelled images; and the choice.

The served graph is the fastest of those that lose no more than their limit. fp32 is always among them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .errors import LossAboveLimit
from .metrics import Array, Labels, balanced
from .predicted import predicted_reward
from .quantise import Graph

ROUNDS = 25
SECONDS = 1.5
"""at most so long for each variant"""
WARM_UP = 2


@dataclass(frozen=True)
class Loss:
    """Against fp32 on the same labelled images; negative: it is better."""

    n: int
    accuracy: float
    reward: float

    def to_json(self) -> dict[str, Any]:
        """The contract's object."""
        return {"n": self.n, "accuracy": round(self.accuracy, 6), "reward": round(self.reward, 6)}


@dataclass(frozen=True)
class Variant:
    """One number format of one member."""

    precision: str
    graph: Graph
    provider: str
    ms: float | None
    max_abs_dp: float
    loss: Loss | None
    refused: str | None = None
    kept_float: int = 0
    """layers that stay in float32 because they cost most, beyond those that always do"""

    def to_json(self, chosen: bool) -> dict[str, Any]:
        """`ExportVariant` of the contract."""
        return {
            "precision": self.precision,
            "provider": self.provider,
            "bytes": self.graph.bytes,
            "ms": None if self.ms is None else round(self.ms, 3),
            "maxAbsDp": self.max_abs_dp,
            "loss": None if self.loss is None else self.loss.to_json(),
            "chosen": chosen,
            "refused": self.refused,
            **({"keptFloat": self.kept_float} if self.kept_float else {}),
        }


def loss(p: Array, reference: Array, y: Labels, n: int) -> Loss:
    """What `p` loses against `reference` on images labelled `y`; `n` distinct images stand behind the rows.

    Accuracy counts the classes alike, as validators draw them, and the reward follows from the classes' rates.
    """

    before, after = predicted_reward(reference, y), predicted_reward(p, y)
    was, now = balanced(reference, y), balanced(p, y)
    assert before is not None
    assert after is not None
    assert was is not None
    assert now is not None
    return Loss(n, was - now, before - after)


def above(found: Loss, limit: dict[str, float]) -> str | None:
    """Why the loss is too large; None when it is within its limit."""
    for what, value in (("accuracy", found.accuracy), ("reward", found.reward)):
        if value > float(limit[what]) + 1e-12:
            return f"loses {value:.4f} of {what}, limit {float(limit[what]):.4f}, on {found.n} images"
    return None


FREE = 1.05
"""a graph that is slower by no more than this is as fast"""


def by_nearness(tries: Sequence[tuple[float, float]]) -> list[int]:
    """In which order graphs of one precision are judged, each a distance to fp32 and a time: of those that are as fast as the fastest
    the nearest first, then the rest, the nearest first. The distance is over logits, which tells small graphs apart where the few
    decisions that differ on labelled images are chance."""
    fastest = min((ms for _, ms in tries), default=0.0)
    return sorted(range(len(tries)), key=lambda index: (tries[index][1] > fastest * FREE, tries[index][0]))


def time_sessions(sessions: Sequence[Any], x: Any) -> list[float]:
    """Median time of one image for each session, ms. They take turns, so that a busy moment hits all alike; an engine that can only
    tell its own time (`median_ms`) is asked for it."""
    if sessions and all(hasattr(session, "median_ms") for session in sessions):
        return [float(session.median_ms()) for session in sessions]
    for session in sessions:
        for _ in range(WARM_UP):
            session.run(["logit"], {"input": x})
    times: list[list[float]] = [[] for _ in sessions]
    end = time.monotonic() + SECONDS * len(sessions)
    while len(times[0]) < ROUNDS and (len(times[0]) < 3 or time.monotonic() < end):
        for session, own in zip(sessions, times, strict=True):
            began = time.perf_counter()
            session.run(["logit"], {"input": x})
            own.append((time.perf_counter() - began) * 1000)
    return [float(np.median(own)) for own in times]


def pick(variants: Sequence[Variant], wish: str, min_speed_up: float, member: str) -> Variant:
    """The variant to be served. Raises LossAboveLimit when a fixed precision was asked for and is refused.

    `auto`: the fastest that is not refused and beats fp32 by `min_speed_up`, else fp32.
    """
    by_name = {variant.precision: variant for variant in variants}
    if wish != "auto":
        wanted = by_name[wish]
        if wanted.refused is not None:
            raise LossAboveLimit(
                f"member {member} in {wish} {wanted.refused}. No bundle was named; the trained weights are kept. "
                "Set `export.precision` to auto or fp32, or raise `export.limits` if that loss is acceptable."
            )
        return wanted
    plain = by_name["fp32"]
    best = plain
    for variant in variants:
        if variant.refused is None and variant.ms is not None and best.ms is not None and variant.ms < best.ms:
            best = variant
    if best is not plain and plain.ms is not None and best.ms is not None and plain.ms < best.ms * min_speed_up:
        return plain
    return best


def refuse(variant: Variant, why: str | None) -> Variant:
    """The variant with the reason it may not be served."""
    return replace(variant, refused=why)
