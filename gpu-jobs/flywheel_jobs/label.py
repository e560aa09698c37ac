"""Job `label`: votes of two members on images of unknown truth, by grouped cross-fitting.

Every vote comes from a head that saw nothing of the image's own group: neither in training nor in the scaling of its
confidence. Who wins the vote is decided elsewhere (`src/domain`); nothing here writes a label.

On twins (the same picture made with either intent) members vote as pairs: what they are asked is which of the two shows the
roadwork. That question a new camera or street cannot sway, while on single composites voters that know photographs alone reject
nearly every positive and accept the negatives, and what is left teaches worse than nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .context import JobContext
from .errors import BadInput, EmptySplit, OneClass
from .features import extractor_pool
from .heads import Head, Rows, choose_strength, fit_rows, fit_scale, group_folds, out_of_fold
from .metrics import Array, error_correlation, measure, sigmoid
from .nets import FeatureKind
from .spec import ImageRow, read_manifest
from .weights import BackboneRef

VIEWS = 1
"""challenge views of each training image the voting heads learn from, beside the image itself"""
LAMBDAS = (1.0, 0.3, 0.1)
PAIR_STRENGTH = 1.0
"""regularisation of the heads that vote on twins"""
MID_SCALE = 0.5
"""as a training's by default, see HeadOptions"""
MIN_PAIRS = 12
"""fewer pairs in fewer groups cannot tell how sure a vote on a pair may be: the images are then voted on singly"""


def run(ctx: JobContext, job_input: dict[str, Any]) -> dict[str, Any]:
    """Votes on every candidate. Raises BadInput for a `test` row, an unlabelled or one-class training set, too few groups."""
    candidates = read_manifest(ctx.objects, job_input["candidates"], "manifest of candidates")
    train = [row for row in read_manifest(ctx.objects, job_input["train"], "training manifest") if row.label is not None]
    members, folds, seed = job_input["members"], int(job_input["folds"]), int(job_input["seed"])
    if len({member["name"] for member in members}) != len(members):
        raise BadInput("two voting members share a name: give each its own.")
    labels = np.array([row.label for row in train], np.int64)
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    if not positives or not negatives:
        raise (OneClass if positives or negatives else EmptySplit)(
            f"the training manifest has {positives} images with roadwork and {negatives} without: voters need both. Import more images."
        )
    groups = np.array([row.group for row in train])
    # never more folds than either class has groups: every voter must see both classes
    possible = min(len(set(groups[labels == label])) for label in (0, 1))
    if possible < 2:
        raise BadInput(f"a class stands in {possible} group only: votes from outside an image's group are impossible. Import more sources.")
    fold = group_folds(list(groups), labels.tolist(), min(folds, possible), seed)
    group_fold = {group: int(fold[index]) for index, group in enumerate(groups)}

    twins = _twins(candidates)
    pool = extractor_pool(ctx)
    votes: dict[str, Array] = {}
    held_out: list[Array] = []
    quality: list[dict[str, Any]] = []
    weights = np.array([row.weight for row in train])
    for number, member in enumerate(members):
        extractor = pool(BackboneRef.of(member))
        found = extractor.features([row.digest for row in train], VIEWS, "features of the training images")
        kind: FeatureKind = member["features"]
        asked = extractor.features([row.digest for row in candidates], 0, "features of the candidates").of(kind)[:, 0]
        rows = Rows(found.of(kind), labels, weights, groups, found.scale(kind, MID_SCALE))
        p_train, p_asked = _cross_fit(rows, fold, asked, [group_fold.get(row.group) for row in candidates], seed)
        if len({candidates[negative].group for negative, _ in twins}) >= MIN_PAIRS:
            p_asked = _vote_on_twins(rows, asked, candidates, twins, folds, seed, p_asked)
        votes[member["name"]] = p_asked
        held_out.append(p_train)
        quality.append({"member": member["name"], "metrics": measure(p_train, labels)})
        ctx.progress.step("votes", number + 1, len(members), "members")
    lines = [
        {
            "digest": row.digest,
            "votes": [{"member": member["name"], "p": round(float(votes[member["name"]][index]), 6)} for member in members],
        }
        for index, row in enumerate(candidates)
    ]
    lines.sort(key=lambda line: str(line["digest"]))
    return {
        "votes": ctx.objects.put_jsonl(lines),
        "count": len(lines),
        "outOfFold": quality,
        "errorCorrelation": error_correlation(held_out, labels),
    }


def _twins(candidates: list[ImageRow]) -> list[tuple[int, int]]:
    """Pairs of places in the list: without and with roadwork by intent, both there, of one group."""
    at = {row.digest: index for index, row in enumerate(candidates)}
    pairs = []
    for index, row in enumerate(candidates):
        other = at.get(row.twin) if row.twin is not None and row.intent == 0 else None
        if other is not None and candidates[other].intent == 1 and candidates[other].group == row.group:
            pairs.append((index, other))
    return pairs


def _vote_on_twins(
    rows: Rows, asked: Any, candidates: list[ImageRow], twins: list[tuple[int, int]], folds: int, seed: int, single: Array
) -> Array:
    """The votes `single` with those of twins replaced: p of one and 1 - p of the other.

    The heads learn from the photographs and from the twins of other groups (labels by intent, together at most the weight of
    the photographs): the intent of an image never reaches the heads that vote on it. A vote is as sure as such votes were right
    on the pairs of the other folds.
    """
    places = np.array(twins).reshape(-1)
    made = np.tile([0, 1], len(twins))
    own = np.array([candidates[place].group for place in places])
    table = np.concatenate([rows.features[:, :1], asked[places][:, None]])
    labels, groups = np.concatenate([rows.labels, made]), np.concatenate([rows.groups, own])
    total = float(rows.weights.sum())
    weights = np.concatenate([rows.weights, np.full(len(places), min(1.0, total / len(places)))])
    possible = min(len(set(groups[labels == label])) for label in (0, 1))
    fold = group_folds(list(groups), labels.tolist(), min(folds, possible), seed)
    judges = np.arange(len(labels)) >= len(rows.labels)
    judged = out_of_fold(Rows(table, labels, weights, groups, rows.scale), fold, PAIR_STRENGTH, judges)
    lead = judged.logits[1::2, 0] - judged.logits[0::2, 0]
    part, pair_groups = fold[judges][0::2], own[0::2]
    out = single.copy()
    for k in np.unique(part):
        others = part != k
        if not others.any():
            continue
        both = np.concatenate([lead[others], -lead[others]])
        won = np.repeat(np.array([1, 0]), others.sum())
        sure, _ = fit_scale(both, won, np.ones(len(both)), float(len(set(pair_groups[others]))), shift=False)
        p = sigmoid(sure * lead[~others])
        pairs = places.reshape(-1, 2)[~others]
        out[pairs[:, 1]], out[pairs[:, 0]] = p, 1 - p
    return out


def _cross_fit(rows: Rows, fold: Any, asked: Any, asked_fold: list[int | None], seed: int) -> tuple[Array, Array]:
    """Probabilities of the training images (view 0) and of the candidates, each from outside its own group.

    A candidate whose group is not in the training set has no fold: it gets the mean over all heads.
    """
    count = int(fold.max()) + 1
    heads: list[Head] = []
    for k in range(count):
        learn = rows.take(fold != k)
        # strength and confidence are settled inside the fold's own training images, so that nothing of fold k leaks in
        possible = min(len(set(learn.groups[learn.labels == label])) for label in (0, 1))
        if possible < 2:
            heads.append(fit_rows(learn, LAMBDAS[0]))
            continue
        inner = group_folds(list(learn.groups), learn.labels.tolist(), min(3, possible), seed + 1 + k)
        strength, judged, _ = choose_strength(learn, inner, LAMBDAS)
        # votes are cast on the image itself, so that is where confidence must be right
        heads.append(fit_rows(learn, strength).scaled(judged.of_view(0).scale(), 0.0))
    p_train = np.empty(len(rows.labels))
    for k, head in enumerate(heads):
        p_train[fold == k] = sigmoid(head.logits(rows.features[fold == k, 0]))
    if len(asked) == 0:
        return p_train, np.empty(0)
    every = sigmoid(np.stack([head.logits(asked) for head in heads]))
    p_asked = np.array([every[:, i].mean() if k is None else every[k, i] for i, k in enumerate(asked_fold)])
    return p_train, p_asked
