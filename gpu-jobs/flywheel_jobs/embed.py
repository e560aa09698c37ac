"""Job `embed`: the features of a manifest's images by one backbone, as an object.

Cached features are used and kept (`features.py`), so that a second run, or another job on the same images, computes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .context import JobContext
from .errors import EmptySplit
from .features import Extractor
from .neighbours import unit
from .spec import read_manifest
from .weights import BackboneRef


def run(ctx: JobContext, job_input: dict[str, Any]) -> dict[str, Any]:
    """Writes safetensors `embeddings` [n, 1 + views, d] and the index of its rows, sorted by digest.

    Test images may be embedded: nothing is learned here, and what is learned from embeddings checks its own manifests.
    Raises EmptySplit for a manifest without images.
    """
    from safetensors.numpy import save

    rows = read_manifest(ctx.objects, job_input["manifest"], "manifest", refuse_test=False)
    if not rows:
        raise EmptySplit(f"manifest {job_input['manifest']} holds no image: there is nothing to embed.")
    member, views = job_input["member"], int(job_input["views"])
    digests = sorted(row.digest for row in rows)
    extractor = Extractor(ctx, BackboneRef.of(member))
    table = extractor.features(digests, views).of(member["features"])
    if job_input["unit"]:
        table = unit(table.reshape(-1, table.shape[-1])).reshape(table.shape)
    return {
        "embeddings": ctx.objects.put(save({"embeddings": np.ascontiguousarray(table, np.float32)})),
        "index": ctx.objects.put_jsonl({"digest": digest} for digest in digests),
        "count": len(digests),
        "dimensions": int(table.shape[-1]),
        "space": extractor.backbone.space,
    }
