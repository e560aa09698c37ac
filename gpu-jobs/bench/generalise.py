"""What was tried to make a head hold on places never seen, on the splits and features of `train.py`; accuracy alone.

    npm run bench:generalise -- [--data DIR] [--cache DIR] [--seeds 3] [--only WORDS]

Prints one JSON object: accuracy of each way, and its gain over the plain way to fit the same features (paired interval by clip).
Everything learns from photographs and composites, these with half of the weight. Groups: sources (or cameras) a composite's is its
background's. Nothing but the head differs; logits are not scaled, since a factor moves no boundary.

*group DRO*: the largest group loss, softened (log-sum-exp of `tau` times the losses over `tau`, weighted by the groups' sizes).
*V-REx*: mean of the groups' losses and `beta` times their variance. *IRM*: mean, and `beta` times the squared derivative of each
group's loss by a factor on the logits (v1). *mixup*: 2,000 mixed rows with half of the weight. *averaged*: the mean of the weights of
several heads. *root*, *norm*: the signed square root of final features; each image's final features by their own mean and deviation.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from train import Array, Bench, Floats, Index, Mask, Predict, evaluate, read, say, units

from flywheel_jobs.context import JobContext
from flywheel_jobs.heads import Head, Rows, row_weights, standard
from flywheel_jobs.metrics import sigmoid
from flywheel_jobs.nets import FeatureKind
from flywheel_jobs.objects import FileObjects
from flywheel_jobs.progress import Progress
from flywheel_jobs.recipes import Batches

STRENGTH = 1.0
MIXED = 2000
ITERATIONS = 400

Groups = NDArray[np.int64]
Combine = Callable[[Array, Array], tuple[float, Array]]
"""(losses of the groups, their shares of the weight) -> what is minimised, and its derivative by each loss"""
Fit = Callable[[Rows, dict[str, Groups], Mask, int], Head]
"""(rows, groups by name, which are photographs, seed) -> head"""


def weights_of(rows: Rows) -> Array:
    """Of rows in one view."""
    return row_weights(rows.labels, list(rows.groups), rows.weights)


def descend(rows: Rows, strength: float, slope_of: Callable[[Array], tuple[float, Array]]) -> Head:
    """The head that minimises `slope_of(logits)` (value, and derivative by each logit) and the regularisation."""
    x: Array = rows.features[:, 0].astype(np.float64)
    mean, deviation = standard(x, weights_of(rows), rows.scale)
    z = (x - mean) / deviation

    def objective(p: Array) -> tuple[float, Array]:
        value, slope = slope_of(z @ p[:-1] + p[-1])
        return value + 0.5 * strength * float(p[:-1] @ p[:-1]), np.append(z.T @ slope + strength * p[:-1], slope.sum())

    options = {"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS, "ftol": 1e-10, "gtol": 1e-5, "maxcor": 20}
    found = minimize(objective, np.zeros(z.shape[1] + 1), jac=True, method="L-BFGS-B", options=options).x
    weight: Array = found[:-1] / deviation
    return Head(weight, float(found[-1] - weight @ mean))


def plain(strength: float = STRENGTH) -> Fit:
    """The product's way."""

    def fit(rows: Rows, _groups: dict[str, Groups], _real: Mask, _seed: int) -> Head:
        w, y = weights_of(rows), rows.labels
        return descend(rows, strength, lambda t: (float(w @ (np.logaddexp(0, t) - y * t)), w * (sigmoid(t) - y)))

    return fit


def spread(rows: Rows, group: Groups) -> tuple[Array, Array]:
    """Weights [groups, rows] that sum to 1 a group, the classes of a group alike; and the groups' shares of the whole weight."""
    w = weights_of(rows)
    out = np.zeros((group.max() + 1, len(w)))
    for k in range(len(out)):
        for label in (0, 1):
            inside = (group == k) & (rows.labels == label)
            if inside.any():
                out[k, inside] = w[inside] / w[inside].sum()
    return out / out.sum(1, keepdims=True), np.bincount(group, w)


def by_groups(name: str, combine: Combine) -> Fit:
    """Minimises a combination of the groups' losses."""

    def fit(rows: Rows, groups: dict[str, Groups], _real: Mask, _seed: int) -> Head:
        each, share = spread(rows, groups[name])
        y = rows.labels

        def slope(t: Array) -> tuple[float, Array]:
            value, by_loss = combine(each @ (np.logaddexp(0, t) - y * t), share)
            return value, (sigmoid(t) - y) * (by_loss @ each)

        return descend(rows, STRENGTH, slope)

    return fit


def dro(tau: float) -> Combine:
    """Group DRO, softened."""

    def combine(losses: Array, share: Array) -> tuple[float, Array]:
        a = np.log(share / share.sum()) + tau * losses
        e = np.exp(a - a.max())
        return float((np.log(e.sum()) + a.max()) / tau), e / e.sum()

    return combine


def vrex(beta: float) -> Combine:
    """Mean and variance of the groups' losses."""

    def combine(losses: Array, _share: Array) -> tuple[float, Array]:
        n, off = len(losses), losses - losses.mean()
        return float(losses.mean() + beta * (off @ off) / n), 1 / n + 2 * beta * off / n

    return combine


def irm(name: str, beta: float) -> Fit:
    """Invariant risk minimisation, version 1."""

    def fit(rows: Rows, groups: dict[str, Groups], _real: Mask, _seed: int) -> Head:
        each, _ = spread(rows, groups[name])
        y, n = rows.labels, len(each)

        def slope(t: Array) -> tuple[float, Array]:
            p = sigmoid(t)
            residual = p - y
            by_factor = each @ (residual * t)
            value = float((each @ (np.logaddexp(0, t) - y * t)).sum() + beta * by_factor @ by_factor) / n
            return value, (each.sum(0) * residual + 2 * beta * (by_factor @ each) * (residual + p * (1 - p) * t)) / n

        return descend(rows, STRENGTH, slope)

    return fit


def mixup(kind: str, alpha: float = 1.0) -> Fit:
    """Mixed rows beside the real ones. `kind`: any, class (within a class), lisa-class (within a class, across sources), lisa-source
    (within a source, across classes)."""

    def fit(rows: Rows, groups: dict[str, Groups], _real: Mask, seed: int) -> Head:
        rng, w, y, source = np.random.default_rng((seed, 77)), weights_of(rows), rows.labels, groups["source"]
        first = rng.choice(len(w), MIXED, p=w / w.sum())
        second = first.copy()
        for label in (0, 1):
            for one in np.unique(source):
                here = (y[first] == label) & (source[first] == one)
                allowed = {
                    "any": np.ones(len(w), bool),
                    "class": y == label,
                    "lisa-class": (y == label) & (source != one),
                    "lisa-source": (y != label) & (source == one),
                }[kind]
                if here.any() and w[allowed].sum() > 0:
                    p = np.where(allowed, w, 0)
                    second[here] = rng.choice(len(w), int(here.sum()), p=p / p.sum())
        part = rng.beta(alpha, alpha, MIXED)
        x = rows.features[:, 0].astype(np.float64)
        mixed = part[:, None] * x[first] + (1 - part[:, None]) * x[second]
        soft = np.append(y.astype(float), part * y[first] + (1 - part) * y[second])
        heavy = np.append(w / 2, np.full(MIXED, 0.5 / MIXED))
        mean, deviation = standard(x, w, rows.scale)
        z = (np.concatenate([x, mixed]) - mean) / deviation

        def objective(p: Array) -> tuple[float, Array]:
            t = z @ p[:-1] + p[-1]
            slope = heavy * (sigmoid(t) - soft)
            value = float(heavy @ (np.logaddexp(0, t) - soft * t)) + 0.5 * STRENGTH * float(p[:-1] @ p[:-1])
            return value, np.append(z.T @ slope + STRENGTH * p[:-1], slope.sum())

        found = minimize(objective, np.zeros(z.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}).x
        weight: Array = found[:-1] / deviation
        return Head(weight, float(found[-1] - weight @ mean))

    return fit


def averaged(kind: str, count: int = 10) -> Fit:
    """Mean weights of heads, each without one source or camera, or on a half of the clips."""
    inner = plain()

    def fit(rows: Rows, groups: dict[str, Groups], real: Mask, seed: int) -> Head:
        if kind == "halves":
            names, index = np.unique(rows.groups, return_inverse=True)
            rng = np.random.default_rng((seed, 9))
            masks = [(rng.random(len(names)) < 0.5)[index] for _ in range(count)]
        else:
            masks = [groups[kind] != k for k in np.unique(groups[kind])]
        heads = [inner(rows.take(mask), {}, real[mask], seed) for mask in masks if rows.take(mask).both_classes()]
        return Head(np.mean([head.weight for head in heads], axis=0), float(np.mean([head.bias for head in heads])))

    return fit


def batches(rate: float, batch: int = 64, seeds: int = 1) -> Fit:
    """AdamW in batches with the focal loss, as in the product's sweep; weights averaged over orders of the rows."""

    def fit(rows: Rows, _groups: dict[str, Groups], _real: Mask, seed: int) -> Head:
        heads = [Batches(rate, batch, 10, 2.0, 0.01, 2.0, 100 * seed + k)(rows) for k in range(seeds)]
        return Head(np.mean([head.weight for head in heads], axis=0), float(np.mean([head.bias for head in heads])))

    return fit


def few(pairs: int, least: float) -> Fit:
    """As a turn has it: so many pairs of composites at 0.5 of a photograph's weight each, raised to `least` of the whole, four times
    at most."""
    inner = plain()

    def fit(rows: Rows, _groups: dict[str, Groups], real: Mask, seed: int) -> Head:
        photographs, made = np.flatnonzero(real), np.flatnonzero(~real).reshape(-1, 2)
        kept = made[np.sort(np.random.default_rng((seed, 3)).permutation(len(made))[:pairs])].reshape(-1)
        n, own = len(photographs), 0.5 * len(kept)
        factor = min(4.0, max(1.0, n * least / (1 - least) / own))
        some = rows.take(np.concatenate([photographs, kept]))
        return inner(replace(some, weights=np.append(np.ones(n), np.full(len(kept), 0.5 * factor))), {}, real, seed)

    return fit


def root(x: Floats) -> Floats:
    """Signed square root."""
    return np.asarray(np.sign(x) * np.sqrt(np.abs(x)), np.float32)


def norm(x: Floats) -> Floats:
    """Each image by its own mean and deviation."""
    return np.asarray((x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-6), np.float32)


class Ways:
    """Settings of `train.py` made of the fits above."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def way(
        self, fit: Fit, kind: FeatureKind, share: float = 0.5, mid_scale: float = 0.5, change: Callable[[Floats], Floats] | None = None
    ) -> Callable[[Mask, int], Predict]:
        """`change`: of final features."""
        bench, photos = self.bench, self.bench.photos
        wide = bench.features.final.shape[2] if kind == "both" else None

        def of(x: Floats) -> Floats:
            if change is None:
                return x
            return np.concatenate([change(x[..., :wide]), x[..., wide:]], axis=-1) if wide is not None else change(x)

        def setting(learns: Mask, seed: int) -> Predict:
            rows, real = bench.rows(kind, learns, seed, share=share, mid_scale=mid_scale)
            index = np.flatnonzero(learns)
            made = bench.twins[seed].background
            where = np.concatenate([index, made[np.flatnonzero(learns[made])] if share > 0 else index[:0]])
            source, camera = (np.unique(column[where], return_inverse=True)[1] for column in (photos.source, photos.camera))
            label = rows.labels
            groups = {
                "source": source,
                "camera": camera,
                "source and class": np.unique(2 * source + label, return_inverse=True)[1],
                "source, class and real": np.unique(4 * source + 2 * label + real, return_inverse=True)[1],
                "camera and class": np.unique(2 * camera + label, return_inverse=True)[1],
            }
            head = fit(replace(rows, features=of(rows.features)), groups, real, seed)

            def predict(asked: Index, view: int) -> Array:
                return sigmoid(head.logits(of(bench.real[kind][asked, view])))

            return predict

        return setting

    def all(self) -> dict[str, dict[str, Callable[[Mask, int], Predict]]]:
        """By what they are compared with, the first of each part."""
        final: dict[str, Callable[[Mask, int], Predict]] = {"plain": self.way(plain(), "final")}
        for strength in (0.3, 3.0, 10.0):
            final[f"regularisation {strength:g}"] = self.way(plain(strength), "final")
        for name in ("source", "source and class", "source, class and real", "camera and class"):
            for tau in (1, 3, 10, 30):
                final[f"group DRO by {name}, tau {tau}"] = self.way(by_groups(name, dro(tau)), "final")
        for name in ("source", "camera"):
            for beta in (1, 10, 100):
                final[f"V-REx by {name}, beta {beta}"] = self.way(by_groups(name, vrex(beta)), "final")
        for beta in (1, 10, 100):
            final[f"IRM by source, beta {beta}"] = self.way(irm("source", beta), "final")
        for kind in ("any", "class", "lisa-class", "lisa-source"):
            final[f"mixup {kind}"] = self.way(mixup(kind), "final")
        final["mixup any, Beta(0.2)"] = self.way(mixup("any", 0.2), "final")
        for kind in ("source", "camera", "halves"):
            final[f"averaged {kind}"] = self.way(averaged(kind), "final")
        for rate in (0.001, 0.003, 0.01):
            final[f"AdamW, rate {rate:g}"] = self.way(batches(rate), "final")
        final["AdamW, rate 0.001, averaged over 5 orders"] = self.way(batches(0.001, seeds=5), "final")
        final["root"] = self.way(plain(), "final", change=root)
        final["norm"] = self.way(plain(), "final", change=norm)
        both = {"plain": self.way(plain(), "both")}
        for scale in (0.2, 0.3, 0.4, 0.6, 0.7, 1.0):
            both[f"midScale {scale:g}"] = self.way(plain(), "both", mid_scale=scale)
        for strength in (0.3, 3.0):
            both[f"regularisation {strength:g}"] = self.way(plain(strength), "both")
        for share in (0.1, 0.2, 0.3, 0.4, 0.65):
            both[f"composites {share:.0%} of the weight"] = self.way(plain(), "both", share=share)
        both["group DRO by source, class and real, tau 3"] = self.way(by_groups("source, class and real", dro(3)), "both")
        both["root"] = self.way(plain(), "both", change=root)
        both["norm"] = self.way(plain(), "both", change=norm)
        both["root, regularisation 0.3"] = self.way(plain(0.3), "both", change=root)
        both["root, group DRO, tau 3"] = self.way(by_groups("source, class and real", dro(3)), "both", change=root)
        parts = {"final": final, "both": both}
        for pairs in (32, 120, 300):
            parts[f"both, {pairs} pairs of composites at 0.5"] = {
                "plain": self.way(few(pairs, 0.0), "both"),
                **{f"raised to {least:g}": self.way(few(pairs, least), "both") for least in (0.2, 0.3, 0.5)},
            }
        return parts


def main() -> None:
    """Prints the table as JSON on standard output; progress on standard error."""
    parser = argparse.ArgumentParser(description="Ways to make a head hold on places never seen.")
    parser.add_argument("--data", default=os.environ.get("FLYWHEEL_TEST_DATA", "../shared/data/streets"))
    parser.add_argument("--cache", default=str(Path(tempfile.gettempdir()) / "streetvision-bench-train"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=int(os.environ["OMP_NUM_THREADS"]))
    parser.add_argument("--only", nargs="+", help="parts to run (final, both, pairs), or ways by how they begin")
    args = parser.parse_args()
    cache, data = Path(args.cache), Path(args.data)
    if not (data / "labels.csv").is_file():
        sys.exit(f"no labels.csv in {data}: give the folder of the photographs with --data or FLYWHEEL_TEST_DATA.")
    for part in ("cache", "work"):
        (cache / part).mkdir(parents=True, exist_ok=True)
    ctx = JobContext(FileObjects(cache / "objects"), cache / "cache", cache / "work", args.threads, Progress(None, quiet=True))
    began = time.monotonic()
    bench = Bench(ctx, read(data, ctx.objects), 3, args.seeds)
    kinds = ("val", *units(bench.photos))
    table: dict[str, Any] = {}
    for part, ways in Ways(bench).all().items():
        wanted = [
            name
            for name in ways
            if args.only is None or any(part == word or word in part.split() or name.startswith(word) for word in args.only)
        ]
        base: dict[str, list[Array]] | None = None
        table[part] = {}
        for name, setting in ways.items():
            if not wanted or (name != "plain" and name not in wanted):
                continue
            found, behind = evaluate(bench.photos, setting, args.seeds, kinds, base, challenges=False)
            base = base or behind
            row = {kind: {"accuracy": round(found[kind]["accuracy"]["mean"], 4)} for kind in kinds}
            for kind in kinds:
                if "accuracyBeyondProbe" in found[kind]:
                    row[kind]["gain"] = found[kind]["accuracyBeyondProbe"]
            table[part][name] = row
            say(f"{part}: {name}: " + ", ".join(f"{kind} {row[kind]['accuracy']:.3f}" for kind in kinds))
    print(json.dumps({"bench": "generalise", "seeds": args.seeds, "seconds": round(time.monotonic() - began, 1), "ways": table}, indent=1))


if __name__ == "__main__":
    main()
