"""Job `neighbours`: the nearest images of each query by cosine similarity of cached features.

Exact: a batched matrix product over all pairs, which for many queries at once beats every index. No learning here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .backbones import Floats
from .context import JobContext
from .errors import EmptySplit
from .features import Extractor
from .spec import read_manifest
from .weights import BackboneRef

BLOCK = 1024
"""queries a product, so that the table of similarities stays small"""


def run(ctx: JobContext, job_input: dict[str, Any]) -> dict[str, Any]:
    """Writes {query, neighbours: [{digest, score}]} a query, in the order of the queries; the query itself is left out.

    Raises EmptySplit for an empty manifest. A `test` image may be neither query nor neighbour: what is found here is learned from.
    """
    queries = read_manifest(ctx.objects, job_input["queries"], "manifest of queries")
    corpus = read_manifest(ctx.objects, job_input["corpus"], "corpus")
    if not queries or not corpus:
        raise EmptySplit(f"nothing to compare: {len(queries)} queries, {len(corpus)} images in the corpus.")
    k, member = int(job_input["k"]), job_input["member"]
    extractor = Extractor(ctx, BackboneRef.of(member))
    digests = sorted({row.digest for row in corpus} | {row.digest for row in queries})
    place = {digest: index for index, digest in enumerate(digests)}
    vectors = unit(extractor.features(digests).of(member["features"])[:, 0])
    corpus_digests = sorted(row.digest for row in corpus)
    names = np.array(corpus_digests)
    base = vectors[[place[digest] for digest in corpus_digests]]
    rows: list[dict[str, Any]] = []
    for start in range(0, len(queries), BLOCK):
        block = queries[start : start + BLOCK]
        scores = vectors[[place[row.digest] for row in block]] @ base.T
        for row, raw in zip(block, scores, strict=True):
            line = np.where(names == row.digest, -np.inf, np.round(raw, 6))
            # stable: equal scores come in the order of their digests, so that the output has one digest
            best = [int(i) for i in np.argsort(-line, kind="stable")[:k] if np.isfinite(line[i])]
            found = [{"digest": corpus_digests[i], "score": float(line[i])} for i in best]
            rows.append({"query": row.digest, "neighbours": found})
        ctx.progress.step("neighbours", min(start + BLOCK, len(queries)), len(queries), "queries")
    return {"neighbours": ctx.objects.put_jsonl(rows), "queries": len(queries), "corpus": len(corpus)}


def unit(vectors: Floats) -> Floats:
    """Rows scaled to length 1; a zero row stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12), np.float32)
