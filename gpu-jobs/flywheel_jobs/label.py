"""Job `label`: votes of two members on images of unknown truth, by grouped cross-fitting.

Every vote comes from a head that saw nothing of the image's own group: neither in training nor in the scaling of its
confidence. Who wins the vote is decided elsewhere (`src/domain`); nothing here writes a label.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .backbones import BackboneRef
from .context import JobContext
from .errors import BadInput, EmptySplit, OneClass
from .features import extractor_pool
from .heads import Head, Rows, choose_strength, fit_rows, group_folds
from .metrics import Array, error_correlation, measure, sigmoid
from .spec import read_manifest

VIEWS = 1
"""challenge views of each training image the voting heads learn from, beside the image itself"""
LAMBDAS = (1.0, 0.3, 0.1)


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

    pool = extractor_pool(ctx)
    votes: dict[str, Array] = {}
    held_out: list[Array] = []
    quality: list[dict[str, Any]] = []
    weights = np.array([row.weight for row in train])
    for number, member in enumerate(members):
        extractor = pool(BackboneRef.of(member))
        learned = extractor.features([row.digest for row in train], VIEWS, "features of the training images").of(member["features"])
        asked = extractor.features([row.digest for row in candidates], 0, "features of the candidates").of(member["features"])[:, 0]
        rows = Rows(learned, labels, weights, groups)
        p_train, p_asked = _cross_fit(rows, fold, asked, [group_fold.get(row.group) for row in candidates], seed)
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
        strength, judged = choose_strength(learn, inner, LAMBDAS)
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
