"""A retrain with 100 new hard cases against training from scratch, wall time: both fine-tune, both from empty feature caches of
their own. Prints JSON. Goal: a tenth."""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from streets import LITE0, context, rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=None, help="photographs used in all; default: every one")
    parser.add_argument("--new", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=10, help="of the training from scratch")
    parser.add_argument("--again", type=int, default=2, help="epochs of the retrain")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), asked), indent=1))


def measure(root: Path, asked: argparse.Namespace) -> dict[str, Any]:
    from flywheel_jobs import finetune, train

    # both runs must keep their fine-tune, or there would be no checkpoint to go on from: what is kept does not change the time
    judged = finetune._Run._judge
    calls = [0]

    def rising(self: Any) -> tuple[float, float]:
        judged(self)
        calls[0] += 1
        return 0.5 + calls[0] * 1e-4, 0.5 - calls[0] * 1e-4

    finetune._Run._judge = rising  # type: ignore[method-assign]
    # stores of their own: features are shared through the store, and neither run may live on the other's
    ctx, home = context(root / "scratch", "job", 1), context(root / "home", "parent", 1)
    everything = rows(ctx.objects, asked.images)
    assert rows(home.objects, asked.images) == everything
    learned = [row for row in everything if row["pool"] == "train"]
    chosen = np.random.default_rng(0).permutation(len(learned))[: asked.new]
    new = {learned[i]["digest"] for i in chosen}
    old = [row for row in everything if row["digest"] not in new]
    tune = {"mode": "always", "gate": 1, "epochs": asked.epochs, "batch": 16, "backboneLr": 1e-5, "headLr": 1e-3, "maxSeconds": 1e6}
    base = {
        "members": [{"name": "lite0", "features": "final", **LITE0}],
        "views": 2,
        "fineTune": {**tune, "patience": 0},
        "maxSyntheticShare": 0.5,
        "ablation": True,
        "folds": 4,
        "seed": 1,
        "report": False,
        "incremental": {"replay": 1, "epochs": asked.again, "keepChoicesBelow": 0.5},
    }

    def cpu() -> float:
        every = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in every)

    def timed(job: Any, images: list[dict[str, Any]], parent: str | None) -> tuple[float, float, dict[str, Any]]:
        began, used = time.monotonic(), cpu()
        output = train.run(job, {**base, "snapshot": job.objects.put_jsonl(images), "initFrom": parent})
        return time.monotonic() - began, cpu() - used, output

    _, _, first = timed(home, old, None)
    # the same images from scratch, and from the parent on the machine that trained it
    scratch, scratch_cpu, whole = timed(ctx, everything, None)
    again, again_cpu, more = timed(home, everything, first["trained"])
    return {
        "bench": "incremental",
        "images": len(learned),
        "new": len(new),
        "load": os.getloadavg()[0],
        "fromScratchSeconds": round(scratch, 1),
        "retrainSeconds": round(again, 1),
        "share": round(again / scratch, 3),
        # what a busy machine does not change
        "cpuSeconds": {"fromScratch": round(scratch_cpu, 1), "retrain": round(again_cpu, 1)},
        "cpuShare": round(again_cpu / scratch_cpu, 3),
        "goal": 0.1,
        "steps": {"fromScratch": whole["members"][0]["fineTune"]["steps"], "retrain": more["members"][0]["fineTune"]["steps"]},
        "retention": more["retention"],
    }


if __name__ == "__main__":
    main()
