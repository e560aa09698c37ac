"""Weights of the soft vote and its calibration, and how sure a difference between two votes is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .heads import fit_calibration, vote
from .member import Member, labels_of
from .metrics import Array, Labels, error_correlation, logit, measure, sigmoid
from .spec import ImageRow

WEIGHT_CONFIDENCE = 0.9
"""unequal weights of the vote must win in at least this share of resamples"""
WORSE_CONFIDENCE = 0.9
"""what goes on from a parent is worse beyond doubt when it is in this share of resamples"""
RESAMPLES = 400


def weight_grid(members: int) -> list[tuple[float, ...]]:
    """Weights tried for the vote, in tenths: 0.3 to 0.7 for two members, at least 0.1 each for more; the equal vote first."""
    equal = (1 / members,) * members
    if members == 1:
        return [equal]
    least = 3 if members == 2 else 1
    steps = itertools.product(range(least, 11), repeat=members)
    return [equal, *(tuple(step / 10 for step in one) for one in steps if sum(one) == 10)]


def prescribed(members: Sequence[Member]) -> list[float] | None:
    """The recipe's weights of the vote, summing to 1, where every member has one."""
    weights = [float(member.spec.get("recipeWeight") or 0) for member in members]
    return [one / sum(weights) for one in weights] if all(weights) else None


def vote_weights(members: list[Member], held: list[ImageRow], views: int, seed: int) -> tuple[list[float], dict[str, Any]]:
    """Weights of the soft vote, and what they were compared with on `validate`.

    The recipe's where every member has one, else equal; others must win beyond doubt (paired bootstrap by group).
    """
    grid = weight_grid(len(members))
    truth, groups = labels_of(held), np.array([row.group for row in held])
    alone = [member.probabilities(held, views, "validate") for member in members]
    kinds: dict[str, tuple[float, ...]] = {"equal": grid[0]}
    recipe = prescribed(members)
    if recipe is not None:
        kinds["recipe"] = tuple(recipe)

    def losses(weights: Sequence[float]) -> Array:
        out: Array = ((vote(alone, weights) - truth[:, None]) ** 2).mean(1)
        return out

    kinds["searched"] = min([*kinds.values(), *grid], key=lambda weights: float(losses(weights).mean()))
    default = "recipe" if "recipe" in kinds else "equal"
    gain = losses(kinds[default]) - losses(kinds["searched"])
    sure = kinds["searched"] != kinds[default] and share_above(gain, groups, seed) >= WEIGHT_CONFIDENCE
    taken = "searched" if sure else default
    told = dict(kinds)
    if len(members) > 1:  # told, never taken: a vote that is worse than one of its members is a member too many
        each = [tuple(float(i == k) for i in range(len(members))) for k in range(len(members))]
        told["single"] = min(each, key=lambda weights: float(losses(weights).mean()))
    compared = [
        {"kind": kind, "weights": list(weights), "metrics": measure_views(vote(alone, weights), truth)} for kind, weights in told.items()
    ]
    return [float(weight) for weight in kinds[taken]], {"compared": compared, "chosen": taken}


def error_pairs(members: list[Member], alone: list[Array], truth: Labels) -> list[dict[str, Any]]:
    """How differently each two members err."""
    return [
        {
            "a": members[i].name,
            "b": members[j].name,
            "errorCorrelation": error_correlation([alone[i], alone[j]], truth),
            "disagreement": float(((alone[i] > 0.5) != (alone[j] > 0.5)).mean()),
        }
        for i, j in itertools.combinations(range(len(members)), 2)
    ]


def vote_calibration(members: list[Member], weights: list[float], tuned: list[ImageRow], views: int, seed: int) -> dict[str, Any]:
    """Scaling and boundary of the vote on challenge views of the calibration pool."""
    p = vote([member.probabilities(tuned, views, "calibrate")[:, 1:] for member in members], weights)
    return fit_calibration(logit(p), labels_of(tuned), [row.group for row in tuned], seed)


def measure_views(p: Array, y: Labels) -> dict[str, float | int]:
    """Metrics over every view of the images (view 0 and the challenge views alike)."""
    return measure(p.reshape(-1), np.repeat(y, p.shape[1]), n=len(y))


def share_worse(now: Array, before: Array, truth: Labels, groups: Sequence[str], seed: int) -> float:
    """The share of resamples of the images, by group, in which the logits `now` have a larger Brier score than `before`."""
    return share_above((sigmoid(now) - truth) ** 2 - (sigmoid(before) - truth) ** 2, np.array(groups), seed)


def share_above(difference: Array, groups: NDArray[np.str_], seed: int) -> float:
    """Share of bootstrap resamples by group in which the mean difference is above 0."""
    _, index = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(index, weights=difference), np.bincount(index)
    draws = np.random.default_rng((seed, 13)).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    return float((means > 0).mean())
