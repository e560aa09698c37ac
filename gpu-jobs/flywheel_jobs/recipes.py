"""How a linear head is fitted: the strictly convex logistic regression, or AdamW in batches as the field does it; and the sweep
that picks one by what it does out of fold. No images and no files here."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .heads import NEARLY, Head, Judged, Rows, choose_strength, fit_rows, out_of_fold, row_weights, standard
from .metrics import Array, Labels, sigmoid

BETAS = (0.9, 0.999)
TINY = 1e-8


@dataclass(frozen=True)
class Logistic:
    """L2-regularised logistic regression by L-BFGS."""

    strength: float

    def __call__(self, rows: Rows, start: Head | None = None) -> Head:
        """The one minimum, wherever it starts."""
        return fit_rows(rows, self.strength, start)

    def told(self) -> dict[str, Any]:
        """For the result."""
        return {"method": "logistic", **asdict(self)}


@dataclass(frozen=True)
class Batches:
    """AdamW with a linear warm-up and a cosine to nothing, on standardised features; focal loss."""

    learning_rate: float
    batch: int
    epochs: int
    warm_up_epochs: float
    weight_decay: float
    gamma: float
    seed: int

    def __call__(self, rows: Rows, start: Head | None = None) -> Head:
        """A head; `start` is where the search starts (a retrain goes on from its parent). The same rows and seed, the same head."""
        n, views, d = rows.features.shape
        weights = np.repeat(row_weights(rows.labels, list(rows.groups), rows.weights) / views, views)
        x, y = rows.features.reshape(n * views, d).astype(np.float64), np.repeat(rows.labels, views)
        mean, deviation = standard(x, weights, rows.scale)
        z = (x - mean) / deviation
        p = np.zeros(d + 1)
        if start is not None and start.weight.shape == (d,):
            p = np.append(start.weight * deviation, start.bias + start.weight @ mean)
        p = self._descend(z, y, weights * len(weights), p)
        weight: Array = p[:-1] / deviation
        return Head(weight, float(p[-1] - weight @ mean))

    def _descend(self, z: Array, y: Labels, weights: Array, p: Array) -> Array:
        count, sign = len(y), 2.0 * y - 1.0
        per_epoch = -(-count // self.batch)
        steps = per_epoch * self.epochs
        warm = max(1, round(per_epoch * min(self.warm_up_epochs, self.epochs / 2)))
        first, second = np.zeros_like(p), np.zeros_like(p)
        decays = np.append(np.ones(len(p) - 1), 0.0)  # not the bias
        step = 0
        for epoch in range(self.epochs):
            order = np.random.default_rng((self.seed, 5, epoch)).permutation(count)
            for start in range(0, count, self.batch):
                part = order[start : start + self.batch]
                margin = sign[part] * (z[part] @ p[:-1] + p[-1])
                slope = sign[part] * weights[part] * focal_slope(margin, self.gamma) / len(part)
                gradient = np.append(z[part].T @ slope, slope.sum())
                rate = self.learning_rate * (
                    (step + 1) / warm if step < warm else 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm)))
                )
                step += 1
                first += (1 - BETAS[0]) * (gradient - first)
                second += (1 - BETAS[1]) * (gradient**2 - second)
                update = first / (1 - BETAS[0] ** step) / (np.sqrt(second / (1 - BETAS[1] ** step)) + TINY)
                p = p - rate * (update + self.weight_decay * decays * p)
        return p

    def told(self) -> dict[str, Any]:
        """For the result."""
        return {"method": "sgd", **asdict(self)}


Recipe = Logistic | Batches


def recipe_of(told: dict[str, Any]) -> Recipe:
    """The recipe that `told()` described."""
    settings = {key: value for key, value in told.items() if key != "method"}
    return Logistic(**settings) if told["method"] == "logistic" else Batches(**settings)


def focal_slope(margin: NDArray[np.float64], gamma: float) -> NDArray[np.float64]:
    """Derivative of (1 - p)^gamma (-log p), p = sigmoid(margin), by the margin."""
    p = sigmoid(margin)
    out: NDArray[np.float64] = (1 - p) ** gamma * (gamma * p * -np.logaddexp(0, -margin) - (1 - p))
    return out


def grid(options: dict[str, Any], gamma: float, seed: int) -> list[Batches]:
    """The settings of `HeadOptions` that are tried, slowest learning first."""
    pairs = itertools.product(sorted(options["learningRates"]), sorted(options["batches"], reverse=True))
    rest = (int(options["epochs"]), float(options["warmUpEpochs"]), float(options["weightDecay"]), gamma, seed)
    return [Batches(float(rate), int(batch), *rest) for rate, batch in pairs]


def choose_recipe(
    rows: Rows,
    fold: NDArray[np.int64],
    options: dict[str, Any],
    gamma: float,
    seed: int,
    judges: NDArray[np.bool_],
    learns: NDArray[np.bool_],
    progress: Callable[[int, int], None],
) -> tuple[Recipe, Judged, list[dict[str, Any]]]:
    """The recipe with the least scaled Brier score out of fold, the logits behind it, and all that was compared.

    The convex head is the one to beat: another must be better by more than NEARLY.
    """
    tried: list[tuple[Recipe, Judged]] = []
    compared: list[dict[str, Any]] = []
    others = grid(options, gamma, seed) if options["method"] in ("sgd", "sweep") else []
    if options["method"] in ("logistic", "sweep"):
        strength, judged, scores = choose_strength(rows, fold, judges=judges, learns=learns, progress=progress if not others else None)
        tried.append((Logistic(strength), judged))
        compared += [{**Logistic(one).told(), "brier": score} for one, score in scores]
    for number, recipe in enumerate(others):
        tried.append((recipe, out_of_fold(rows, fold, recipe, judges, learns)))
        compared.append({**recipe.told(), "brier": tried[-1][1].brier()})
        progress(number + 1, len(others))
    briers = [judged.brier() for _, judged in tried]
    best = 0
    for number, score in enumerate(briers):
        if score < briers[best] - NEARLY:
            best = number
    return *tried[best], compared
