"""A retrain with 100 new images against training from scratch: wall and CPU time, and what was learned and forgotten. Both fine-tune,
each in a store of its own. Prints JSON. Goal: a tenth.

The new images are whole clips and single photographs that the parent saw nothing of. Three trainings, each in a process that has
imported everything: the parent (not timed), everything from scratch, and the retrain on a copy of the parent's store, which is what the
machine has that trained the parent. `--folder` keeps what is done, so that parts can be measured by calls of their own and one that was cut
off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from streets import LITE0, context, rows

from flywheel_jobs.objects import write_atomic
from flywheel_jobs.progress import Progress

PATIENCE = 3
"""the product's: epochs no better until a training stops"""
Seconds = tuple[float, float]
"""wall, CPU"""
PARTS = ("parent", "scratch", "retrain")
BACKBONE_RATE, HEAD_RATE = 5e-5, 2e-4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=None, help="photographs used in all; default: every one")
    parser.add_argument("--new", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=10, help="of the training from scratch")
    parser.add_argument("--again", type=int, default=None, help="epochs of the retrain; default: the product's")
    rates = (BACKBONE_RATE, HEAD_RATE)
    parser.add_argument("--rates", type=float, nargs=2, default=rates, help="of the backbone's last layers and of the head")
    parser.add_argument("--folder", type=Path, default=None, help="keeps stores and finished parts")
    parser.add_argument("--only", choices=PARTS, default=None, help="of the unfinished parts")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(Bench(asked.folder or Path(folder), asked).measure(), indent=1))


class Clocked(Progress):
    """Progress that tells wall and CPU seconds up to each step of a fine-tune, across runs that were cut off: what a later run does
    again counts once."""

    def __init__(self, work_dir: Path) -> None:
        super().__init__(work_dir, quiet=True)
        self._file = work_dir / "clock.json"
        told = json.loads(self._file.read_text()) if self._file.is_file() else {}
        self.steps: dict[int, Seconds] = {int(step): (wall, cpu) for step, (wall, cpu) in told.items()}
        self._began, self.lost = _clocks(), bool(self.steps)
        """lost: what passed before this run, until a step tells"""

    def elapsed(self) -> Seconds:
        """Wall and CPU seconds since the beginning."""
        wall, cpu = _clocks()
        return wall - self._began[0], cpu - self._began[1]

    def step(self, phase: str, done: float, total: float, *rest: Any, **more: Any) -> None:
        if phase == "fine-tune":
            if self.lost:  # the first step of this run: so much had passed when it was done before, or would have been done
                at, (wall, cpu), before = int(done), _clocks(), max(self.steps)
                first = self.steps.get(at) or self.steps[before]
                self._began, self.lost = (wall - first[0], cpu - first[1]), False
            self.steps[int(done)] = self.elapsed()
            write_atomic(self._file, json.dumps(self.steps).encode())
        super().step(phase, done, total, *rest, **more)


class Bench:
    """The three trainings in `root`."""

    def __init__(self, root: Path, asked: argparse.Namespace) -> None:
        self.root, self.asked = root, asked
        root.mkdir(parents=True, exist_ok=True)
        began = time.process_time()
        for name in ("albumentations", "cv2", "onnx", "onnxruntime", "scipy.optimize", "timm", "torch"):
            __import__(name)
        self.imports = time.process_time() - began

    def measure(self) -> dict[str, Any]:
        """Runs what is not finished and asked for; the whole comparison once all is there, else what is."""
        wanted = PARTS if self.asked.only is None else (self.asked.only,)
        for part in wanted:
            if not self._file(part).is_file():
                self._file(part).write_text(json.dumps(self._train(part)))
        done = {part: json.loads(self._file(part).read_text()) for part in PARTS if self._file(part).is_file()}
        if len(done) < len(PARTS):
            return done
        scratch, again = done["scratch"], done["retrain"]
        started, early = self.imports, scratch["withPatience"]
        return {
            "bench": "incremental",
            "images": scratch["learned"],
            "new": again["output"]["retention"]["newImages"],
            "epochs": {"fromScratch": self.asked.epochs, "retrain": self.asked.again or "default"},
            "load": {"fromScratch": scratch["load"], "retrain": again["load"]},
            "fromScratchSeconds": scratch["seconds"],
            "retrainSeconds": again["seconds"],
            "share": round(again["seconds"] / scratch["seconds"], 3),
            # what a busy machine does not change
            "cpuSeconds": {"fromScratch": scratch["cpu"], "retrain": again["cpu"], "importsInNeither": round(started, 1)},
            "cpuShare": round(again["cpu"] / scratch["cpu"], 3),
            "cpuShareWithImports": round((again["cpu"] + started) / (scratch["cpu"] + started), 3),
            "goal": 0.1,
            # as `patience` would have stopped the training from scratch
            "fromScratchWithPatience": early,
            "shareWithPatience": round(again["seconds"] / early["seconds"], 3),
            "cpuShareWithPatience": round(again["cpu"] / early["cpu"], 3),
            "steps": {part: done[part]["output"]["members"][0]["fineTune"]["steps"] for part in PARTS},
            "notes": {part: done[part]["output"]["members"][0]["note"] for part in PARTS},
            # a fine-tune that is thrown away costs a head on the parent's backbone on top
            "kept": {part: done[part]["output"]["members"][0]["stage"] == "fine-tune" for part in PARTS},
            "validate": {part: done[part]["output"]["validate"] for part in PARTS},
            "retention": again["output"]["retention"],
            "accuracyAndBrier": self._judged(done),
            "validateEpochs": {part: done[part]["epochs"] for part in PARTS},
        }

    def _file(self, part: str) -> Path:
        return self.root / f"{part}.json"

    def _images(self, objects: Any) -> tuple[list[dict[str, Any]], set[str]]:
        """Every row, and the digests of the new ones: whole groups in an order drawn by seed."""
        everything = rows(objects, self.asked.images)
        groups: dict[str, list[str]] = {}
        for row in everything:
            if row["pool"] == "train":
                groups.setdefault(row["group"], []).append(row["digest"])
        new: set[str] = set()
        for index in np.random.default_rng(0).permutation(len(groups)):
            mine = groups[sorted(groups)[index]]
            if len(new) + len(mine) <= self.asked.new:
                new.update(mine)
        return everything, new

    def _train(self, part: str) -> dict[str, Any]:
        from flywheel_jobs import train

        folder = self.root / part
        checkpoint = folder / "job" / "finetune-lite0.pt"
        if not checkpoint.is_file():  # of a run that was cut off too early: its features would be had for nothing
            shutil.rmtree(folder, ignore_errors=True)
            if part == "retrain":
                shutil.copytree(self.root / "parent", folder, ignore=shutil.ignore_patterns("job"))
        job = context(folder, "job", 1)
        clock = Clocked(job.work_dir)
        job = replace(job, progress=clock)
        everything, new = self._images(job.objects)
        known = [row for row in everything if row["digest"] not in new]
        rate, head_rate = self.asked.rates
        tune = {
            "mode": "always",
            "gate": 1,
            "epochs": self.asked.epochs,
            "batch": 16,
            "backboneLr": rate,
            "headLr": head_rate,
            "patience": 0,
        }
        again = {} if self.asked.again is None else {"epochs": self.asked.again}
        job_input = {
            "snapshot": job.objects.put_jsonl(known if part == "parent" else everything),
            "members": [{"name": "lite0", "features": "final", **LITE0}],
            "initFrom": json.loads(self._file("parent").read_text())["output"]["trained"] if part == "retrain" else None,
            "views": 2,
            "fineTune": {**tune, "maxSeconds": 1e6},
            "maxSyntheticShare": 0.5,
            "ablation": True,
            "folds": 4,
            "seed": 1,
            "report": False,
            "incremental": {**again, "keepChoicesBelow": 0.5},
        }
        output = train.run(job, job_input)
        if clock.lost:
            raise SystemExit(f"{part} was cut off after its fine-tune, and how long its end took is lost: delete {folder} and start again.")
        seconds, cpu = clock.elapsed()
        import torch

        epochs = torch.load(checkpoint, weights_only=True)["epochs"]
        # no patience here: one run tells what all epochs cost, and what it would have cost to be stopped
        stop = _stop([one["brier"] for one in epochs])
        end, last = (clock.steps[int(epochs[at]["step"])] for at in (stop, -1))
        return {
            "seconds": round(seconds, 1),
            "cpu": round(cpu, 1),
            "withPatience": {
                "epochs": stop + 1,
                "sameWeights": min(epochs, key=lambda one: one["brier"]) in epochs[: stop + 1],
                "seconds": round(seconds - last[0] + end[0], 1),
                "cpu": round(cpu - last[1] + end[1], 1),
            },
            "load": round(os.getloadavg()[0], 2),
            "learned": len({row["digest"] for row in everything if row["pool"] == "train"}),
            "output": output,
            "epochs": [[round(one[name], 4) for name in ("accuracy", "brier")] for one in epochs],
        }

    def _judged(self, done: dict[str, Any]) -> dict[str, Any]:
        """Each ensemble on photographs as they are: the new ones, those the parent learned from, and `validate`."""
        from flywheel_jobs.features import Extractor
        from flywheel_jobs.heads import calibrate
        from flywheel_jobs.metrics import measure, sigmoid
        from flywheel_jobs.trained import Trained

        out: dict[str, Any] = {}
        for part in PARTS:
            ctx = context(self.root / part, "job", 1)
            everything, new = self._images(ctx.objects)
            trained = Trained.load(ctx.objects, done[part]["output"]["trained"])
            (member,) = trained.members
            extractor, a, b = Extractor(ctx, member.ref), trained.calibration["a"], trained.calibration["b"]
            kinds = {
                "new": [row for row in everything if row["digest"] in new],
                "old": [row for row in everything if row["pool"] == "train" and row["digest"] not in new],
                "validate": [row for row in everything if row["pool"] == "validate"],
            }
            out[part] = {}
            for kind, some in kinds.items():
                table = extractor.features([row["digest"] for row in some]).of(member.features)[:, 0]
                p = calibrate(sigmoid(member.head.logits(table)), a, b)
                found = measure(p, np.array([row["label"] for row in some]))
                out[part][kind] = [round(float(found[name]), 3) for name in ("accuracy", "brier")]
        return out


def _stop(scores: list[float]) -> int:
    """The epoch, from 0, after which PATIENCE ends a run with these Brier scores."""
    best = 0
    for epoch, score in enumerate(scores):
        if score < scores[best]:
            best = epoch
        if epoch - best >= PATIENCE:
            return epoch
    return len(scores) - 1


def _clocks() -> Seconds:
    every = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.monotonic(), sum(one.ru_utime + one.ru_stime for one in every)


if __name__ == "__main__":
    main()
