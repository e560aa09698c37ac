"""Job `train`: an ensemble from a snapshot. Probe on cached features, ablation by provider, fine-tune where the probe falls
short, weights of the vote, calibration.

A retrain goes on from its parent: new images, a replay of old ones, and a report on what the parent knew.

Learned from: pools `train` and `traffic`. Chosen on: `validate` (with `train`, by grouped folds). Calibrated on:
`calibrate`. A `test` row is refused. Every phase goes on from the feature cache and the fine-tune's checkpoints.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from .catalogue import licence_of, licence_warning
from .choice import chosen, is_auto
from .contest import Contest
from .context import JobContext
from .errors import BadInput, EmptySplit, OneClass
from .features import extractor_pool
from .heads import calibrate, vote
from .machine import memory_gb
from .member import CALIBRATE_VIEWS, Member, labels_of
from .metrics import error_correlation, measure
from .parent import Parent
from .recipes import recipe_of
from .sampling import hold_synthetic_share
from .shards import ShardedObjects
from .spec import ImageRow, forbid_leaks, read_manifest, with_defaults
from .told import learning_curves, report_of, reproduce
from .trained import Trained, TrainedMember
from .tuning import FineTunes
from .votes import error_pairs, vote_calibration, vote_weights
from .weights import BackboneRef


def run(ctx: JobContext, job_input: dict[str, Any]) -> dict[str, Any]:
    """Trains and stores the ensemble. Raises BadInput for test rows, leaks, empty or one-class pools."""
    job_input = with_defaults("train.input", job_input)
    if job_input["shards"] is not None:
        ctx = replace(ctx, objects=ShardedObjects(ctx.objects, job_input["shards"]))
    rows = read_manifest(ctx.objects, job_input["snapshot"], "snapshot")
    forbid_leaks(rows, "snapshot")
    learned, held, tuned = _pools(rows)
    parent = Parent.load(ctx, job_input["initFrom"], learned, held)
    members = _members(ctx, job_input, parent)
    seed, views = int(job_input["seed"]), int(job_input["views"])

    settled = parent is not None and parent.settles(members, learned, float(job_input["incremental"]["keepChoicesBelow"]))
    if not settled:
        # one pass over everything first: the rest is arithmetic, and a killed job finds its features again
        for extractor in {id(member.extractor): member.extractor for member in members}.values():
            extractor.features([row.digest for row in [*learned, *held]], views, "features")
            extractor.features([row.digest for row in tuned], max(views, CALIBRATE_VIEWS), "features for the calibration")
    ablation: list[dict[str, Any]] = []
    contest: Contest | None = None
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

    tunes = FineTunes(ctx, job_input, kept, held, parent, settled)
    going_on = {member.name for member in members if settled and tunes.goes_on(member)}
    for member in members:
        if member.name in going_on:
            member.head = member.start
        else:
            member.fit(kept, views, tuned if settled else None)
    if job_input["report"] and not settled:
        learning_curves(ctx, members, kept, held, views, seed)
    for member in members:
        if not tunes.run(member, tuned) and member.name in going_on:
            tunes.fall_back(member, views, tuned)

    if parent is not None and settled:
        weights, ensemble = [float(one.weight) for one in parent.trained.members], None
    else:
        weights, ensemble = vote_weights(members, held, views, seed)
    calibration = vote_calibration(members, weights, tuned, max(views, CALIBRATE_VIEWS), seed)
    truth = labels_of(held)
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
        "report": report_of(ctx, members, held, together) if job_input["report"] else None,
        "reproduce": reproduce(ctx, job_input, [*learned, *held, *tuned]),
    }
    return output if ensemble is None else {**output, "ensemble": {**ensemble, "pairs": error_pairs(members, alone, truth)}}


def _licence(spec: dict[str, Any], backbone: str) -> str | None:
    found = None if spec["weights"] == "none" else licence_of(backbone)
    return None if found is None else found.spdx


def _settled(member: Member) -> dict[str, Any]:
    assert member.recipe is not None
    told = member.recipe.told()
    scores = [one["brier"] for one in member.sweep if {k: v for k, v in one.items() if k != "brier"} == told]
    return {"recipe": told, "scale": member.scale, "brier": scores[0]}


def _settle(
    ctx: JobContext, job_input: dict[str, Any], members: list[Member], learned: list[ImageRow], held: list[ImageRow]
) -> tuple[Contest, set[str], list[dict[str, Any]]]:
    """Chooses each member's head and leaves out the providers that harm: (the contest, providers left out, ablation)."""
    contest = Contest(ctx, members, learned, held, job_input)
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


def _members(ctx: JobContext, job_input: dict[str, Any], parent: Parent | None) -> list[Member]:
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
            members.append(Member(spec, old.ref, pool(old.ref), old.head, mid_scale, reason))
        else:
            members.append(Member(spec, ref, pool(ref), None, mid_scale, reason))
    return members


def _finish(member: Member, weight: float) -> TrainedMember:
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
