"""A member of an ensemble while it is trained, and tables of the images it is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .features import Extractor
from .heads import Head, Rows, evidence, fit_scale, row_weights
from .metrics import Array, Labels, sigmoid
from .nets import FeatureKind
from .recipes import Recipe
from .spec import ImageRow
from .weights import BackboneRef

CALIBRATE_VIEWS = 3
"""at least so many challenge views of each calibration image: calibration must hold on what validators send"""


@dataclass
class Member:
    """A member while it is being made."""

    spec: dict[str, Any]
    ref: BackboneRef
    extractor: Extractor
    start: Head | None
    mid_scale: float
    """`midScale` of HeadOptions"""
    reason: str = ""
    """why this backbone, when it was chosen by itself"""
    head: Head | None = None
    recipe: Recipe | None = None
    scale: float = 1.0
    sweep: list[dict[str, Any]] = field(default_factory=list)
    stage: str = "probe"
    note: str = ""
    facts: dict[str, Any] | None = None
    history: dict[str, Any] = field(default_factory=dict)
    events: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def kind(self) -> FeatureKind:
        kind: FeatureKind = self.spec["features"]
        return kind

    @property
    def fine_tuned(self) -> bool:
        """Whether the backbone was trained here: by this job or by the parent."""
        return self.ref.weights.startswith("object:")

    def fit(self, images: Sequence[ImageRow], views: int, tuned: Sequence[ImageRow] | None) -> None:
        """Fits the head by the recipe chosen. `tuned`: calibration images, where recipe and scale are a parent's: that scale may be
        of the backbone before its fine-tune."""
        assert self.recipe is not None
        head = self.recipe(self.rows(images, views, "probe"), self.start)
        if tuned is not None and self.fine_tuned:
            self.scale = scale_of(head.logits(self.table(tuned, CALIBRATE_VIEWS, "calibrate")), tuned, shift=False)[0]
        self.head = head.scaled(self.scale, 0.0)

    def table(self, rows: Sequence[ImageRow], views: int, phase: str) -> NDArray[np.float32]:
        """Features [n, 1 + views, d]."""
        return self.extractor.features([row.digest for row in rows], views, phase).of(self.kind)

    def rows(self, images: Sequence[ImageRow], views: int, phase: str) -> Rows:
        """The images as a head learns from them."""
        found = self.extractor.features([row.digest for row in images], views, phase)
        groups, weights = np.array([row.group for row in images]), np.array([row.weight for row in images], np.float64)
        return Rows(found.of(self.kind), labels_of(images), weights, groups, found.scale(self.kind, self.mid_scale))

    def probabilities(self, rows: Sequence[ImageRow], views: int, phase: str) -> Array:
        """Of the finished head, [n, 1 + views]."""
        assert self.head is not None
        return sigmoid(self.head.logits(self.table(rows, views, phase)))


def labels_of(rows: Sequence[ImageRow]) -> Labels:
    return np.array([row.label for row in rows], np.int64)


def scale_of(logits: Array, rows: Sequence[ImageRow], shift: bool) -> tuple[float, float]:
    """Platt scaling of logits [n, v] of the calibration images, classes evenly weighted as validators draw them."""
    views, labels, groups = logits.shape[1], labels_of(rows), [row.group for row in rows]
    weights = np.repeat(row_weights(labels, groups, np.ones(len(rows)), 0.0), views)
    return fit_scale(logits.reshape(-1), np.repeat(labels, views), weights, evidence(labels, groups), shift)
