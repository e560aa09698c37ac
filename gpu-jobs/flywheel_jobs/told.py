"""What a training run leaves to be looked at: curves, pictures, and what gives its result again."""

from __future__ import annotations

from typing import Any

import numpy as np

from .context import JobContext
from .machine import git_revision
from .member import Member, labels_of
from .metrics import Array, measure, sigmoid
from .objects import canonical_json, sha256
from .spec import ImageRow

CURVE = (0.25, 0.5)
"""shares of the groups that a probe's learning curve is drawn at, beside the whole"""


def learning_curves(ctx: JobContext, members: list[Member], kept: list[ImageRow], held: list[ImageRow], views: int, seed: int) -> None:
    """How each probe does on `validate` after a quarter, a half and all of the groups, by the recipe chosen for all."""
    groups = sorted({row.group for row in kept})
    order = np.random.default_rng((seed, 17)).permutation(len(groups))
    truth = labels_of(held)
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


def report_of(ctx: JobContext, members: list[Member], held: list[ImageRow], p: Array) -> dict[str, Any]:
    """Pictures and curves as objects."""
    from . import report
    from .board import whole_records
    from .loader import Pictures

    y = labels_of(held)
    history = {
        "members": {
            m.name: {
                "stage": m.stage,
                "head": m.recipe.told() if m.recipe is not None else {},
                "sweep": m.sweep,
                "curve": m.history.get("curve"),
                "fineTune": m.history.get("fineTune"),
            }
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


def reproduce(ctx: JobContext, job_input: dict[str, Any], rows: list[ImageRow]) -> dict[str, Any]:
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
