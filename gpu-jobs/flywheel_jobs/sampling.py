"""Which images an epoch shows, in which order, and how much each counts. Pure: everything follows from the seed.

Classes count alike, since the validator draws labels evenly; large groups (clips, many variants of one picture) count less an
image. `weights` shows every image once and mends both in the loss; the others draw with replacement and leave the loss alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .heads import row_weights
from .metrics import Array, Labels
from .spec import ImageRow

RAISE_LIMIT = 4.0
"""a synthetic image is never given more than this times its own weight"""


@dataclass(frozen=True)
class Shown:
    """One picture to show: index of the image, and which time in this epoch it is drawn (its augmentation differs)."""

    index: int
    draw: int


@dataclass(frozen=True)
class Plan:
    """Order of the images over a run."""

    probability: Array | None
    """of each image a draw; None: every image once"""
    loss_weights: Array
    """mean 1 over what an epoch shows"""
    seed: int
    fresh: NDArray[np.int64] | None = None
    """of a retrain: the new images, all shown in every epoch"""
    replay: int = 0
    """... with so many of the others"""

    @classmethod
    def of(cls, kind: str, labels: Labels, groups: list[str], weights: Array, seed: int) -> Plan:
        """`kind` of SamplingOptions. Raises ValueError when a class is missing."""
        n = len(labels)
        even = row_weights(labels, groups, weights)
        if kind == "weights":
            return cls(None, even * n, seed)
        if kind == "square-root":
            counts = np.bincount(labels, minlength=2).astype(np.float64)
            share = np.sqrt(counts) / np.sqrt(counts).sum()
            probability = even * 2 * share[labels]
        else:  # group-balanced: classes alike, groups of a class alike
            probability = row_weights(labels, groups, weights, exponent=1.0)
        return cls(probability, np.ones(n), seed)

    def incremental(self, fresh: NDArray[np.bool_], replay: float) -> Plan:
        """The plan of a retrain: an epoch shows every new image and `replay` old ones for each."""
        old = int((~fresh).sum())
        return replace(self, fresh=np.flatnonzero(fresh), replay=min(old, round(replay * int(fresh.sum()))))

    @property
    def length(self) -> int:
        """Pictures an epoch shows."""
        return len(self.loss_weights) if self.fresh is None else len(self.fresh) + self.replay

    def epoch(self, number: int) -> list[Shown]:
        """The pictures of an epoch in order; the same for the same seed and number, whatever came before."""
        rng = np.random.default_rng((self.seed, 2, number))
        n = len(self.loss_weights)
        if self.fresh is None:
            if self.probability is None:
                return [Shown(int(index), 0) for index in rng.permutation(n)]
            return _counted(rng.permutation(_draw(self.probability, n, rng)))
        others = np.setdiff1d(np.arange(n), self.fresh)
        # replayed images are drawn by what they count, so that the rare class and the small groups are not forgotten
        p = (self.loss_weights if self.probability is None else self.probability)[others]
        again = others[_draw(p / p.sum(), self.replay, rng)] if self.replay else others[:0]
        return _counted(rng.permutation(np.concatenate([self.fresh, again])))


def _draw(probability: Array, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`count` draws with little variance (systematic resampling): each index is drawn n p times, rounded up or down."""
    points = (np.arange(count) + rng.random()) / count
    order = rng.permutation(len(probability))
    cumulated = np.cumsum(probability[order])
    return order[np.minimum(np.searchsorted(cumulated / cumulated[-1], points, side="right"), len(order) - 1)]


def _counted(indices: NDArray[np.int64]) -> list[Shown]:
    seen: dict[int, int] = {}
    shown = []
    for index in indices.tolist():
        shown.append(Shown(index, seen.get(index, 0)))
        seen[index] = seen.get(index, 0) + 1
    return shown


def hold_synthetic_share(rows: list[ImageRow], least: float) -> list[ImageRow]:
    """The rows with the weight of synthetic ones raised until they carry `least` of the whole, RAISE_LIMIT times at most."""
    real = sum(row.weight for row in rows if not row.synthetic)
    made = sum(row.weight for row in rows if row.synthetic)
    if made <= 0 or real <= 0 or least <= 0 or made / (made + real) >= least:
        return rows
    factor = RAISE_LIMIT if least >= 1 else min(RAISE_LIMIT, real * least / (1 - least) / made)
    return [replace(row, weight=row.weight * factor) if row.synthetic else row for row in rows]
