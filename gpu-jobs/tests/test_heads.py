import numpy as np
import pytest

from flywheel_jobs.heads import (
    Head,
    Rows,
    best_cut,
    calibrate,
    choose_strength,
    evidence,
    fit_calibration,
    fit_head,
    fit_scale,
    group_folds,
    out_of_fold,
    row_weights,
    vote,
)
from flywheel_jobs.metrics import error_correlation, logit, mcc, measure, phi, sigmoid


def blobs(n=120, d=6, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.normal(size=(n, d)).astype(np.float32)
    x[:, 0] += 1.5 * y
    return x, y


def test_one_half_counts_as_no_roadwork():
    assert measure(np.array([0.5, 0.51]), np.array([0, 1]))["accuracy"] == 1.0


def test_mcc_is_zero_when_predictions_are_of_one_class():
    assert mcc(np.array([0.9, 0.8]), np.array([0, 1])) == 0.0


def test_mcc_of_a_known_table():
    p = np.array([1.0] * 6 + [0.0] * 2 + [1.0] * 1 + [0.0] * 3)
    y = np.array([1] * 8 + [0] * 4)
    # tp 6, fn 2, fp 1, tn 3
    assert mcc(p, y) == pytest.approx((6 * 3 - 1 * 2) / np.sqrt(7 * 8 * 4 * 5))


def test_members_that_err_alike_are_fully_correlated():
    y = np.array([0, 0, 1, 1])
    p = np.array([0.9, 0.1, 0.9, 0.1])
    assert error_correlation([p, p], y) == 1.0
    assert phi(np.array([True, False]), np.array([True, True])) == 0.0


def test_the_logistic_function_and_its_inverse_survive_extremes():
    z = sigmoid(np.array([-1e4, 0.0, 1e4]))
    assert z.tolist() == [0.0, 0.5, 1.0]
    assert np.isfinite(logit(z)).all()


def test_the_fit_does_not_depend_on_its_start():
    x, y = blobs()
    w = np.full(len(y), 1 / len(y))
    cold = fit_head(x, y, w, 0.1)
    warm = fit_head(x, y, w, 0.1, Head(np.linspace(-3, 3, x.shape[1]), 2.0))
    assert np.abs(cold.weight - warm.weight).max() < 1e-5
    assert cold.bias == pytest.approx(warm.bias, abs=1e-5)


def test_the_fit_is_the_minimum_of_its_objective():
    x, y = blobs()
    w = np.full(len(y), 1 / len(y))
    head = fit_head(x, y, w, 0.1)
    deviation = x.astype(float).std(0) + 1e-4

    def objective(weight, bias):
        margin = (2 * y - 1) * (x @ weight + bias)
        return w @ np.logaddexp(0, -margin) + 0.05 * ((weight * deviation) ** 2).sum()

    best = objective(head.weight, head.bias)
    rng = np.random.default_rng(3)
    for _ in range(20):
        assert objective(head.weight + rng.normal(size=6) * 1e-2, head.bias) > best


@pytest.mark.parametrize("rows", [12, 200])  # fewer than half of the columns, and more
def test_few_rows_with_many_columns_have_the_same_minimum(rows):
    rng = np.random.default_rng(8)
    y = np.arange(rows) % 2
    x = (rng.normal(size=(rows, 60)) + 0.4 * y[:, None]).astype(np.float32)
    w = np.full(rows, 1 / rows)
    head = fit_head(x, y, w, 0.1)
    warm = fit_head(x, y, w, 0.1, Head(np.linspace(-1, 1, 60), 0.5))
    mean = w @ x.astype(float)
    deviation = np.sqrt(w @ (x - mean) ** 2) + 1e-4
    z, sign = (x - mean) / deviation, 2 * y - 1
    v, bias = head.weight * deviation, head.bias + head.weight @ mean
    slope = -sign * w / (1 + np.exp(sign * (z @ v + bias)))
    assert np.abs(z.T @ slope + 0.1 * v).max() < 1e-6
    assert abs(slope.sum()) < 1e-6
    assert np.abs(head.weight - warm.weight).max() < 1e-5


def test_a_smaller_scale_is_regularisation_over_its_square():
    x, y = blobs()
    w = np.full(len(y), 1 / len(y))
    scale = np.array([1.0, 1.0, 1.0, 0.5, 0.5, 0.5])
    head = fit_head(x, y, w, 0.1, scale=scale)
    deviation = x.astype(float).std(0) + 1e-4

    def objective(weight, bias):
        margin = (2 * y - 1) * (x @ weight + bias)
        return w @ np.logaddexp(0, -margin) + 0.05 * ((weight * deviation / scale) ** 2).sum()

    best = objective(head.weight, head.bias)
    rng = np.random.default_rng(3)
    for _ in range(20):
        assert objective(head.weight + rng.normal(size=6) * 1e-2, head.bias) > best
    assert np.abs(head.weight - fit_head(x, y, w, 0.1).weight).max() > 1e-3


def test_both_classes_weigh_the_same_and_big_groups_less_an_image():
    labels = np.array([1, 0, 0, 0])
    w = row_weights(labels, ["a", "b", "b", "c"], np.ones(4))
    assert w[labels == 1].sum() == pytest.approx(0.5)
    assert w.sum() == pytest.approx(1.0)
    assert w[1] < w[3] < w[1] + w[2]


def test_a_missing_class_is_an_error_not_a_silent_fit():
    with pytest.raises(ValueError, match="class 1"):
        row_weights(np.array([0, 0]), ["a", "b"], np.ones(2))


def test_folds_never_split_a_group_and_each_holds_both_classes():
    groups = [f"g{i // 4}" for i in range(48)]
    labels = [(i // 4) % 2 for i in range(48)]
    fold = group_folds(groups, labels, 3, seed=1)
    assert all(len({int(f) for f, g in zip(fold, groups, strict=True) if g == name}) == 1 for name in set(groups))
    assert all({y for f, y in zip(fold, labels, strict=True) if f == k} == {0, 1} for k in range(3))


def test_a_row_is_judged_by_a_head_that_never_saw_its_group():
    x, y = blobs(60)
    groups = np.array([f"g{i // 2}" for i in range(60)])
    rows = Rows(x[:, None], y, np.ones(60), groups)
    fold = group_folds(list(groups), y.tolist(), 3, 0)
    before = out_of_fold(rows, fold, 0.1).logits
    inside = groups == "g0"
    poisoned = Rows(rows.features, np.where(inside, 1 - y, y), rows.weights, groups)
    after = out_of_fold(poisoned, fold, 0.1).logits
    assert np.array_equal(before[inside], after[inside])
    assert not np.array_equal(before[~inside], after[~inside])


def test_pure_noise_gets_the_strongest_regularisation():
    rng = np.random.default_rng(5)
    n = 80
    rows = Rows(rng.normal(size=(n, 1, 40)).astype(np.float32), np.arange(n) % 2, np.ones(n), np.array([f"g{i}" for i in range(n)]))
    fold = group_folds(list(rows.groups), rows.labels.tolist(), 4, 0)
    strength, _, scores = choose_strength(rows, fold, (30.0, 0.001))
    assert [one for one, _ in scores] == [30.0, 0.001]
    assert strength == 30.0


def test_much_evidence_moves_the_boundary_and_little_does_not():
    rng = np.random.default_rng(2)
    y = np.arange(400) % 2
    z = 2.0 * (2 * y - 1) + rng.normal(size=400) * 1.5 - 1.0  # every logit is 1 too low
    w = np.full(400, 1 / 400)
    _, little = fit_scale(z, y, w, known=4)
    _, much = fit_scale(z, y, w, known=4000)
    assert abs(little) < 0.3
    assert much > 0.8


def test_an_overconfident_model_is_made_less_sure():
    rng = np.random.default_rng(2)
    y = (np.arange(400) % 2).astype(np.int64)
    z = 10 * ((2 * y - 1) + rng.normal(size=400) * 1.5)
    a, b = fit_scale(z, y, np.full(400, 1 / 400), known=400, shift=False)
    assert 0.05 <= a < 0.3
    assert b == 0.0


def test_a_clip_of_many_frames_is_little_evidence():
    labels = np.array([1] * 20 + [0] * 20)
    clips = ["clip"] * 20 + [f"n{i}" for i in range(20)]
    single = [f"p{i}" for i in range(20)] + [f"n{i}" for i in range(20)]
    assert evidence(labels, clips) < 4 < evidence(labels, single) == pytest.approx(40)


def test_the_vote_is_the_weighted_mean_and_calibration_the_bundles_formula():
    p = vote([np.array([0.2]), np.array([0.6])], [0.25, 0.75])
    assert p[0] == pytest.approx(0.5)
    assert calibrate(p, 2.0, 1.0)[0] == pytest.approx(1 / (1 + np.exp(-1)))


def skewed(n: int, views: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Logits whose log loss and whose right answers ask for different boundaries: few positives far out pull the sigmoid flat."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    far = rng.random(n) < 0.25
    middle = np.where(y == 0, -1.2, np.where(far, 9.0, -0.6))
    z = middle[:, None] + rng.normal(0, np.where((y == 1) & far, 1.0, 0.2)[:, None], (n, views))
    return z, y, [f"g{i}" for i in range(n)]


def test_best_cut_is_the_middle_of_the_range_with_the_most_right_answers() -> None:
    z, y = np.array([-3.0, -2.0, 1.0, 2.0, 5.0]), np.array([0, 0, 0, 1, 1])
    assert best_cut(z, y, np.full(5, 0.2)) == pytest.approx(1.5)
    # a boundary of 0 that is as good as any stays
    assert best_cut(np.array([-1.0, 1.0]), np.array([0, 1]), np.full(2, 0.5)) == 0.0
    # all weight on one class: everything is called that
    assert best_cut(np.array([1.0, 2.0]), np.array([0, 0]), np.full(2, 0.5)) > 2.0


def test_the_boundary_moves_to_where_most_answers_are_right_and_0_5_is_it() -> None:
    z, y, groups = skewed(600)
    found = fit_calibration(z, y, groups, seed=1)
    plain = fit_scale(z.reshape(-1), np.repeat(y, 3), np.full(1800, 1 / 1800), 600.0)
    fresh, truth, _ = skewed(600, seed=9)

    def right(a: float, b: float) -> float:
        return float(((a * fresh + b > 0) == (truth[:, None] == 1)).mean())

    assert found["kind"] == "platt"
    assert found["threshold"] != 0.5
    # held against images that no boundary was chosen on
    assert right(float(found["a"]), float(found["b"])) > right(*plain) + 0.01


def test_an_honest_boundary_stays_where_it_is() -> None:
    rng = np.random.default_rng(3)
    y = np.arange(400) % 2
    z = rng.normal(2.0 * y - 1.0, 1.0)[:, None]
    moved = ["threshold" in fit_calibration(z, y, [f"g{i}" for i in range(400)], seed) for seed in range(5)]
    assert sum(moved) <= 1


def test_few_groups_get_a_temperature_and_no_shift() -> None:
    z, y, _ = skewed(600)
    found = fit_calibration(z, y, [f"clip-{i % 2}-{i % 7}" for i in range(600)], seed=1)
    assert found["kind"] == "temperature"
    assert found["b"] == 0.0
    assert found["a"] > 0
    assert "threshold" not in found
