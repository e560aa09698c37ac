"""Full fine-tunes for `train.py`: backbone and head together, by the product's own `fine_tune`, on the same splits as the probes.

One clip in five of the photographs that may teach validates, as in a turn: the epoch that is kept is chosen on it, and whether the
fine-tune is better than its probe. Each fine-tune is told twice: as it is, and with the probe in its place where it is no better on
those photographs (a turn also asks that it hold on their challenge views). With composites an epoch shows as many of them as
photographs and there are half as many epochs: all settings take the same number of steps.

What a fine-tune says of the photographs that it did not see is kept beside the caches by everything that it follows from, the code of
the jobs included, so that a run of an hour can be stopped and goes on, and processes can share the work.
"""

from __future__ import annotations

import fcntl
import io
import json
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from streets import say

import flywheel_jobs
from flywheel_jobs.backbones import onnx_session
from flywheel_jobs.context import JobContext
from flywheel_jobs.features import challenge_view
from flywheel_jobs.finetune import Images, Job, build_member, fine_tune
from flywheel_jobs.heads import Head, group_folds
from flywheel_jobs.metrics import sigmoid
from flywheel_jobs.nets import to_onnx
from flywheel_jobs.objects import sha256, write_atomic
from flywheel_jobs.pictures import decode
from flywheel_jobs.sampling import Plan
from flywheel_jobs.schedules import Settings
from flywheel_jobs.spec import with_defaults

if TYPE_CHECKING:
    from train import Array, Bench, Index, Mask, Predict, Setting

EPOCHS = 2
BATCH = 16
BACKBONE_RATE, HEAD_RATE = 1e-4, 1e-3
VALIDATES = 5
"""one clip in so many validates"""
OPTIONS: dict[str, Any] = with_defaults(
    "train.input",
    {
        "members": [],
        "augmentation": {"challenge": 0.5, "recipe": 0.5},
        "fineTune": {
            "mode": "always",
            "gate": 1,
            "epochs": EPOCHS,
            "batch": BATCH,
            "backboneLr": BACKBONE_RATE,
            "headLr": HEAD_RATE,
            "maxSeconds": 1e6,
        },
    },
)
"""augmentation as in the production presets, everything else as by default; `maxSeconds` is never reached, so that a busy machine
changes nothing"""


@dataclass(frozen=True)
class Told:
    """Probabilities [photographs, 1 + views] of the fine-tune as it is and of what a turn keeps, NaN where it was not asked."""

    own: Array
    kept: Array


def fine_tunes(bench: Bench, views: int) -> dict[str, Setting]:
    """The settings, each as it is and as delivered. `views`: challenge views to be judged beside the photographs."""
    out: dict[str, Setting] = {}
    for name, composites, cycles in (
        ("fine-tune", False, 1),
        ("fine-tune + composites", True, 1),
        ("fine-tune + composites, two cosine cycles", True, 2),
    ):
        told = _remembered(bench, views, composites, cycles)
        out[name] = partial(_predict, told, "own")
        out[f"{name}, thrown away when no better than its probe"] = partial(_predict, told, "kept")
    both, tuned = bench.head("both", composites=0.5), out["fine-tune + composites"]
    out["two members, both in one head and fine-tune + composites"] = bench.vote(both, tuned)
    out["two members, both in one head 0.7 and fine-tune 0.3 + composites"] = bench.vote(both, tuned, weights=(0.7, 0.3))
    return out


def _predict(told: Any, which: str, learns: Mask, seed: int) -> Predict:
    found: Array = getattr(told(learns, seed), which)
    return lambda index, view: found[index, view]


def _remembered(bench: Bench, views: int, composites: bool, cycles: int) -> Any:
    code = Path(flywheel_jobs.__file__).parent.rglob("*.py")
    source = sha256(b"".join(path.read_bytes() for path in sorted(code) if "synth" not in path.parts))
    folder = bench.ctx.cache_dir / "fine-tunes"
    folder.mkdir(exist_ok=True)

    def told(learns: Mask, seed: int) -> Told:
        input_of = [source, OPTIONS, VALIDATES, bench.photos.digest, learns.tolist(), seed, views, composites, cycles]
        mark = sha256(json.dumps([*input_of, bench.twins[seed].digest if composites else []]).encode())[:32]
        file = folder / f"{mark}.npz"
        with (folder / f"{mark}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.is_file():
                found = _run(bench, learns, seed, views, composites, cycles, mark)
                buffer = io.BytesIO()
                np.savez(buffer, own=found.own, kept=found.kept)
                write_atomic(file, buffer.getvalue())
        with np.load(file) as parts:
            return Told(parts["own"], parts["kept"])

    return told


def _run(bench: Bench, learns: Mask, seed: int, views: int, composites: bool, cycles: int, mark: str) -> Told:
    photos, ref = bench.photos, bench.extractor.backbone.ref
    index = np.flatnonzero(learns)
    folds = group_folds(photos.clip[index].tolist(), photos.label[index].tolist(), VALIDATES, seed)
    validates = index[folds == 0]
    teaches = learns.copy()
    teaches[validates] = False
    probe = bench.fitted("final", teaches, seed, views=True, composites=0.5 if composites else 0.0)

    real, made = np.flatnonzero(teaches), bench.twins[seed]
    drawn = np.flatnonzero(teaches[made.background]) if composites else np.empty(0, np.int64)
    if len(drawn) > len(real):
        drawn = np.random.default_rng((seed, 21)).choice(drawn, len(real), replace=False)
    digests = [*(photos.digest[i] for i in real), *(made.digest[i] for i in drawn)]
    labels = np.concatenate([photos.label[real], made.label[drawn]])
    groups = np.concatenate([photos.clip[real], photos.clip[made.background[drawn]]]).tolist()
    settings = Settings.of(OPTIONS["fineTune"], float(OPTIONS["sampling"]["focalGamma"]))
    epochs = max(1, round(EPOCHS * len(real) / len(labels)))
    work = bench.ctx.work_dir / f"fine-tune-{mark}"
    work.mkdir(exist_ok=True)
    ctx = replace(bench.ctx, work_dir=work)
    outcome = fine_tune(
        ctx,
        Job(
            name="lite0",
            ref=ref,
            kind="final",
            preprocess=bench.extractor.backbone.preprocess,
            probe=probe,
            train=Images(digests, labels),
            validate=Images([photos.digest[i] for i in validates], photos.label[validates], photos.clip[validates].tolist()),
            plan=Plan.of(OPTIONS["sampling"]["kind"], labels, groups, np.ones(len(labels)), seed),
            augmentation=OPTIONS["augmentation"],
            loader=OPTIONS["loader"],
            settings=replace(settings, epochs=epochs, cycles=cycles),
            seed=seed,
            mark=mark,
        ),
    )
    left_out = ~learns & ~photos.val
    asked = np.flatnonzero(left_out if left_out.any() else photos.val)
    boundary = outcome.facts["boundary"]
    logits = boundary["scale"] * _logits(bench, ctx, probe, outcome.facts["bestStep"], asked, views) + boundary["shift"]
    own, kept = (np.full((len(photos.label), 1 + views), np.nan) for _ in range(2))
    own[asked] = sigmoid(logits)
    kept[asked] = own[asked] if outcome.ref is not None else sigmoid(probe.logits(bench.real["final"][asked, : 1 + views]))
    say(f"seed {seed}, {len(asked)} photographs left out: {outcome.note}")
    shutil.rmtree(work)
    return Told(own, kept)


def _logits(bench: Bench, ctx: JobContext, probe: Head, step: int, index: Index, views: int) -> Array:
    """Logits [n, 1 + views] of the best weights, which lie beside the checkpoint also when the fine-tune is thrown away."""
    import torch

    backbone = bench.extractor.backbone
    model = build_member(backbone.ref, "final", probe, ctx, fused=False)
    best = torch.load(ctx.work_dir / f"finetune-lite0-best-{step}.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(best["weights"])
    session = onnx_session(to_onnx(model, backbone.preprocess.size, ("logit",)), ctx.threads)

    def pixels(i: int) -> list[np.ndarray]:
        digest = bench.photos.digest[i]
        whole = decode(ctx.objects.get(digest), digest)
        seen = [whole, *(challenge_view(whole, digest, view) for view in range(1, 1 + views))]
        return [backbone.preprocess.pixels(one) for one in seen]

    rows = [session.run(["logit"], {"input": backbone.preprocess.tensor(np.stack(pixels(int(i))))})[0] for i in index]
    return np.array(rows, np.float64)
