"""The job `synthesize`: composites and weather variants of hard cases and their neighbours.

Composites come as twins: two images of one background with equal places, light and camera, one with roadwork and one without.
What is made depends on the seed and on each failure's own digest, never on the order of rows; made again, it is the same
objects, so a restarted job needs no checkpoint.
"""

from __future__ import annotations

import io
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ..context import JobContext
from ..errors import BadInput
from ..pictures import UNREADABLE, why_unreadable
from .canvas import Pixels
from .compositor import composite
from .weather import KINDS, weather

Row = dict[str, Any]

MAX_SIDE = 800
"""larger photographs are reduced first, pixels of the longer side: challenges are 224 pixels"""
MIN_SIDE = 64
"""smaller pictures are no use as backgrounds, pixels of the shorter side"""
NEIGHBOURS = 12
"""nearest neighbours considered for each failure"""
WEATHER_SHARE = 0.25
"""share of the images that the weather provider makes where both providers are asked for"""
JPEG_QUALITY = 92
"""the camera's own JPEG step is part of the picture already; this one only stores it"""
CACHE = 24
"""decoded photographs kept"""


@dataclass(frozen=True)
class Slot:
    """One image to be made."""

    failure: Row
    number: int
    """place among the failure's images; 2 m and 2 m + 1 are a pair, one of each intent"""

    @property
    def pair(self) -> int:
        """Which pair of the failure's images it belongs to."""
        return self.number // 2


class Corpus:
    """Failures and corpus together, with the rules on what may be made from what."""

    def __init__(self, failures: list[Row], corpus: list[Row], neighbours: list[Row]) -> None:
        """Raises BadInput for a `test` row, and for an image that stands in two pools."""
        self.rows: dict[str, Row] = {}
        for name, rows in (("failures", failures), ("corpus", corpus)):
            for row in rows:
                if row["pool"] == "test":
                    raise BadInput(
                        f"image {row['digest']} in `{name}` is in the pool test, which is never synthesised from. "
                        "Nothing was made. Leave test images out of the manifest."
                    )
                known = self.rows.get(row["digest"])
                if known is not None and known["pool"] != row["pool"]:
                    raise _two_pools(known["digest"], known["pool"], row["digest"], row["pool"])
                # a corpus row knows more (a label) than a failure of unknown truth
                if known is None or known["label"] is None:
                    self.rows[row["digest"]] = row
        self.nearest: dict[str, list[str]] = {}
        for entry in neighbours:
            digests = [near["digest"] for near in entry["neighbours"]]
            unknown = next((d for d in digests if d not in self.rows), None)
            if unknown is not None:
                raise BadInput(
                    f"neighbour {unknown} of {entry['query']} is in neither failures nor corpus. Make the neighbours anew from this corpus."
                )
            self.nearest[entry["query"]] = digests
        self.without: dict[str, list[str]] = {}
        for row in sorted(corpus, key=lambda r: r["digest"]):
            if row["label"] == 0 and row.get("provider") is None:
                self.without.setdefault(row["pool"], []).append(row["digest"])

    def lineage(self, digest: str) -> list[str]:
        """The image and all its recorded parents. Raises BadInput where two of them are in different pools."""
        row = self.rows[digest]
        family = [digest, *(p for p in row.get("parents") or [] if p != digest)]
        for parent in family[1:]:
            known = self.rows.get(parent)
            if known is not None and known["pool"] != row["pool"]:
                raise _two_pools(digest, row["pool"], parent, known["pool"])
        return family

    def backgrounds(self, failure: Row) -> list[Row]:
        """The failure, then its nearest photographs of the same pool."""
        near = [self.rows[d] for d in self.nearest.get(failure["digest"], [])[:NEIGHBOURS] if d != failure["digest"]]
        return [failure, *(row for row in near if row["pool"] == failure["pool"] and row.get("provider") is None)]


def _two_pools(one: str, one_pool: str, other: str, other_pool: str) -> BadInput:
    return BadInput(
        f"images {one} (pool {one_pool}) and {other} (pool {other_pool}) would be parents of one image, but are in different pools. "
        "Nothing was made of them. A derived image inherits one pool: correct the pools in the manifest."
    )


def run(ctx: JobContext, job_input: Row) -> Row:
    """Job `synthesize`. Gives a manifest of unlabelled images with intent and parents, sorted by digest."""
    cv2.setNumThreads(max(1, ctx.threads))
    objects = ctx.objects
    failures = sorted(objects.get_jsonl(job_input["failures"]), key=lambda row: row["digest"])
    corpus = Corpus(failures, objects.get_jsonl(job_input["corpus"]), objects.get_jsonl(job_input["neighbours"]))
    failures = list({row["digest"]: corpus.rows[row["digest"]] for row in failures}.values())
    for row in failures:
        for background in corpus.backgrounds(row):
            corpus.lineage(background["digest"])
    providers, seed = list(job_input["providers"]), int(job_input["seed"])
    slots = _slots(failures, int(job_input["perFailure"]), int(job_input["maxImages"]))
    source = _Source(ctx)
    made: dict[str, Row] = {}
    pairs: dict[tuple[str, int], list[Row]] = {}
    skipped: list[Row] = []
    for done, slot in enumerate(slots, 1):
        result = _make(slot, corpus, providers, seed, source)
        if isinstance(result, str):
            skipped.append({"parent": slot.failure["digest"], "reason": result})
        else:
            kept = made.setdefault(result["digest"], result)
            if kept is result and result["provider"] == "composite":
                pairs.setdefault((slot.failure["digest"], slot.pair), []).append(result)
        ctx.progress.step("synthesize", done, len(slots), "images")
    for pair in pairs.values():
        if len(pair) == 2 and pair[0]["parents"] == pair[1]["parents"]:
            pair[0]["twin"], pair[1]["twin"] = pair[1]["digest"], pair[0]["digest"]
    rows = [made[digest] for digest in sorted(made)]
    by_provider, by_intent = Counter(row["provider"] for row in rows), Counter(str(row["intent"]) for row in rows)
    return {
        "manifest": objects.put_jsonl(rows),
        "count": len(rows),
        "byProvider": {name: by_provider[name] for name in providers},
        "byIntent": {name: by_intent[name] for name in ("0", "1")},
        "skipped": skipped,
    }


def _slots(failures: list[Row], per_failure: int, most: int) -> list[Slot]:
    """Every failure gets its first pair before any gets its second, so that a cap takes from all alike and parts few twins."""
    starts = range(0, per_failure, 2)
    every = [Slot(failure, number) for start in starts for failure in failures for number in range(start, min(start + 2, per_failure))]
    return every[:most]


def _make(slot: Slot, corpus: Corpus, providers: list[str], seed: int, source: _Source) -> Row | str:
    """One image, or the reason why there is none."""
    failure = slot.failure
    key = int(failure["digest"][:16], 16)
    plan = np.random.default_rng(np.random.SeedSequence((seed, key)))
    # weather falls on whole pairs, the same ones of every failure's list, starting anywhere
    start, first = plan.random(), int(plan.integers(0, 2))
    share = WEATHER_SHARE if len(providers) == 2 else float(providers == ["weather"])
    turn = int(np.floor((slot.pair + 1) * share + start)) - int(np.floor(slot.pair * share + start))
    provider = "weather" if turn >= 1 else "composite"
    # which intent comes first differs by failure and by pair, so that a cap keeps the balance
    intent = (first + slot.number + slot.pair) % 2
    candidates = corpus.backgrounds(failure)
    if provider == "weather":
        rng = np.random.default_rng(np.random.SeedSequence((seed, key, slot.number)))
        background, reason = _for_weather(candidates, intent, rng)
        if background is None and "composite" in providers:
            provider = "composite"
    if provider == "composite":
        # twins draw from equal generators: same background, same places, same camera
        rng = np.random.default_rng(np.random.SeedSequence((seed, key, 2 * slot.pair, 1)))
        background, reason = _for_composite(candidates, corpus, failure["pool"], intent, rng)
    if background is None:
        return reason
    pixels = source.pixels(background["digest"])
    if isinstance(pixels, str):
        return pixels
    if provider == "weather":
        intent = int(background["label"])
        image = weather(pixels, KINDS[int(rng.integers(0, len(KINDS)))], rng)
    else:
        image = composite(pixels, intent, rng)
    return {
        "digest": source.store(image),
        "label": None,
        "truth": "none",
        "pool": background["pool"],
        "group": background["group"],
        "source": background["source"],
        "parents": corpus.lineage(background["digest"]),
        "provider": provider,
        "intent": intent,
        "weight": 1,
        "width": int(image.shape[1]),
        "height": int(image.shape[0]),
    }


def _for_weather(candidates: list[Row], intent: int, rng: np.random.Generator) -> tuple[Row | None, str]:
    """The failure or a neighbour whose label is the wished one; else any labelled one."""
    labelled = [row for row in candidates if row["label"] is not None]
    wished = [row for row in labelled if row["label"] == intent] or labelled
    if not wished:
        return None, "weather needs a known label, and neither this failure nor its neighbours of the same pool have one"
    return wished[int(len(wished) * rng.random() ** 1.5)], ""


def _for_composite(candidates: list[Row], corpus: Corpus, pool: str, intent: int, rng: np.random.Generator) -> tuple[Row | None, str]:
    """A background on which both intents are possible; the same for both twins.

    Nothing is taken away, so a negative needs a photograph known to show no roadwork: the failure, a neighbour, or else any
    of the pool. Its twin stands on the same one, so that backgrounds do not tell the label. Only where the pool has no such
    photograph are positives made alone, on the failure or a neighbour.
    """
    clean = [row for row in candidates if row["label"] == 0]
    if not clean or rng.random() < 0.25:
        spare = corpus.without.get(pool, [])
        if spare:
            clean = [*clean, corpus.rows[spare[int(rng.integers(0, len(spare)))]]]
    if clean:
        return clean[int(rng.integers(0, len(clean)))], ""
    if intent == 0:
        return None, f"no photograph without roadwork in pool {pool} to make a negative from"
    return candidates[int(len(candidates) * rng.random() ** 2)], ""


class _Source:
    """Reads photographs, keeping the last few decoded, and stores what is made."""

    def __init__(self, ctx: JobContext) -> None:
        self._objects = ctx.objects
        self._cache: OrderedDict[str, Pixels | str] = OrderedDict()

    def pixels(self, digest: str) -> Pixels | str:
        """RGB pixels, or why the object cannot serve as a background."""
        if digest not in self._cache:
            self._cache[digest] = self._read(digest)
            if len(self._cache) > CACHE:
                self._cache.popitem(last=False)
        self._cache.move_to_end(digest)
        return self._cache[digest]

    def _read(self, digest: str) -> Pixels | str:
        data = self._objects.get(digest)
        try:
            with Image.open(io.BytesIO(data)) as picture:
                pixels = np.asarray(picture.convert("RGB"), np.uint8)
        except UNREADABLE as error:
            return f"background {digest} is no readable image: {why_unreadable(error)}"
        height, width = pixels.shape[:2]
        if min(height, width) < MIN_SIDE:
            return f"background {digest} is only {width} x {height} pixels"
        factor = MAX_SIDE / max(height, width)
        if factor < 1:
            size = (max(1, round(width * factor)), max(1, round(height * factor)))
            pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
        return pixels

    def store(self, image: Pixels) -> str:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
        return self._objects.put(buffer.getvalue())
