"""Input pipeline of a fine-tune: images a second of the loader alone, of forward and backward alone, and of both together; and a
feature cache hit against a cold run. Prints JSON. Goal: together at least 0.9 of the slower one."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from streets import LITE0, context, rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--backbone", default=LITE0["backbone"])
    parser.add_argument("--weights", default=LITE0["weights"])
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), asked), indent=1))


def measure(root: Path, asked: argparse.Namespace) -> dict[str, Any]:
    import torch

    from flywheel_jobs.augment import Augment
    from flywheel_jobs.features import Extractor
    from flywheel_jobs.finetune import build_member, focal_loss
    from flywheel_jobs.heads import Head
    from flywheel_jobs.loader import Views, batches
    from flywheel_jobs.sampling import Plan
    from flywheel_jobs.spec import with_defaults
    from flywheel_jobs.weights import BackboneRef

    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ctx = context(root, "pipeline", 1)
    images = rows(ctx.objects, asked.images)
    digests = [row["digest"] for row in images]
    ref = BackboneRef(asked.backbone, asked.weights, 224)

    began = time.monotonic()
    extractor = Extractor(ctx, ref)
    ready = time.monotonic()
    extractor.features(digests, 1)
    cold = time.monotonic() - ready
    warm_began = time.monotonic()
    Extractor(ctx, ref).features(digests, 1)
    hit = time.monotonic() - warm_began
    shared_began = time.monotonic()
    Extractor(context(root, "another-machine", 1), ref).features(digests, 1)
    shared = time.monotonic() - shared_began

    defaults = with_defaults("train.input", {"fineTune": {}})["augmentation"]
    augment = Augment({**defaults, "recipe": 0.5, "challenge": 0.5}, 224)
    labels = np.array([row["label"] for row in images])
    plan = Plan.of("weights", labels, [row["group"] for row in images], np.ones(len(images)), 1)
    views = Views(ctx.objects, digests, extractor.backbone.preprocess, augment, 1)
    width = extractor.backbone.dimensions["final"]
    model = build_member(ref, "final", Head(np.zeros(width), 0.0), ctx, device.type == "cuda").to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step(index: Any, pixels: Any) -> None:
        x = pixels.to(device).float().div_(127.5).sub_(1).permute(0, 3, 1, 2).contiguous()
        optimiser.zero_grad(set_to_none=True)
        focal_loss(model(x), torch.from_numpy(labels[index]).float().to(device), torch.ones(len(index), device=device)).backward()
        optimiser.step()

    def speed(stream: Iterator[Any], compute: bool, epochs: int) -> float:
        """Images a second after the first batch, which pays for what is made once."""
        index, pixels = next(stream)
        if compute:
            step(index, pixels)
        began, count = time.monotonic(), 0
        for index, pixels in stream:
            if compute:
                step(index, pixels)
            count += len(index)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return count / (time.monotonic() - began)

    epochs = 2
    loader = speed(batches(views, plan, asked.batch, epochs, 0, asked.workers, 2, device.type == "cuda"), False, epochs)
    ready_made = list(batches(views, plan, asked.batch, 1, 0, 0, 2, False))
    network = speed(iter(ready_made), True, 1)
    together = speed(batches(views, plan, asked.batch, epochs, 0, asked.workers, 2, device.type == "cuda"), True, epochs)
    return {
        "bench": "pipeline",
        "device": device.type,
        "backbone": asked.backbone,
        "images": len(images),
        "workers": asked.workers,
        "load": os.getloadavg()[0],
        "imagesPerSecond": {"loader": round(loader, 1), "forwardBackward": round(network, 1), "together": round(together, 1)},
        "togetherOverSlower": round(together / min(loader, network), 3),
        "goal": 0.9,
        "features": {
            "views": 2 * len(images),
            "prepareBackboneSeconds": round(ready - began, 2),
            "coldSeconds": round(cold, 2),
            "hitSeconds": round(hit, 3),
            "fromObjectStoreSeconds": round(shared, 2),
            "coldOverHit": round(cold / hit, 1),
        },
    }


if __name__ == "__main__":
    main()
