"""The bench of ways to generalise: its plain way is the product's, and what it minimises has the derivative that it says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from generalise import by_groups, descend, dro, irm, mixup, plain, vrex, weights_of

from flywheel_jobs.heads import Rows, fit_rows


def world(n: int = 120) -> tuple[Rows, dict[str, np.ndarray]]:
    """Two sources, of which the second has another mean; the label is in one feature of five."""
    rng = np.random.default_rng(4)
    y, source = np.arange(n) % 2, (np.arange(n) // 2) % 2
    x = rng.normal(size=(n, 1, 5)).astype(np.float32)
    x[:, 0, 0] += 1.5 * y
    x[:, 0, 1] += 2.0 * source
    rows = Rows(x, y, np.ones(n), np.array([f"g{i // 4}" for i in range(n)]), np.array([1.0, 1, 1, 0.5, 0.5]))
    return rows, {"one": np.zeros(n, np.int64), "source": source, "source and class": 2 * source + y}


def test_the_plain_way_and_one_group_alone_are_the_products_head() -> None:
    rows, groups = world()
    real = np.ones(len(rows.labels), bool)
    product = fit_rows(rows, 1.0)
    for fit in (plain(), by_groups("one", dro(10)), by_groups("one", vrex(10))):
        found = fit(rows, groups, real, 0)
        assert np.abs(found.weight - product.weight).max() < 2e-3
        assert found.bias == pytest.approx(product.bias, abs=2e-3)


@pytest.mark.parametrize("combine", [dro(3), vrex(10)])
def test_a_combination_of_losses_tells_its_derivative(combine) -> None:
    losses, share = np.array([0.2, 0.9, 0.5]), np.array([0.5, 0.2, 0.3])
    value, slope = combine(losses, share)
    for k in range(3):
        step = np.eye(3)[k] * 1e-6
        assert (combine(losses + step, share)[0] - value) / 1e-6 == pytest.approx(slope[k], rel=1e-3)


def test_robust_ways_even_out_the_groups_and_every_way_still_tells_the_classes_apart() -> None:
    rows, groups = world()
    real = np.ones(len(rows.labels), bool)

    def losses(head) -> np.ndarray:
        each = np.logaddexp(0, -(2 * rows.labels - 1) * head.logits(rows.features[:, 0]))
        return np.array([each[groups["source and class"] == k].mean() for k in range(4)])

    usual = losses(plain()(rows, groups, real, 0))
    assert losses(by_groups("source and class", dro(30))(rows, groups, real, 0)).max() < usual.max()
    for fit in (irm("source", 0.1), mixup("any"), mixup("lisa-class")):
        head = fit(rows, groups, real, 0)
        assert np.mean((head.logits(rows.features[:, 0]) > 0) == (rows.labels == 1)) > 0.7


def test_what_is_minimised_is_a_minimum() -> None:
    rows, _ = world()
    w, y = weights_of(rows), rows.labels

    def slope(t: np.ndarray) -> tuple[float, np.ndarray]:
        return float(w @ (np.logaddexp(0, t) - y * t)), w * (1 / (1 + np.exp(-t)) - y)

    head = descend(rows, 0.0, slope)  # no regularisation: the gradient by the bias is 0
    assert abs(slope(head.logits(rows.features[:, 0]))[1].sum()) < 1e-4
