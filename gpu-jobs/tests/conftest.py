"""What the tests share: a small world of coloured images, a random tiny backbone, and job contexts in a temporary folder.

One thread, set before numpy starts, so that the suite leaves the machine to others and repeats itself.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image, ImageDraw

from flywheel_jobs.context import JobContext
from flywheel_jobs.objects import FileObjects
from flywheel_jobs.progress import Progress

MEMBERS: list[dict[str, Any]] = [
    {"name": "tiny-final", "backbone": "test_efficientnet", "weights": "none", "features": "final", "resolution": 64},
    {"name": "tiny-mid", "backbone": "test_efficientnet", "weights": "none", "features": "mid", "resolution": 64},
]
NEVER = {"mode": "never", "gate": 0.5, "epochs": 1, "batch": 8, "backboneLr": 1e-5, "headLr": 1e-3, "maxSeconds": 600}


def make_context(root: Path, cache: str = "cache", work: str = "work", objects: str = "objects") -> JobContext:
    """A context in `root`; folders by name, so that two jobs can share a store but not a cache."""
    work_dir = root / work
    work_dir.mkdir(parents=True, exist_ok=True)
    return JobContext(FileObjects(root / objects), root / cache, work_dir, 1, Progress(work_dir, quiet=True))


@pytest.fixture
def ctx(tmp_path: Path) -> JobContext:
    return make_context(tmp_path)


def scene(label: int, rng: np.random.Generator, hue: int) -> bytes:
    """A grey road with a building of the group's own hue; orange marks when label is 1, blue ones when 0."""
    image = Image.new("RGB", (96, 72), (90, 90, 95))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 95, 30), (hue, 120, 200 - hue // 2))
    for _ in range(4):
        x, y = int(rng.integers(12, 80)), int(rng.integers(30, 62))
        draw.polygon([(x, y - 10), (x - 6, y + 6), (x + 6, y + 6)], (240, 110, 20) if label else (40, 80, 200))
    noisy = np.asarray(image, np.int16) + rng.integers(-12, 13, (72, 96, 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def row(digest: str, label: int | None, pool: str, group: str, **more: Any) -> dict[str, Any]:
    """An ImageRow of the contract."""
    base = {"digest": digest, "label": label, "truth": "truth" if label is not None else "none", "pool": pool, "group": group}
    return {**base, "source": "drawn", "width": 96, "height": 72, **more}


def world(objects: FileObjects, pool: str, groups: int, each: int, seed: int, **more: Any) -> list[dict[str, Any]]:
    """`groups` groups of `each` images, one label a group in turns, sorted by digest."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(groups):
        hue = int(rng.integers(0, 255))
        for _ in range(each):
            label = number % 2
            rows.append(row(objects.put(scene(label, rng, hue)), label, pool, f"{pool}-{number}", **more))
    return sorted(rows, key=lambda one: one["digest"])


def snapshot_rows(objects: FileObjects) -> list[dict[str, Any]]:
    """A small snapshot with the three pools that training needs."""
    parts = [world(objects, "train", 10, 3, 1), world(objects, "calibrate", 6, 2, 2), world(objects, "validate", 6, 2, 3)]
    return sorted((one for part in parts for one in part), key=lambda one: one["digest"])


def train_input(snapshot: str, **more: Any) -> dict[str, Any]:
    """Input of a train job, quick."""
    base = {"snapshot": snapshot, "members": MEMBERS, "initFrom": None, "views": 1, "fineTune": NEVER, "maxSyntheticShare": 0.5}
    return {**base, "ablation": True, "folds": 3, "seed": 7, **more}


def export_order(ctx: JobContext, output: dict[str, Any], rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Input of an export job for what a train job gave."""
    from flywheel_jobs.spec import with_defaults

    base = {"trained": output["trained"], "name": "demo-1", "snapshot": ctx.objects.put_jsonl(rows), "parent": None}
    base |= {"parity": ctx.objects.put_jsonl(rows), "parityImages": 4, "parityTolerance": 1e-3, "seed": 3, "calibrationImages": 8}
    return with_defaults("export.input", {**base, **more})


@pytest.fixture(scope="session")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> tuple[JobContext, list[dict[str, Any]], dict[str, Any]]:
    """A trained ensemble of two heads: (ctx, rows, train output)."""
    from flywheel_jobs import train

    ctx = make_context(tmp_path_factory.mktemp("ensemble"))
    rows = snapshot_rows(ctx.objects)
    return ctx, rows, train.run(ctx, train_input(ctx.objects.put_jsonl(rows)))
