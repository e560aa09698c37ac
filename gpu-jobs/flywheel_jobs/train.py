"""Job `train`: an ensemble from a snapshot. Probe on cached features, ablation by provider, fine-tune where the probe falls
short, weights of the vote, calibration.

Learned from: pools `train` and `traffic`. Chosen on: `validate` (with `train`, by grouped folds). Calibrated on:
`calibrate`. A `test` row is refused. Every phase goes on from the feature cache and the fine-tune's checkpoints.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backbones import BackboneRef, FeatureKind
from .context import JobContext
from .errors import BadInput, EmptySplit, OneClass
from .features import Extractor, extractor_pool
from .finetune import Images, Settings, fine_tune
from .heads import (
    Head,
    Judged,
    Rows,
    calibrate,
    choose_strength,
    evidence,
    fit_rows,
    fit_scale,
    group_folds,
    out_of_fold,
    row_weights,
    vote,
)
from .metrics import Array, Labels, error_correlation, logit, measure, sigmoid
from .objects import canonical_json, sha256
from .spec import ImageRow, forbid_leaks, read_manifest
from .trained import Trained, TrainedMember
from .unseen import leave_places_out, store

CALIBRATE_VIEWS = 3
"""at least so many challenge views of each calibration image: calibration must hold on what validators send"""
HARM = 0.001
"""a provider is left out when the Brier score with it is worse by more than this ..."""
HARM_CONFIDENCE = 2 / 3
"""... in at least this share of bootstrap resamples by group"""
WEIGHT_CONFIDENCE = 0.9
"""unequal weights of the vote must win in at least this share of resamples"""
RESAMPLES = 400


@dataclass
class _Member:
    """A member while it is being made."""

    spec: dict[str, Any]
    ref: BackboneRef
    extractor: Extractor
    start: Head | None
    head: Head | None = None
    stage: str = "probe"
    note: str = ""

    @property
    def kind(self) -> FeatureKind:
        kind: FeatureKind = self.spec["features"]
        return kind

    def table(self, rows: Sequence[ImageRow], views: int, phase: str) -> NDArray[np.float32]:
        """Features [n, 1 + views, d]."""
        return self.extractor.features([row.digest for row in rows], views, phase).of(self.kind)

    def probabilities(self, rows: Sequence[ImageRow], views: int, phase: str) -> Array:
        """Of the finished head, [n, 1 + views]."""
        assert self.head is not None
        return sigmoid(self.head.logits(self.table(rows, views, phase)))


def run(ctx: JobContext, job_input: dict[str, Any]) -> dict[str, Any]:
    """Trains and stores the ensemble. Raises BadInput for test rows, leaks, empty or one-class pools."""
    rows = read_manifest(ctx.objects, job_input["snapshot"], "snapshot")
    forbid_leaks(rows, "snapshot")
    learned, held, tuned = _pools(rows)
    members = _members(ctx, job_input)
    seed, views, folds = int(job_input["seed"]), int(job_input["views"]), int(job_input["folds"])

    # one pass over everything first: the rest is arithmetic, and a killed job finds its features again
    for extractor in {id(member.extractor): member.extractor for member in members}.values():
        extractor.features([row.digest for row in [*learned, *held]], views, "features")
        extractor.features([row.digest for row in tuned], max(views, CALIBRATE_VIEWS), "features for the calibration")

    contest = _Contest(ctx, members, learned, held, views, folds, seed)
    ablation: list[dict[str, Any]] = []
    strengths = contest.choose(contest.everyone)
    if job_input["ablation"]:
        ablation = contest.ablate(strengths)
        dropped = {row["provider"] for row in ablation if not row["kept"]}
        if dropped:
            contest.drop(dropped)
            strengths = contest.choose(contest.everyone)
    kept = _cap(contest.kept(), float(job_input["maxSyntheticShare"]), seed)
    unseen = contest.leave_places_out(kept, strengths)

    for member, (strength, judged) in zip(members, strengths, strict=True):
        head = fit_rows(_rows(kept, member.table(kept, views, "probe")), strength, member.start)
        member.head = head.scaled(judged.scale(), 0.0)
    _fine_tune(ctx, job_input, members, kept, held, tuned, seed)

    weights = _vote_weights(members, held, views, seed)
    calibration = _calibration(members, weights, tuned, max(views, CALIBRATE_VIEWS))
    truth = _labels(held)
    alone = [member.probabilities(held, 0, "validate")[:, 0] for member in members]
    together = calibrate(vote(alone, weights), calibration["a"], calibration["b"])
    validate, correlation = measure(together, truth), error_correlation(alone, truth)
    trained = Trained(
        members=tuple(_finish(member, weight) for member, weight in zip(members, weights, strict=True)),
        calibration=calibration,
        metrics={"validate": validate, "errorCorrelation": correlation},
        snapshot=job_input["snapshot"],
        parent=job_input["initFrom"],
        seed=seed,
    )
    synthetic = sum(row.synthetic for row in kept)
    return {
        "trained": trained.save(ctx.objects),
        "members": [
            {"name": m.spec["name"], "stage": m.stage, "note": m.note, "weight": weight, "validate": measure(p, truth)}
            for m, weight, p in zip(members, weights, alone, strict=True)
        ],
        "validate": validate,
        "errorCorrelation": correlation,
        "ablation": ablation,
        "unseen": unseen,
        "counts": {"real": len(kept) - synthetic, "synthetic": synthetic, "leftOut": len(learned) - len(kept)},
    }


# --- rows ------------------------------------------------------------------------------------------------------------


def _labels(rows: Sequence[ImageRow]) -> Labels:
    return np.array([row.label for row in rows], np.int64)


def _rows(images: Sequence[ImageRow], features: NDArray[np.float32]) -> Rows:
    groups = np.array([row.group for row in images])
    return Rows(features, _labels(images), np.array([row.weight for row in images], np.float64), groups)


def _pools(rows: list[ImageRow]) -> tuple[list[ImageRow], list[ImageRow], list[ImageRow]]:
    """Learned, validate and calibrate rows, each sorted by digest; both classes must stand in each."""
    naked = [row.digest for row in rows if row.label is None and row.pool != "traffic"]
    if naked:
        raise BadInput(f"{len(naked)} images of the snapshot have no label, the first {naked[0]}: label them or leave them out.")
    parts: dict[str, list[ImageRow]] = {"train": [], "validate": [], "calibrate": []}
    for row in sorted(rows, key=lambda row: row.digest):
        if row.label is not None:
            parts["train" if row.pool == "traffic" else row.pool].append(row)
    # what a generator made may teach, but never judge or calibrate
    parts = {pool: part if pool == "train" else [row for row in part if not row.synthetic] for pool, part in parts.items()}
    counts = {pool: Counter(row.label for row in part) for pool, part in parts.items()}
    told = ", ".join(f"{pool}: {count[1]} with roadwork, {count[0]} without" for pool, count in counts.items())
    lacking = [pool for pool, count in counts.items() if not (count[0] and count[1])]
    if lacking:
        raise (EmptySplit if any(not counts[pool] for pool in lacking) else OneClass)(
            f"training needs both classes in every pool; {', '.join(lacking)} lacks one ({told}). Import more images of that class."
        )
    return parts["train"], parts["validate"], parts["calibrate"]


def _cap(rows: list[ImageRow], share: float, seed: int) -> list[ImageRow]:
    """Rows with the synthetic part of the training weight at most `share`; what is left out is drawn by seed."""
    real = [row for row in rows if not row.synthetic]
    synthetic = [row for row in rows if row.synthetic]
    if not real and share < 1:
        raise BadInput(f"the snapshot has no real training image, yet synthetic ones may carry at most {share:.0%} of the weight.")
    room = np.inf if share >= 1 else sum(row.weight for row in real) * share / (1 - share)
    kept: list[ImageRow] = []
    for index in np.random.default_rng((seed, 11)).permutation(len(synthetic)):
        row = synthetic[index]
        if row.weight <= room + 1e-9:
            kept.append(row)
            room -= row.weight
    return sorted([*real, *kept], key=lambda row: row.digest)


# --- members ---------------------------------------------------------------------------------------------------------


def _members(ctx: JobContext, job_input: dict[str, Any]) -> list[_Member]:
    """The members, each from the parent's namesake where there is one with the same backbone, features and size."""
    specs = job_input["members"]
    if len({spec["name"] for spec in specs}) != len(specs):
        raise BadInput("two members share a name: give each its own.")
    parent = Trained.load(ctx.objects, job_input["initFrom"]) if job_input["initFrom"] is not None else None
    before = {member.name: member for member in parent.members} if parent is not None else {}
    pool = extractor_pool(ctx)
    members = []
    for spec in specs:
        ref, old = BackboneRef.of(spec), before.get(spec["name"])
        alike = old is not None and (old.ref.backbone, old.ref.resolution, old.source) == (ref.backbone, ref.resolution, ref.weights)
        if old is not None and alike and old.features == spec["features"]:
            members.append(_Member(spec, old.ref, pool(old.ref), old.head))
        else:
            members.append(_Member(spec, ref, pool(ref), None))
    return members


def _finish(member: _Member, weight: float) -> TrainedMember:
    assert member.head is not None
    return TrainedMember(
        name=member.spec["name"],
        ref=member.ref,
        features=member.kind,
        head=member.head,
        preprocess=member.extractor.backbone.preprocess,
        weight=weight,
        stage=member.stage,
        source=member.spec["weights"],
        weights_digest=member.extractor.backbone.digest,
    )


class _Contest:
    """Grouped cross-validation on real images: what learns may change, what judges stays the same.

    Judges are real images of `train` and `validate` with a label that is no guess. An image's fold is its group's, and a
    derived image has its parents' group, so that whatever was made from an image is out when that image judges.
    """

    def __init__(
        self, ctx: JobContext, members: list[_Member], learned: list[ImageRow], held: list[ImageRow], views: int, folds: int, seed: int
    ) -> None:
        self._ctx, self._members, self._seed = ctx, members, seed
        self._images = sorted([*learned, *held], key=lambda row: row.digest)
        self._is_learned = np.isin([row.digest for row in self._images], [row.digest for row in learned])
        self._judges = np.array(
            [not row.synthetic and row.pool in ("train", "validate") and row.truth in ("truth", "verified") for row in self._images]
        )
        if not self._judges.any():  # nothing surer at hand
            self._judges = np.array([not row.synthetic for row in self._images])
        self._provider = np.array([row.provider or "" for row in self._images])
        labels, groups = _labels(self._images), [row.group for row in self._images]
        possible = min(len({g for g, y in zip(groups, labels, strict=True) if y == label}) for label in (0, 1))
        if possible < 2:
            raise BadInput(f"a class stands in {possible} group only: nothing can be chosen by folds. Import more sources.")
        self._fold = group_folds(groups, labels.tolist(), min(folds, possible), seed)
        self._tables = [_rows(self._images, member.table(self._images, views, "contest")) for member in members]
        self.everyone = np.ones(len(self._images), bool)

    def drop(self, providers: set[str]) -> None:
        """Leaves these providers' images out from now on."""
        self.everyone &= ~np.isin(self._provider, sorted(providers))

    def kept(self) -> list[ImageRow]:
        """The learned rows that are still in."""
        return [row for row, keep in zip(self._images, self.everyone & self._is_learned, strict=True) if keep]

    def choose(self, learns: NDArray[np.bool_]) -> list[tuple[float, Judged]]:
        """Regularisation strength of each member, with the out-of-fold logits behind it."""
        chosen = []
        for member, table in zip(self._members, self._tables, strict=True):
            name = member.spec["name"]

            def told(done: int, total: int, name: str = name) -> None:
                self._ctx.progress.step("regularisation", done, total, "strengths", name)

            chosen.append(choose_strength(table, self._fold, judges=self._judges, learns=learns, progress=told))
        return chosen

    def leave_places_out(self, kept: list[ImageRow], strengths: list[tuple[float, Judged]]) -> dict[str, Any] | None:
        """What the heads say of places that they saw nothing of, see `unseen`."""
        learns = np.isin([row.digest for row in self._images], [row.digest for row in kept])

        def told(done: int, total: int) -> None:
            self._ctx.progress.step("places left out", done, total, "places")
            self._ctx.progress.check()

        chosen = [(strength, judged.scale()) for strength, judged in strengths]
        return store(self._ctx.objects, *leave_places_out(self._images, learns, self._judges, self._tables, chosen, told))

    def ablate(self, strengths: list[tuple[float, Judged]]) -> list[dict[str, Any]]:
        """Every provider's images in and out of the training, judged on the same real images by the members' equal vote.

        A provider is left out when the Brier score with it is worse by more than HARM and the paired bootstrap by group
        agrees in HARM_CONFIDENCE of its resamples.
        """
        providers = sorted({str(name) for name in self._provider[self._is_learned]} - {""})
        equal = [1 / len(self._members)] * len(self._members)
        p_with = vote([judged.probabilities() for _, judged in strengths], equal)
        rows = strengths[0][1].rows
        found = []
        for number, provider in enumerate(providers):
            without = self.everyone & (self._provider != provider)
            votes = []
            for table, (strength, _) in zip(self._tables, strengths, strict=True):
                if not table.take(without).both_classes():
                    break
                votes.append(out_of_fold(table, self._fold, strength, self._judges, without).probabilities())
                self._ctx.progress.check()
            self._ctx.progress.step("ablation", number + 1, len(providers), "providers", provider)
            if len(votes) < len(self._members):
                whole = _measure_views(p_with, rows.labels)
                found.append(
                    {
                        "provider": provider,
                        "n": len(rows.labels),
                        "with": whole,
                        "without": whole,
                        "kept": True,
                        "reason": "a class comes from it alone",
                    }
                )
                continue
            p_without = vote(votes, equal)
            harm = ((p_with - rows.labels[:, None]) ** 2).mean(1) - ((p_without - rows.labels[:, None]) ** 2).mean(1)
            surely = _share_above(harm, rows.groups, self._seed)
            kept = not (harm.mean() > HARM and surely >= HARM_CONFIDENCE)
            verb = "improves" if harm.mean() < 0 else "worsens"
            reason = f"{verb} the Brier score by {abs(harm.mean()):.4f}, worse in {surely:.0%} of resamples by group"
            found.append(
                {
                    "provider": provider,
                    "n": len(rows.labels),
                    "with": _measure_views(p_with, rows.labels),
                    "without": _measure_views(p_without, rows.labels),
                    "kept": kept,
                    "reason": reason if kept else f"left out: {reason}",
                }
            )
        return found


def _measure_views(p: Array, y: Labels) -> dict[str, float | int]:
    """Metrics over every view of the images (view 0 and the challenge views alike)."""
    return measure(p.reshape(-1), np.repeat(y, p.shape[1]), n=len(y))


def _share_above(difference: Array, groups: NDArray[np.str_], seed: int) -> float:
    """Share of bootstrap resamples by group in which the mean difference is above 0."""
    _, index = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(index, weights=difference), np.bincount(index)
    draws = np.random.default_rng((seed, 13)).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    return float((means > 0).mean())


# --- after the probe -------------------------------------------------------------------------------------------------


def _fine_tune(
    ctx: JobContext,
    job_input: dict[str, Any],
    members: list[_Member],
    kept: list[ImageRow],
    held: list[ImageRow],
    tuned: list[ImageRow],
    seed: int,
) -> None:
    wish = job_input["fineTune"]
    settings = Settings(
        int(wish["epochs"]), int(wish["batch"]), float(wish["backboneLr"]), float(wish["headLr"]), float(wish["maxSeconds"])
    )
    mark = sha256(canonical_json(job_input))
    weights = row_weights(_labels(kept), [row.group for row in kept], np.array([row.weight for row in kept]))
    train = Images([row.digest for row in kept], _labels(kept), weights)
    validate = Images([row.digest for row in held], _labels(held), np.full(len(held), 1 / len(held)))
    pool = extractor_pool(ctx)
    for member in members:
        accuracy = float(measure(member.probabilities(held, 0, "validate")[:, 0], _labels(held))["accuracy"])
        if wish["mode"] == "never":
            member.note = "fine-tune switched off"
            continue
        if wish["mode"] == "auto" and accuracy >= float(wish["gate"]):
            member.note = f"probe holds the gate: validate accuracy {accuracy:.3f} >= {wish['gate']:.3f}"
            continue
        assert member.head is not None
        preprocess = member.extractor.backbone.preprocess
        outcome = fine_tune(
            ctx, member.spec["name"], member.ref, member.kind, preprocess, member.head, train, validate, settings, seed, mark
        )
        member.note = outcome.note
        if outcome.ref is None or outcome.head is None:
            continue
        member.ref, member.extractor, member.stage = outcome.ref, pool(outcome.ref), "fine-tune"
        logits = outcome.head.logits(member.table(tuned, CALIBRATE_VIEWS, "features for the calibration"))
        member.head = outcome.head.scaled(_scale(logits, tuned, shift=False)[0], 0.0)


def _scale(logits: Array, rows: Sequence[ImageRow], shift: bool) -> tuple[float, float]:
    """Platt scaling of logits [n, v] of the calibration images, classes evenly weighted as validators draw them."""
    views, labels, groups = logits.shape[1], _labels(rows), [row.group for row in rows]
    weights = np.repeat(row_weights(labels, groups, np.ones(len(rows)), 0.0), views)
    return fit_scale(logits.reshape(-1), np.repeat(labels, views), weights, evidence(labels, groups), shift)


def weight_grid(members: int) -> list[tuple[float, ...]]:
    """Weights tried for the vote, in tenths: 0.3 to 0.7 for two members, at least 0.1 each for more; the equal vote first."""
    equal = (1 / members,) * members
    if members == 1:
        return [equal]
    least = 3 if members == 2 else 1
    steps = itertools.product(range(least, 11), repeat=members)
    return [equal, *(tuple(step / 10 for step in one) for one in steps if sum(one) == 10)]


def _vote_weights(members: list[_Member], held: list[ImageRow], views: int, seed: int) -> list[float]:
    """Weights of the soft vote: equal, unless others win on `validate` beyond doubt (paired bootstrap by group)."""
    grid = weight_grid(len(members))
    truth, groups = _labels(held), np.array([row.group for row in held])
    alone = [member.probabilities(held, views, "validate") for member in members]

    def losses(weights: Sequence[float]) -> Array:
        out: Array = ((vote(alone, weights) - truth[:, None]) ** 2).mean(1)
        return out

    even = losses(grid[0])
    best = min(grid, key=lambda weights: float(losses(weights).mean()))
    if best != grid[0] and _share_above(even - losses(best), groups, seed) < WEIGHT_CONFIDENCE:
        best = grid[0]
    return [float(weight) for weight in best]


def _calibration(members: list[_Member], weights: list[float], tuned: list[ImageRow], views: int) -> dict[str, Any]:
    """Platt scaling of the vote on challenge views of the calibration pool."""
    p = vote([member.probabilities(tuned, views, "calibrate")[:, 1:] for member in members], weights)
    a, b = _scale(logit(p), tuned, shift=True)
    return {"kind": "platt", "a": a, "b": b, "n": len(tuned)}
