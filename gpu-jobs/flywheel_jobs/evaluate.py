"""Job `evaluate`: a bundle or a trained ensemble over a manifest or a challenge set.

Independent of the production path (TypeScript: `src/platform/inference`), which it checks: images are decoded and resized by
Pillow, graphs run by Python's onnxruntime, the vote and its calibration computed here. Nothing is learned, so that test images may be
judged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backbones import Floats, Preprocess
from .context import JobContext
from .errors import BadInput, CorruptImage, EmptySplit
from .features import extractor_pool
from .heads import calibrate, vote
from .metrics import Array, Labels, measure, sigmoid
from .pictures import decode
from .predicted import predicted_reward
from .quantise import Graph
from .spec import validate
from .tensorrt import CPU, open_session
from .trained import Trained

BATCH = 8


@dataclass(frozen=True)
class _Voter:
    """A member: a name, its share, and what it says of prepared images."""

    name: str
    weight: float
    preprocess: Preprocess
    logits: Callable[[Floats], Array]


@dataclass(frozen=True)
class _Ensemble:
    members: list[_Voter]
    a: float
    b: float
    flip: bool
    """each member also sees the mirrored image, and its two probabilities are averaged"""


def run(ctx: JobContext, job_input: dict[str, Any]) -> dict[str, Any]:
    """Predictions and figures. Images that cannot be decoded are left out and told. Raises BadInput, EmptySplit."""
    rows = _rows(ctx, job_input["manifest"])
    if (job_input["bundle"] is None) == (job_input["trained"] is None):
        raise BadInput("give either `bundle` or `trained`, not both and not neither. Nothing was evaluated.")
    with tempfile.TemporaryDirectory() as scratch:
        if job_input["bundle"] is not None:
            ensemble = _bundle(ctx, job_input["bundle"], Path(scratch))
        else:
            ensemble = _trained(ctx, job_input["trained"])
        answered, votes, failed = _predict(ctx, ensemble, rows)
    weights = [member.weight for member in ensemble.members]
    p = calibrate(vote(list(votes), weights), ensemble.a, ensemble.b) if answered else np.empty(0)
    names = [member.name for member in ensemble.members]
    lines = [
        {
            "digest": row["digest"],
            "prediction": float(p[index]),
            "votes": {name: float(one[index]) for name, one in zip(names, votes, strict=True)},
        }
        for index, row in enumerate(answered)
    ]
    labelled = np.array([row["label"] is not None for row in answered], bool)
    known = [row for row in answered if row["label"] is not None]
    labels = np.array([row["label"] for row in known], np.int64)
    return {
        "predictions": ctx.objects.put_jsonl(lines),
        "metrics": measure(p[labelled], labels) if known else None,
        "figures": figures(p[labelled], labels, known, int(job_input["resamples"]), int(job_input["seed"])),
        "predictedReward": predicted_reward(p[labelled], labels) if known else None,
        "n": len(rows),
        "failed": failed,
    }


def _rows(ctx: JobContext, digest: str) -> list[dict[str, Any]]:
    """What judging needs of a manifest or a challenge set; an image that comes twice is judged once."""
    found: dict[str, dict[str, Any]] = {}
    for number, raw in enumerate(ctx.objects.get_jsonl(digest), 1):
        validate("challenge-row" if "level" in raw else "image-row", raw, f"row {number} of the manifest")
        found.setdefault(raw["digest"], {key: raw[key] for key in ("digest", "label", "group", "source")})
    if not found:
        raise EmptySplit(f"manifest {digest} holds no image: there is nothing to evaluate on.")
    return list(found.values())


def _bundle(ctx: JobContext, digest: str, scratch: Path) -> _Ensemble:
    bundle = ctx.objects.get_json(digest)
    validate("bundle", bundle, f"bundle {digest}")
    members = []
    for entry in bundle["members"]:
        outside = entry.get("onnxData")
        data = None if outside is None else ctx.objects.get(outside["sha256"])
        graph = Graph(ctx.objects.get(entry["onnx"]["sha256"]), data, "" if outside is None else outside["path"])
        preprocess = Preprocess.from_json(entry["preprocess"])
        session = open_session(
            graph, CPU, ctx.threads, scratch, ctx.cache_dir, preprocess.size, entry.get("precision", "fp32"), ctx.batch(BATCH)
        )

        def logits(x: Floats, session: Any = session) -> Array:
            out: Array = session.run(["logit"], {"input": x})[0].astype(np.float64)
            return out

        members.append(_Voter(entry["name"], float(entry["weight"]), preprocess, logits))
    scale = bundle["calibration"]
    a, b = (1.0, 0.0) if scale["kind"] == "none" else (float(scale["a"]), float(scale["b"]))
    return _Ensemble(members, a, b, bool(bundle.get("tta", {}).get("flip", False)))


def _trained(ctx: JobContext, digest: str) -> _Ensemble:
    """Before any export: the graph that training's features come from, and the heads in float64."""
    trained = Trained.load(ctx.objects, digest)
    pool = extractor_pool(ctx)
    members = []
    for member in trained.members:
        backbone = pool(member.ref).backbone

        def logits(x: Floats, member: Any = member, backbone: Any = backbone) -> Array:
            return member.head.logits(backbone.compute_tensor(x)[member.features])  # type: ignore[no-any-return]

        members.append(_Voter(member.name, member.weight, member.preprocess, logits))
    return _Ensemble(members, float(trained.calibration["a"]), float(trained.calibration["b"]), False)


def _predict(
    ctx: JobContext, ensemble: _Ensemble, rows: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], NDArray[np.float64], list[dict[str, str]]]:
    """Rows that were answered, the members' probabilities of them [members, n], and the images that could not be decoded."""
    answered: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    parts: list[Array] = []
    batch = ctx.batch(BATCH)
    for start in range(0, len(rows), batch):
        pictures = []
        for row in rows[start : start + batch]:
            try:
                pictures.append(decode(ctx.objects.get(row["digest"]), row["digest"]))
                answered.append(row)
            except CorruptImage as error:
                failed.append({"digest": row["digest"], "reason": str(error)})
        if pictures:
            votes = []
            for member in ensemble.members:
                x = member.preprocess.tensor(np.stack([member.preprocess.pixels(picture) for picture in pictures]))
                one = sigmoid(member.logits(x))
                votes.append((one + sigmoid(member.logits(np.ascontiguousarray(x[..., ::-1])))) / 2 if ensemble.flip else one)
            parts.append(np.stack(votes))
        ctx.progress.step("evaluate", min(start + batch, len(rows)), len(rows), "images")
    empty = np.empty((len(ensemble.members), 0))
    return answered, np.concatenate(parts, axis=1) if parts else empty, failed


def figures(p: Array, y: Labels, rows: list[dict[str, Any]], resamples: int, seed: int) -> list[dict[str, Any]]:
    """Overall first, then the sources by name where there is more than one: metrics, and the interval of the accuracy by a bootstrap
    over groups, since twenty frames of one clip are one observation."""
    if not rows:
        return []
    sources = np.array([row["source"] for row in rows])
    groups = np.array([row["group"] for row in rows])
    names = sorted(set(sources.tolist()))
    chosen = [("overall", np.ones(len(rows), bool)), *((name, sources == name) for name in names if len(names) > 1)]
    return [_figure(of, p[mask], y[mask], groups[mask], resamples, (seed, number)) for number, (of, mask) in enumerate(chosen)]


def _figure(of: str, p: Array, y: Labels, groups: NDArray[np.str_], resamples: int, seed: tuple[int, int]) -> dict[str, Any]:
    _, index = np.unique(groups, return_inverse=True)
    right, counts = np.bincount(index, weights=(p > 0.5) == (y == 1)), np.bincount(index)
    draws = np.random.default_rng(seed).integers(0, len(counts), (resamples, len(counts)))
    means = right[draws].sum(1) / counts[draws].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"of": of, **measure(p, y), "ci95": [float(low), float(high)], "groups": len(counts), "positives": int((y == 1).sum())}
