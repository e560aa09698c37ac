"""The reward a validator would pay, as `src/domain/reward.ts` has it (profile 2026-01), for judging what a number format costs.

Ported, not shared: a test runs both on the same answers.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from .metrics import Array, Labels

WINDOW = 100
"""answers in the Matthews correlation"""
NEWEST = 10
"""answers in the accuracy"""
EXPONENT = 3
WINDOWS = 4000
SEED = 72


def reward(predictions: Array, labels: Labels) -> float:
    """Of the newest answer of a history, oldest first: (0.5 max(0, MCC of the newest 100) + 0.5 accuracy of the newest 10)^3.

    A prediction of -1 is no answer: it holds its place and is left out of the metrics. 0 when the newest is missing or outside [0, 1].
    """
    if len(predictions) == 0 or not 0 <= predictions[-1] <= 1:
        return 0.0
    long = slice(-WINDOW, None)
    given, short = predictions[long] != -1, slice(-NEWEST, None)
    said, truth = np.rint(predictions[long][given]), labels[long][given]
    near = predictions[short] != -1
    right = np.rint(predictions[short][near]) == labels[short][near]
    accuracy = float(right.mean()) if len(right) else 0.0
    return float((0.5 * max(0.0, _mcc(said, truth)) + 0.5 * accuracy) ** EXPONENT)


def _mcc(said: Array, truth: Labels) -> float:
    """As scikit-learn computes it for any number of classes; 0 when either side is all of one class."""
    classes = np.union1d(said, truth)
    n = float(len(said))
    s, t = (np.array([(side == k).sum() for k in classes], np.float64) for side in (said, truth))
    spread = (n * n - (s * s).sum()) * (n * n - (t * t).sum())
    return 0.0 if spread == 0 else float(((said == truth).sum() * n - (s * t).sum()) / np.sqrt(spread))


@cache
def _draws() -> tuple[NDArray[np.bool_], Array]:
    rng = np.random.default_rng(SEED)
    return rng.random((WINDOWS, WINDOW)) < 0.5, rng.random((WINDOWS, WINDOW))


def expected_reward(positive: float, negative: float) -> float:
    """Mean reward of a miner that is right on this share of images with and without roadwork, over full windows.

    The same windows for every pair of rates (labels even, one uniform draw an answer), so that a difference of two is hardly noise.
    """
    labels, uniform = _draws()
    right = uniform < np.where(labels, positive, negative)
    said = right == labels
    tp, tn = (said & labels).sum(1), (~said & ~labels).sum(1)
    fp, fn = (said & ~labels).sum(1), (~said & labels).sum(1)
    product = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).astype(np.float64)
    correlation = np.where(product > 0, (tp * tn - fp * fn) / np.sqrt(np.maximum(product, 1)), 0.0)
    accuracy = right[:, -NEWEST:].mean(1)
    return float(((0.5 * np.maximum(correlation, 0) + 0.5 * accuracy) ** EXPONENT).mean())


def predicted_reward(p: Array, y: Labels) -> float | None:
    """Expected reward of these predictions by their rates a class; None when a class is missing."""
    if not ((y == 1).any() and (y == 0).any()):
        return None
    right = (p > 0.5) == (y == 1)
    return expected_reward(float(right[y == 1].mean()), float(right[y == 0].mean()))
