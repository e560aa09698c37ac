"""Linear heads on frozen features: L2-regularised logistic regression, its regularisation, folds and calibration.

The objective is strictly convex, so that the result does not depend on where the search starts: the same rows give the
same head to within rounding, on any number of threads. No images and no files here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .metrics import Array, Labels, logit, sigmoid

LAMBDAS = (3.0, 1.0, 0.3, 0.1, 0.03)
"""regularisation tried, strongest first (each start warms the next); on standardised features and weights that sum to 1"""
GROUP_EXPONENT = 0.25
"""chosen by leave-clips-out cross-validation on street photographs: 0 lets clips rule, 0.5 lets single odd photographs rule"""
NEARLY = 0.001
"""Brier scores closer than this count as equal: the stronger regularisation is taken"""
SCALE_PRIOR = (1.5, 0.25)
"""standard deviations of a about 1 and of b about 0 before any evidence: a shift of the boundary must be earned"""
SHIFT_EVIDENCE = 40.0
"""independent images (see `evidence`) below which a calibration may not shift the boundary at all"""
CUT_FOLDS, CUT_RESAMPLES, CUT_CONFIDENCE = 5, 1000, 0.95
"""the boundary moves when its out-of-fold gain is above 0 in this share of bootstrap resamples by group"""
EPSILON = 1e-4
"""added to standard deviations: features that never vary stay harmless"""


@dataclass(frozen=True)
class Head:
    """logit = features @ weight + bias, on raw features: the standardisation is folded in."""

    weight: Array
    bias: float

    def logits(self, x: NDArray[np.floating]) -> Array:
        """Logits of features [..., d]."""
        out: Array = np.asarray(x, np.float64) @ self.weight + self.bias
        return out

    def scaled(self, a: float, b: float) -> Head:
        """The head whose logit is a * logit + b."""
        return Head(self.weight * a, self.bias * a + b)


def row_weights(labels: Labels, groups: Sequence[str], weights: Array, exponent: float = GROUP_EXPONENT) -> Array:
    """Weights of rows, summing to 1, half for each class (the validator draws labels evenly).

    Within a class a row counts its own weight over its group's size to the power `exponent`: twenty frames of one clip
    are more than one photograph, but not twenty. Raises ValueError when a class is missing.
    """
    _, index, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    out: Array = weights / counts[index] ** exponent
    for label in (0, 1):
        total = out[labels == label].sum()
        if total <= 0:
            raise ValueError(f"no rows of class {label}")
        out[labels == label] *= 0.5 / total
    return out


def evidence(labels: Labels, groups: Sequence[str]) -> float:
    """How many independent images the rows are worth: twice the harmonic mean of the classes' effective numbers of groups
    (Kish: square of the sum over sum of squares), since the scarcer class limits what is known of the boundary."""
    effective = []
    for label in (0, 1):
        counts = np.unique(np.asarray(groups)[labels == label], return_counts=True)[1].astype(np.float64)
        effective.append(counts.sum() ** 2 / (counts**2).sum() if len(counts) else 0.0)
    low, high = sorted(effective)
    return 0.0 if low <= 0 else float(4 * low * high / (low + high))


def standard(x: Array, weights: Array, scale: Array | None) -> tuple[Array, Array]:
    """Mean and deviation [d] that a head's features are standardised by; `scale` of Rows makes some of them smaller than 1."""
    mean: Array = weights @ x
    deviation: Array = np.sqrt(np.maximum(weights @ (x - mean) ** 2, 0)) + EPSILON
    return mean, deviation if scale is None else deviation / scale


def fit_head(
    x: NDArray[np.floating], y: Labels, weights: Array, strength: float, start: Head | None = None, scale: Array | None = None
) -> Head:
    """Minimises sum_i w_i log(1 + exp(-s_i z_i)) + strength / 2 |v|^2 over standardised features, by L-BFGS in float64.

    x [n, d]; weights sum to 1; `start` only shortens the search; `scale` [d] as in `Rows`.
    """
    from scipy.optimize import minimize

    exact: Array = np.asarray(x, np.float64)
    mean, deviation = standard(exact, weights, scale)
    z = (exact - mean) / deviation
    sign = 2.0 * y - 1.0

    def objective(p: Array) -> tuple[float, Array]:
        margin = sign * (z @ p[:-1] + p[-1])
        loss = float(weights @ np.logaddexp(0, -margin) + 0.5 * strength * (p[:-1] @ p[:-1]))
        slope = -sign * weights * sigmoid(-margin)
        return loss, np.append(z.T @ slope + strength * p[:-1], slope.sum())

    first = np.zeros(z.shape[1] + 1)
    if start is not None and start.weight.shape == (z.shape[1],):
        first = np.append(start.weight * deviation, start.bias + start.weight @ mean)
    found = minimize(
        objective, first, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-14, "gtol": 1e-7, "maxcor": 20}
    )
    weight: Array = found.x[:-1] / deviation
    return Head(weight, float(found.x[-1] - weight @ mean))


def fit_scale(
    logits: Array, y: Labels, weights: Array, known: float, shift: bool = True, doubt: tuple[float, float] = SCALE_PRIOR
) -> tuple[float, float]:
    """Platt scaling: a, b of sigmoid(a * logit + b), by Newton steps on the weighted log loss with a Gaussian prior.

    `known` is the number of independent images behind the rows (see `evidence`): a few clips may hardly move the
    boundary, hundreds of groups may. `shift` False keeps b at 0. `doubt`: standard deviations of a about 1 and of b about 0 before
    any evidence. a stays at or above 0.05: a calibration must not turn answers round.
    """
    design = np.stack([logits, np.ones_like(logits)], 1)
    w = weights / weights.sum() * max(known, 1e-9)
    prior = np.array([1.0, 0.0])
    precision = np.array([doubt[0] ** -2, doubt[1] ** -2 if shift else 1e12])
    p = prior.copy()

    def loss(q: Array) -> float:
        margin = (2.0 * y - 1.0) * (design @ q)
        return float(w @ np.logaddexp(0, -margin) + 0.5 * (precision * (q - prior) ** 2).sum())

    for _ in range(100):
        s = sigmoid(design @ p)
        gradient = design.T @ (w * (s - y)) + precision * (p - prior)
        hessian = (design * (w * s * (1 - s))[:, None]).T @ design + np.diag(precision)
        step = np.linalg.solve(hessian, gradient)
        size, now = 1.0, loss(p)
        while loss(p - size * step) > now and size > 1e-6:
            size /= 2
        p = p - size * step
        if float(np.abs(size * step).max()) < 1e-10:
            break
    return max(float(p[0]), 0.05), float(p[1]) if shift else 0.0


def group_folds(groups: Sequence[str], labels: Sequence[int], folds: int, seed: int) -> NDArray[np.int64]:
    """A fold for each row; a group is never split. Groups go, largest first, where their class is rarest.

    Raises ValueError when there are fewer groups than folds.
    """
    rows: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        rows.setdefault(group, []).append(index)
    if len(rows) < folds:
        raise ValueError(f"{len(rows)} groups cannot make {folds} folds")
    order = sorted(rows)
    np.random.default_rng(seed).shuffle(order)
    order.sort(key=lambda group: -len(rows[group]))
    counts = np.zeros((folds, 2))
    out = np.zeros(len(groups), np.int64)
    for group in order:
        mine = np.bincount([labels[index] for index in rows[group]], minlength=2)[:2]
        crowded = (counts * (mine > 0)).sum(1)
        best = min(range(folds), key=lambda fold: (crowded[fold], counts[fold].sum(), fold))
        counts[best] += mine
        out[rows[group]] = best
    return out


@dataclass(frozen=True)
class Rows:
    """Training rows with their views: features [n, v, d]; labels, weights and groups for each image."""

    features: NDArray[np.float32]
    labels: Labels
    weights: Array
    groups: NDArray[np.str_]
    scale: Array | None = None
    """[d]: what each standardised feature is multiplied by before a head is fitted; None: 1. Regularisation is felt over its square"""

    def take(self, mask: NDArray[np.bool_] | NDArray[np.int64]) -> Rows:
        """The images of a mask or an index."""
        return Rows(self.features[mask], self.labels[mask], self.weights[mask], self.groups[mask], self.scale)

    def both_classes(self) -> bool:
        """Whether there is something to tell apart."""
        return bool((self.labels == 0).any() and (self.labels == 1).any())


def fit_rows(rows: Rows, strength: float, start: Head | None = None) -> Head:
    """A head on all views of the rows, weighted by class, group and row."""
    n, views, _ = rows.features.shape
    weights = np.repeat(row_weights(rows.labels, list(rows.groups), rows.weights) / views, views)
    return fit_head(rows.features.reshape(n * views, -1), np.repeat(rows.labels, views), weights, strength, start, rows.scale)


@dataclass(frozen=True)
class Judged:
    """Out-of-fold logits [m, v] of the images that judge, with their rows."""

    logits: Array
    rows: Rows

    def scale(self) -> float:
        """The factor that makes the logits as sure as they are right. The boundary stays: the classes' even weights set it."""
        y = np.repeat(self.rows.labels, self.logits.shape[1])
        return fit_scale(self.logits.reshape(-1), y, self._weights(), evidence(self.rows.labels, list(self.rows.groups)), shift=False)[0]

    def of_view(self, view: int) -> Judged:
        """The same images in one view only."""
        return Judged(self.logits[:, view : view + 1], self.rows)

    def probabilities(self) -> Array:
        """Scaled probabilities [m, v]."""
        return sigmoid(self.scale() * self.logits)

    def brier(self) -> float:
        """Brier score after scaling, images alike and classes even: strong regularisation shrinks probabilities, which
        scaling mends, so that strengths are compared by what they separate."""
        y = np.repeat(self.rows.labels, self.logits.shape[1])
        return float(self._weights() @ (self.probabilities().reshape(-1) - y) ** 2)

    def _weights(self) -> Array:
        views = self.logits.shape[1]
        return np.repeat(row_weights(self.rows.labels, list(self.rows.groups), self.rows.weights, 0.0) / views, views)


def out_of_fold(
    rows: Rows,
    fold: NDArray[np.int64],
    strength: float | Callable[[Rows, Head | None], Head],
    judges: NDArray[np.bool_] | None = None,
    learns: NDArray[np.bool_] | None = None,
    starts: dict[int, Head] | None = None,
) -> Judged:
    """Logits of the rows that judge (default all) from heads fitted to the rows that learn (default all) of other folds.

    Folds hold whole groups, so that no head saw anything of the group it is judged on. `strength` is the regularisation of the
    logistic head, or another way to fit one. `starts`, by fold, is used and updated: a warm start, which does not change the
    result.
    """
    fit = strength if callable(strength) else lambda some, start: fit_rows(some, strength, start)
    judges = np.ones(len(rows.labels), bool) if judges is None else judges
    learns = np.ones(len(rows.labels), bool) if learns is None else learns
    out = np.zeros(rows.features.shape[:2])
    for k in np.unique(fold[judges]):
        inside = (fold == k) & judges
        learn = rows.take((fold != k) & learns)
        if not learn.both_classes():
            continue  # the fold holds a whole class: its rows stay undecided
        head = fit(learn, None if starts is None else starts.get(int(k)))
        if starts is not None:
            starts[int(k)] = head
        out[inside] = head.logits(rows.features[inside])
    return Judged(out[judges], rows.take(judges))


def choose_strength(
    rows: Rows,
    fold: NDArray[np.int64],
    lambdas: Sequence[float] = LAMBDAS,
    judges: NDArray[np.bool_] | None = None,
    learns: NDArray[np.bool_] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[float, Judged, list[tuple[float, float]]]:
    """The strength with the least scaled Brier score out of fold, the logits behind it, and the score of each strength."""
    starts: dict[int, Head] = {}
    scores: list[tuple[float, float]] = []
    best: tuple[float, float, Judged] | None = None
    for number, strength in enumerate(lambdas):
        judged = out_of_fold(rows, fold, strength, judges, learns, starts)
        score = judged.brier()
        scores.append((strength, score))
        # a nearly equal score goes to the stronger regularisation, which comes first
        if best is None or score < best[1] - NEARLY:
            best = (strength, score, judged)
        if progress is not None:
            progress(number + 1, len(lambdas))
    assert best is not None
    return best[0], best[2], scores


def vote(probabilities: Sequence[Array], weights: Sequence[float]) -> Array:
    """Soft vote: the weighted mean of the members' probabilities."""
    out: Array = np.einsum("m,m...->...", np.asarray(weights, np.float64), np.stack(list(probabilities)))
    return out


def calibrate(p: Array, a: float, b: float) -> Array:
    """The bundle's calibration: sigmoid(a * logit(p) + b), p clamped to [1e-6, 1 - 1e-6]."""
    return sigmoid(a * logit(p) + b)


def best_cut(z: Array, y: Labels, weights: Array) -> float:
    """The boundary on `z` of the largest weighted accuracy: the middle of the widest range that reaches it, nearest to 0 of several."""
    order = np.argsort(z, kind="stable")
    cuts = z[order]
    # accuracy when everything above the i-th smallest is called positive
    gains = np.where(y[order] == 1, -weights[order], weights[order])
    reached = weights[y == 1].sum() + np.concatenate([[0.0], np.cumsum(gains)])
    edges = np.concatenate([[cuts[0] - 1.0], cuts, [cuts[-1] + 1.0]])
    low, high = edges[:-1], edges[1:]
    good = (reached >= reached.max() - 1e-12) & (high > low)
    if (good & (low <= 0) & (high >= 0)).any():
        return 0.0
    middles = (low[good] + high[good]) / 2
    return float(middles[np.argmin(np.abs(middles))]) if len(middles) else 0.0


def fit_calibration(logits: Array, labels: Labels, groups: Sequence[str], seed: int) -> dict[str, float | int | str]:
    """Calibration of the vote's logits [n, v] of `n` images in `v` views, classes evenly weighted as validators draw them.

    Temperature alone where few groups are known, Platt scaling from SHIFT_EVIDENCE on. Then the boundary: log loss asks for
    honest probabilities, which is not yet the most right answers at 0.5. Where the best boundary of other folds wins on groups
    it was not chosen on, beyond reasonable doubt, it is moved to 0.5 by folding it into b. Returns the bundle's `calibration`.
    """
    views, known = logits.shape[1], evidence(labels, groups)
    image_weights = row_weights(labels, groups, np.ones(len(labels)), 0.0)
    y, w = np.repeat(labels, views), np.repeat(image_weights / views, views)
    kind = "platt" if known >= SHIFT_EVIDENCE else "temperature"
    a, b = fit_scale(logits.reshape(-1), y, w, known, shift=kind == "platt")
    out: dict[str, float | int | str] = {"kind": kind, "a": a, "b": b, "n": len(labels)}
    if known < SHIFT_EVIDENCE:
        return out
    z = a * logits + b
    fold = group_folds(groups, [int(label) for label in labels], CUT_FOLDS, seed)
    gain = np.zeros(len(labels))
    for k in range(CUT_FOLDS):
        inside = fold == k
        outside = np.repeat(~inside, views)
        if len(np.unique(y[outside])) < 2:
            continue
        cut = best_cut(z.reshape(-1)[outside], y[outside], w[outside])
        truth = labels[inside, None] == 1
        gain[inside] = image_weights[inside] * (((z[inside] > cut) == truth).mean(1) - ((z[inside] > 0) == truth).mean(1))
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    by_group = np.bincount(index, gain, len(names))
    drawn = np.random.default_rng((seed, 13)).integers(0, len(names), (CUT_RESAMPLES, len(names)))
    if float((by_group[drawn].sum(1) > 0).mean()) >= CUT_CONFIDENCE:
        cut = best_cut(z.reshape(-1), y, w)
        out |= {"b": b - cut, "threshold": float(sigmoid(np.array(cut)))}
    return out
