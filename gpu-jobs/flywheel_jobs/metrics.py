"""Measures of binary predictions at boundary 0.5, as the validator counts them (0.5 itself is 0).

Pure functions on arrays; no model, no file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def sigmoid(z: Array) -> Array:
    """Logistic function without overflow."""
    out: Array = np.exp(-np.logaddexp(0.0, -z))
    return out


def logit(p: Array) -> Array:
    """Inverse of sigmoid with p clamped to [1e-6, 1 - 1e-6], as the bundle's calibration does."""
    q = np.clip(p, 1e-6, 1 - 1e-6)
    out: Array = np.log(q) - np.log1p(-q)
    return out


def mcc(p: Array, y: Labels) -> float:
    """Matthews correlation in [-1, 1]; 0 when labels or predictions are all of one class."""
    return phi(p > 0.5, y == 1)


def phi(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Phi correlation of two binary series, [-1, 1]; 0 when either is constant."""
    n11 = float(np.sum(a & b))
    n00 = float(np.sum(~a & ~b))
    n10 = float(np.sum(a & ~b))
    n01 = float(np.sum(~a & b))
    denominator = np.sqrt((n11 + n10) * (n11 + n01) * (n00 + n10) * (n00 + n01))
    return 0.0 if denominator == 0 else float((n11 * n00 - n10 * n01) / denominator)


def brier(p: Array, y: Labels) -> float:
    """Mean squared error of the probability."""
    return float(np.mean((p - y) ** 2))


def balanced(p: Array, y: Labels) -> float | None:
    """Mean of the shares of right answers of the two classes; None when one is missing."""
    right = (p > 0.5) == (y == 1)
    return float((right[y == 1].mean() + right[y == 0].mean()) / 2) if (y == 1).any() and (y == 0).any() else None


def measure(p: Array, y: Labels, n: int | None = None) -> dict[str, Any]:
    """Metrics of the contract. `n`: images, when `p` holds equally many views of each."""
    images = len(p) if n is None else n
    return {
        "accuracy": float(np.mean((p > 0.5) == (y == 1))),
        "mcc": mcc(p, y),
        "brier": brier(p, y),
        "n": int(images),
        "positives": round(float((y == 1).sum()) * images / max(len(p), 1)),
        "balanced": balanced(p, y),
    }


def error_correlation(probabilities: list[Array], y: Labels) -> float:
    """Phi correlation of the members' errors, averaged over their pairs; 0 with one member."""
    errors = [(p > 0.5) != (y == 1) for p in probabilities]
    pairs = [phi(errors[i], errors[j]) for i in range(len(errors)) for j in range(i)]
    return float(np.mean(pairs)) if pairs else 0.0
