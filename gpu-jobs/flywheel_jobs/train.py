"""Job `train`: an ensemble from a snapshot. Probe on cached features, ablation by provider, fine-tune where the probe falls
short, weights of the vote, calibration.

A retrain goes on from its parent: new images, a replay of old ones, and a report on what the parent knew.

Learned from: pools `train` and `traffic`. Chosen on: `validate` (with `train`, by grouped folds). Calibrated on:
`calibrate`. A `test` row is refused. Every phase goes on from the feature cache and the fine-tune's checkpoints.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .catalogue import licence_of, licence_warning
from .choice import chosen, is_auto
from .context import JobContext
from .errors import BadInput, EmptySplit, OneClass
from .features import Extractor, extractor_pool
from .finetune import Images, Job, fine_tune
from .heads import (
    Head,
    Judged,
    Rows,
    calibrate,
    evidence,
    fit_calibration,
    fit_scale,
    group_folds,
    out_of_fold,
    row_weights,
    vote,
)
from .machine import git_revision, memory_gb
from .metrics import Array, Labels, error_correlation, logit, measure, sigmoid
from .nets import FeatureKind
from .objects import canonical_json, sha256
from .recipes import Logistic, Recipe, choose_recipe, recipe_of
from .sampling import Plan, hold_synthetic_share
from .schedules import Settings
from .shards import ShardedObjects
from .spec import ImageRow, forbid_leaks, read_manifest, with_defaults
from .trained import Trained, TrainedMember
from .unseen import leave_places_out, store
from .weights import BackboneRef

CALIBRATE_VIEWS = 3
"""at least so many challenge views of each calibration image: calibration must hold on what validators send"""
HARM = 0.001
"""a provider is left out when the Brier score with it is worse by more than this ..."""
HARM_CONFIDENCE = 2 / 3
"""... in at least this share of bootstrap resamples by group"""
WEIGHT_CONFIDENCE = 0.9
"""unequal weights of the vote must win in at least this share of resamples"""
RESAMPLES = 400
CURVE = (0.25, 0.5)
"""shares of the groups that a probe's learning curve is drawn at, beside the whole"""


@dataclass
class _Member:
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

    def table(self, rows: Sequence[ImageRow], views: int, phase: str) -> NDArray[np.float32]:
        """Features [n, 1 + views, d]."""
        return self.extractor.features([row.digest for row in rows], views, phase).of(self.kind)

    def rows(self, images: Sequence[ImageRow], views: int, phase: str) -> Rows:
        """The images as a head learns from them."""
        found = self.extractor.features([row.digest for row in images], views, phase)
        groups, weights = np.array([row.group for row in images]), np.array([row.weight for row in images], np.float64)
        return Rows(found.of(self.kind), _labels(images), weights, groups, found.scale(self.kind, self.mid_scale))

    def probabilities(self, rows: Sequence[ImageRow], views: int, phase: str) -> Array:
        """Of the finished head, [n, 1 + views]."""
        assert self.head is not None
        return sigmoid(self.head.logits(self.table(rows, views, phase)))


def run(ctx: JobContext, job_input: dict[str, Any]) -> dict[str, Any]:
    """Trains and stores the ensemble. Raises BadInput for test rows, leaks, empty or one-class pools."""
    job_input = with_defaults("train.input", job_input)
    if job_input["shards"] is not None:
        ctx = replace(ctx, objects=ShardedObjects(ctx.objects, job_input["shards"]))
    rows = read_manifest(ctx.objects, job_input["snapshot"], "snapshot")
    forbid_leaks(rows, "snapshot")
    learned, held, tuned = _pools(rows)
    parent = _Parent.load(ctx, job_input["initFrom"], learned, held)
    members = _members(ctx, job_input, parent)
    seed, views = int(job_input["seed"]), int(job_input["views"])

    # one pass over everything first: the rest is arithmetic, and a killed job finds its features again
    for extractor in {id(member.extractor): member.extractor for member in members}.values():
        extractor.features([row.digest for row in [*learned, *held]], views, "features")
        extractor.features([row.digest for row in tuned], max(views, CALIBRATE_VIEWS), "features for the calibration")

    settled = parent is not None and parent.settles(members, learned, float(job_input["incremental"]["keepChoicesBelow"]))
    ablation: list[dict[str, Any]] = []
    contest: _Contest | None = None
    if parent is not None and settled:
        dropped = set(parent.trained.choices["dropped"])
        candidates = [row for row in learned if row.provider not in dropped]
        for member in members:
            told = parent.trained.choices["heads"][member.name]
            member.recipe, member.scale = recipe_of(told["recipe"]), float(told["scale"])
            member.sweep = [{**told["recipe"], "brier": told["brier"]}]
    else:
        contest, dropped, ablation = _settle(ctx, job_input, members, learned, held)
        candidates = contest.kept()
    share = float(job_input["maxSyntheticShare"])
    kept = hold_synthetic_share(_cap(candidates, share, seed), min(share, float(job_input["sampling"]["minSyntheticShare"])))
    unseen = None if contest is None else contest.leave_places_out(kept)

    for member in members:
        assert member.recipe is not None
        head = member.recipe(member.rows(kept, views, "probe"), member.start)
        if settled and member.ref.weights.startswith("object:"):  # the parent's scale was of the backbone before its fine-tune
            member.scale = _scale(head.logits(member.table(tuned, CALIBRATE_VIEWS, "calibrate")), tuned, shift=False)[0]
        member.head = head.scaled(member.scale, 0.0)
    if job_input["report"] and not settled:
        _learning_curves(ctx, members, kept, held, views, seed)
    _fine_tune(ctx, job_input, members, kept, held, tuned, parent)

    if parent is not None and settled:
        weights, ensemble = [float(one.weight) for one in parent.trained.members], None
    else:
        weights, ensemble = _vote_weights(members, held, views, seed)
    calibration = _calibration(members, weights, tuned, max(views, CALIBRATE_VIEWS), seed)
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
        choices={"dropped": sorted(dropped), "heads": {member.name: _settled(member) for member in members}},
    )
    synthetic = sum(row.synthetic for row in kept)
    output = {
        "trained": trained.save(ctx.objects),
        "members": [
            {
                "name": m.name,
                "stage": m.stage,
                "note": m.note,
                "weight": weight,
                "validate": measure(p, truth),
                "backbone": m.ref.backbone,
                "reason": m.reason,
                "weightsLicence": _licence(m.spec, m.ref.backbone),
                "head": m.recipe.told() if m.recipe is not None else {},
                "fineTune": m.facts,
            }
            for m, weight, p in zip(members, weights, alone, strict=True)
        ],
        "validate": validate,
        "errorCorrelation": correlation,
        "ablation": ablation,
        "unseen": unseen,
        "counts": {"real": len(kept) - synthetic, "synthetic": synthetic, "leftOut": len(learned) - len(kept)},
        "retention": None if parent is None else parent.retention(ctx, held, together, settled),
        "report": _report(ctx, members, held, together) if job_input["report"] else None,
        "reproduce": _reproduce(ctx, job_input, [*learned, *held, *tuned]),
    }
    return output if ensemble is None else {**output, "ensemble": {**ensemble, "pairs": _pairs(members, alone, truth)}}


def _licence(spec: dict[str, Any], backbone: str) -> str | None:
    found = None if spec["weights"] == "none" else licence_of(backbone)
    return None if found is None else found.spdx


def _settled(member: _Member) -> dict[str, Any]:
    assert member.recipe is not None
    told = member.recipe.told()
    scores = [one["brier"] for one in member.sweep if {k: v for k, v in one.items() if k != "brier"} == told]
    return {"recipe": told, "scale": member.scale, "brier": scores[0]}


def _settle(
    ctx: JobContext, job_input: dict[str, Any], members: list[_Member], learned: list[ImageRow], held: list[ImageRow]
) -> tuple[_Contest, set[str], list[dict[str, Any]]]:
    """Chooses each member's head and leaves out the providers that harm: (the contest, providers left out, ablation)."""
    contest = _Contest(ctx, members, learned, held, job_input)
    ablation: list[dict[str, Any]] = []
    dropped: set[str] = set()
    found = contest.choose(contest.everyone)
    if job_input["ablation"]:
        ablation = contest.ablate(found)
        dropped = {str(row["provider"]) for row in ablation if not row["kept"]}
        if dropped:
            contest.drop(dropped)
            found = contest.choose(contest.everyone)
    for member, (recipe, judged, sweep) in zip(members, found, strict=True):
        member.recipe, member.scale, member.sweep = recipe, judged.scale(), sweep
    return contest, dropped, ablation


# --- rows ------------------------------------------------------------------------------------------------------------


def _labels(rows: Sequence[ImageRow]) -> Labels:
    return np.array([row.label for row in rows], np.int64)


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


def _members(ctx: JobContext, job_input: dict[str, Any], parent: _Parent | None) -> list[_Member]:
    """The members, each from the parent's namesake where there is one with the same backbone, features and size.

    An automatic choice stays with the parent's backbone, so that a retrain on another machine goes on instead of starting over.
    """
    specs = job_input["members"]
    if len({spec["name"] for spec in specs}) != len(specs):
        raise BadInput("two members share a name: give each its own.")
    before = {member.name: member for member in parent.trained.members} if parent is not None else {}
    mid_scale = float(job_input["head"]["midScale"])
    pool = extractor_pool(ctx)
    members = []
    for wish in specs:
        spec, reason, old = wish, "", before.get(wish["name"])
        if is_auto(wish["backbone"]):
            if old is not None and (old.ref.resolution, old.source) == (int(wish["resolution"]), wish["weights"]):
                name, reason = old.ref.backbone, "the parent's backbone"
            else:
                choice = chosen(wish, memory_gb())
                name, reason = choice.name, choice.reason
                ctx.progress.step("backbone", 0, 1, "choice", reason)
            spec = {**wish, "backbone": name}
        ref = BackboneRef.of(spec)
        warning = licence_warning(spec, ref.backbone)
        if warning is not None:
            print(f"flywheel-job: warning: {warning}", file=sys.stderr, flush=True)
        alike = old is not None and (old.ref.backbone, old.ref.resolution, old.source) == (ref.backbone, ref.resolution, ref.weights)
        if old is not None and alike and old.features == spec["features"]:
            members.append(_Member(spec, old.ref, pool(old.ref), old.head, mid_scale, reason))
        else:
            members.append(_Member(spec, ref, pool(ref), None, mid_scale, reason))
    return members


@dataclass(frozen=True)
class _Parent:
    """The ensemble a retrain goes on from, and the images it knew."""

    trained: Trained
    learned: frozenset[str]
    """digests of images it learned from"""
    held: frozenset[str]
    """... and was validated on"""
    fresh: frozenset[str]
    """learned now, not known to it"""

    @classmethod
    def load(cls, ctx: JobContext, digest: str | None, learned: list[ImageRow], held: list[ImageRow]) -> _Parent | None:
        if digest is None:
            return None
        trained = Trained.load(ctx.objects, digest)
        # a parent whose snapshot is gone still gives its weights; all images then count as new
        rows = read_manifest(ctx.objects, trained.snapshot, "parent's snapshot") if ctx.objects.has(trained.snapshot) else []
        knew = frozenset(row.digest for row in rows if row.pool in ("train", "traffic") and row.label is not None)
        judged = frozenset(row.digest for row in rows if row.pool == "validate")
        return cls(trained, knew, judged & {row.digest for row in held}, frozenset(row.digest for row in learned) - knew)

    def settles(self, members: list[_Member], learned: list[ImageRow], below: float) -> bool:
        """Whether what the parent chose may stand: the same members, and few enough new images."""
        heads = self.trained.choices.get("heads", {})
        same = [member.name for member in self.trained.members] == [member.name for member in members]
        goes_on = all(member.start is not None and member.name in heads for member in members)
        return same and goes_on and len(self.fresh) < below * len(learned)

    def retention(self, ctx: JobContext, held: list[ImageRow], now: Array, settled: bool) -> dict[str, Any] | None:
        """The parent and the new ensemble on the images the parent was validated on. `now`: probabilities of the new one on `held`."""
        mask = np.array([row.digest in self.held for row in held])
        old = [row for row, inside in zip(held, mask, strict=True) if inside]
        if not old:
            return None
        pool = extractor_pool(ctx)
        votes = []
        for member in self.trained.members:
            table = pool(member.ref).features([row.digest for row in old], 0, "what the parent knew").of(member.features)
            votes.append(sigmoid(member.head.logits(table[:, 0])))
        calibration = self.trained.calibration
        before = calibrate(vote(votes, [member.weight for member in self.trained.members]), calibration["a"], calibration["b"])
        return {
            "n": len(old),
            "before": measure(before, _labels(old)),
            "after": measure(now[mask], _labels(old)),
            "newImages": len(self.fresh),
            "choicesKept": settled,
        }


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
        self, ctx: JobContext, members: list[_Member], learned: list[ImageRow], held: list[ImageRow], job_input: dict[str, Any]
    ) -> None:
        seed, views, folds = int(job_input["seed"]), int(job_input["views"]), int(job_input["folds"])
        self._ctx, self._members, self._seed = ctx, members, seed
        self._head, self._gamma = job_input["head"], float(job_input["sampling"]["focalGamma"])
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
        self._tables = [member.rows(self._images, views, "contest") for member in members]
        self._vote = prescribed(members) or [1 / len(members)] * len(members)
        self.everyone = np.ones(len(self._images), bool)

    def drop(self, providers: set[str]) -> None:
        """Leaves these providers' images out from now on."""
        self.everyone &= ~np.isin(self._provider, sorted(providers))

    def kept(self) -> list[ImageRow]:
        """The learned rows that are still in."""
        return [row for row, keep in zip(self._images, self.everyone & self._is_learned, strict=True) if keep]

    def choose(self, learns: NDArray[np.bool_]) -> list[tuple[Recipe, Judged, list[dict[str, Any]]]]:
        """How each member's head is fitted, the out-of-fold logits behind it, and what was compared."""
        chosen = []
        for member, table in zip(self._members, self._tables, strict=True):

            def told(done: int, total: int, name: str = member.name) -> None:
                self._ctx.progress.step("regularisation", done, total, "settings", name)

            found = choose_recipe(table, self._fold, self._head, self._gamma, self._seed, self._judges, learns, told)
            chosen.append(found)
        return chosen

    def leave_places_out(self, kept: list[ImageRow]) -> dict[str, Any] | None:
        """What the heads say of places that they saw nothing of, see `unseen`."""
        learns = np.isin([row.digest for row in self._images], [row.digest for row in kept])

        def told(done: int, total: int) -> None:
            self._ctx.progress.step("places left out", done, total, "places")
            self._ctx.progress.check()

        recipes = [(member.recipe, member.scale) for member in self._members if member.recipe is not None]
        chosen = [(recipe.strength if isinstance(recipe, Logistic) else recipe, scale) for recipe, scale in recipes]
        return store(self._ctx.objects, *leave_places_out(self._images, learns, self._judges, self._tables, chosen, self._vote, told))

    def ablate(self, found_heads: list[tuple[Recipe, Judged, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
        """Every provider's images in and out of the training, judged on the same real images by the members' vote (the recipe's, or
        equal).

        A provider is left out when the Brier score with it is worse by more than HARM and the paired bootstrap by group
        agrees in HARM_CONFIDENCE of its resamples.
        """
        providers = sorted({str(name) for name in self._provider[self._is_learned]} - {""})
        p_with = vote([judged.probabilities() for _, judged, _ in found_heads], self._vote)
        rows = found_heads[0][1].rows
        found = []
        for number, provider in enumerate(providers):
            without = self.everyone & (self._provider != provider)
            votes = []
            for table, (recipe, _, _) in zip(self._tables, found_heads, strict=True):
                if not table.take(without).both_classes():
                    break
                votes.append(out_of_fold(table, self._fold, recipe, self._judges, without).probabilities())
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
            p_without = vote(votes, self._vote)
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


def _learning_curves(ctx: JobContext, members: list[_Member], kept: list[ImageRow], held: list[ImageRow], views: int, seed: int) -> None:
    """How each probe does on `validate` after a quarter, a half and all of the groups, by the recipe chosen for all."""
    groups = sorted({row.group for row in kept})
    order = np.random.default_rng((seed, 17)).permutation(len(groups))
    truth = _labels(held)
    for member in members:
        assert member.recipe is not None and member.head is not None
        table, judges = member.rows(kept, views, "learning curve"), member.table(held, 0, "learning curve")[:, 0]
        curve = []
        for share in CURVE:
            inside = {groups[i] for i in order[: round(share * len(groups))]}
            mask = np.array([row.group in inside for row in kept])
            rows = table.take(mask)
            if not rows.both_classes():
                continue
            head = member.recipe(rows, member.head.scaled(1 / member.scale, 0.0)).scaled(member.scale, 0.0)
            curve.append({"images": int(mask.sum()), **measure(sigmoid(head.logits(judges)), truth)})
            ctx.progress.check()
        curve.append({"images": len(kept), **measure(sigmoid(member.head.logits(judges)), truth)})
        member.history["curve"] = curve


def _fine_tune(
    ctx: JobContext,
    job_input: dict[str, Any],
    members: list[_Member],
    kept: list[ImageRow],
    held: list[ImageRow],
    tuned: list[ImageRow],
    parent: _Parent | None,
) -> None:
    wish, sampling, seed = job_input["fineTune"], job_input["sampling"], int(job_input["seed"])
    plan = Plan.of(sampling["kind"], _labels(kept), [row.group for row in kept], np.array([row.weight for row in kept]), seed)
    again, replay = job_input["incremental"], job_input["incremental"]["replay"]
    fresh = np.array([parent is not None and row.digest in parent.fresh for row in kept])
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
        settings, mine, said = Settings.of(wish, float(sampling["focalGamma"])), plan, ""
        if member.ref.weights.startswith("object:") and replay is not None:
            if not fresh.any():
                member.note = "nothing new to fine-tune on: the parent's weights stand"
                continue
            # the parent was fine-tuned on the rest already
            mine, settings = plan.incremental(fresh, float(replay)), replace(settings, epochs=int(again["epochs"]))
            said = f"; from the parent's checkpoint, {int(fresh.sum())} new images with {mine.replay} old ones an epoch"
        job = Job(
            name=member.name,
            ref=member.ref,
            kind=member.kind,
            preprocess=member.extractor.backbone.preprocess,
            probe=member.head,
            train=Images([row.digest for row in kept], _labels(kept)),
            validate=Images([row.digest for row in held], _labels(held)),
            plan=mine,
            augmentation=job_input["augmentation"],
            loader=job_input["loader"],
            settings=settings,
            seed=seed,
            mark=sha256(canonical_json([member.ref.weights, job_input])),
        )
        outcome = fine_tune(ctx, job)
        member.note, member.facts, member.events = outcome.note + said, outcome.facts, outcome.events
        member.history["fineTune"] = outcome.history
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


def prescribed(members: Sequence[_Member]) -> list[float] | None:
    """The recipe's weights of the vote, summing to 1, where every member has one."""
    weights = [float(member.spec.get("recipeWeight") or 0) for member in members]
    return [one / sum(weights) for one in weights] if all(weights) else None


def _vote_weights(members: list[_Member], held: list[ImageRow], views: int, seed: int) -> tuple[list[float], dict[str, Any]]:
    """Weights of the soft vote, and what they were compared with on `validate`.

    The recipe's where every member has one, else equal; others must win beyond doubt (paired bootstrap by group).
    """
    grid = weight_grid(len(members))
    truth, groups = _labels(held), np.array([row.group for row in held])
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
    sure = kinds["searched"] != kinds[default] and _share_above(gain, groups, seed) >= WEIGHT_CONFIDENCE
    compared = [
        {"kind": kind, "weights": list(weights), "metrics": _measure_views(vote(alone, weights), truth)} for kind, weights in kinds.items()
    ]
    taken = "searched" if sure else default
    return [float(weight) for weight in kinds[taken]], {"compared": compared, "chosen": taken}


def _pairs(members: list[_Member], alone: list[Array], truth: Labels) -> list[dict[str, Any]]:
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


def _calibration(members: list[_Member], weights: list[float], tuned: list[ImageRow], views: int, seed: int) -> dict[str, Any]:
    """Scaling and boundary of the vote on challenge views of the calibration pool."""
    p = vote([member.probabilities(tuned, views, "calibrate")[:, 1:] for member in members], weights)
    return fit_calibration(logit(p), _labels(tuned), [row.group for row in tuned], seed)


# --- what is told of the run -----------------------------------------------------------------------------------------


def _report(ctx: JobContext, members: list[_Member], held: list[ImageRow], p: Array) -> dict[str, Any]:
    """Pictures and curves as objects."""
    from . import report
    from .board import whole_records
    from .loader import Pictures

    y = _labels(held)
    history = {
        "members": {
            m.name: {"stage": m.stage, "sweep": m.sweep, "curve": m.history.get("curve"), "fineTune": m.history.get("fineTune")}
            for m in members
        },
        "validate": {
            "confusion": report.confusion(p, y),
            "reliability": report.reliability(p, y),
            "calibrationError": report.calibration_error(p, y),
            "worst": [{"digest": held[i].digest, "p": float(p[i]), "label": int(y[i])} for i in report.worst(p, y)],
        },
    }
    ctx.progress.step("report", 0, 1, "pictures")
    put = ctx.objects.put
    out = {
        "history": ctx.objects.put_json(history),
        "learningCurves": put(report.draw_curves(ctx.cache_dir, history)),
        "confusion": put(report.draw_confusion(ctx.cache_dir, p, y)),
        "reliability": put(report.draw_reliability(ctx.cache_dir, p, y)),
        "worst": put(report.draw_worst(p, held, Pictures(ctx.objects))),
        "tensorboard": [{"member": m.name, "events": put(whole_records(path.read_bytes()))} for m in members for path in m.events],
    }
    ctx.progress.step("report", 1, 1, "pictures")
    return out


def _reproduce(ctx: JobContext, job_input: dict[str, Any], rows: list[ImageRow]) -> dict[str, Any]:
    """What gives this result again."""
    from .cli import environment

    data = [[row.digest, row.label, row.pool, row.group, row.weight] for row in sorted(rows, key=lambda row: row.digest)]
    return {
        "seed": int(job_input["seed"]),
        "gitRevision": git_revision(),
        "data": sha256(canonical_json(data)),
        "config": ctx.objects.put_json(job_input),
        "environment": environment(),
    }
