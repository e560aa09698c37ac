"""The job `render`: rendered street scenes with exact labels, half of them with roadwork."""

from __future__ import annotations

import io
from typing import Any

import cv2
from PIL import Image

from ..context import JobContext
from .streets import render

JPEG_QUALITY = 88


def run(ctx: JobContext, job_input: dict[str, Any]) -> dict[str, Any]:
    """Renders `count` scenes. Streets depend on seed and place alone, so that a larger count begins with the same images.

    `perGroup` pictures of one street share the group `render-<seed>-<k>`; labels alternate, so that a group of two holds both.
    """
    cv2.setNumThreads(max(1, ctx.threads))
    count, seed, per_group = int(job_input["count"]), int(job_input["seed"]), int(job_input.get("perGroup", 1))
    width, height = int(job_input.get("width", 400)), int(job_input.get("height", 300))
    rows: list[dict[str, Any]] = []
    for index in range(count):
        street, variant = divmod(index, per_group)
        label = (index + 1) % 2
        # streets of different seeds must not meet: the seed takes the high half
        pixels = render(seed * 2**32 + street, variant, label, width, height)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
        digest = ctx.objects.put(buffer.getvalue())
        group = f"render-{seed}-{street}"
        rows.append({"digest": digest, "label": label, "group": group, "source": "rendered", "width": width, "height": height})
        ctx.progress.step("render", index + 1, count, "images")
    return {"images": ctx.objects.put_jsonl(rows), "count": len(rows)}
