"""The ensemble that a retrain goes on from: what it knew, what of its choices may stand, and whether it was forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .context import JobContext
from .features import extractor_pool
from .heads import calibrate, vote
from .member import Member, labels_of
from .metrics import Array, measure, sigmoid
from .spec import ImageRow, read_manifest
from .trained import Trained


@dataclass(frozen=True)
class Parent:
    """The ensemble a retrain goes on from, and the images it knew."""

    trained: Trained
    held: frozenset[str]
    """digests of images it was validated on"""
    fresh: frozenset[str]
    """... that are learned now and it did not know, or knew with another label"""

    @classmethod
    def load(cls, ctx: JobContext, digest: str | None, learned: list[ImageRow], held: list[ImageRow]) -> Parent | None:
        if digest is None:
            return None
        trained = Trained.load(ctx.objects, digest)
        # a parent whose snapshot is gone still gives its weights; all images then count as new
        rows = read_manifest(ctx.objects, trained.snapshot, "parent's snapshot") if ctx.objects.has(trained.snapshot) else []
        knew = frozenset((row.digest, row.label) for row in rows if row.pool in ("train", "traffic") and row.label is not None)
        judged = frozenset(row.digest for row in rows if row.pool == "validate")
        return cls(
            trained, judged & {row.digest for row in held}, frozenset(row.digest for row in learned if (row.digest, row.label) not in knew)
        )

    def settles(self, members: list[Member], learned: list[ImageRow], below: float) -> bool:
        """Whether what the parent chose may stand: the same members, and few enough new images."""
        heads = self.trained.choices.get("heads", {})
        same = [member.name for member in self.trained.members] == [member.name for member in members]
        goes_on = all(member.start is not None and member.name in heads for member in members)
        return same and goes_on and len(self.fresh) < below * len(learned)

    def retention(self, ctx: JobContext, held: list[ImageRow], now: Array, settled: bool) -> dict[str, Any] | None:
        """The parent and the new ensemble on the images the parent was validated on. `now`: probabilities of the new one on `held`."""
        mask = np.array([row.digest in self.held for row in held])
        old = [row for row, inside in zip(held, mask, strict=True) if inside]
        if not old:
            return None
        pool = extractor_pool(ctx)
        votes = []
        for member in self.trained.members:
            table = pool(member.ref).features([row.digest for row in old], 0, "what the parent knew").of(member.features)
            votes.append(sigmoid(member.head.logits(table[:, 0])))
        calibration = self.trained.calibration
        before = calibrate(vote(votes, [member.weight for member in self.trained.members]), calibration["a"], calibration["b"])
        return {
            "n": len(old),
            "before": measure(before, labels_of(old)),
            "after": measure(now[mask], labels_of(old)),
            "newImages": len(self.fresh),
            "choicesKept": settled,
        }
