"""Features of images, computed once and kept: by image digest, backbone weights, preprocessing and view.

Kept after every `SHARD` views, so that a killed job loses seconds, on the machine and in the object store (`feature_store`). View 0 is
the image itself; views 1.. go through the validator's own challenge augmentation with its JPEG, seeded by image and view, so that
every job sees the same views.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .backbones import Backbone, Bytes, Computed, Floats
from .context import JobContext
from .errors import OneImageTooBig, says_out_of_memory
from .feature_store import FeatureStore, Key
from .metrics import Array
from .nets import FeatureKind
from .pictures import decode
from .weights import BackboneRef

VIEW_VERSION = 1
"""raise when the augmentation or its seeding changes"""
BATCH = 32
SHARD = 128
JPEG_QUALITY = 75
"""Pillow's default, which the validator uses"""


@dataclass(frozen=True)
class Features:
    """Features of n images in 1 + views views: arrays [n, 1 + views, d]."""

    final: Floats
    mid: Floats

    def of(self, kind: FeatureKind) -> Floats:
        """The array of one kind; `both`: final and mid side by side, as `feature_net` has them."""
        if kind == "both":
            return np.concatenate([self.final, self.mid], axis=2)
        return self.final if kind == "final" else self.mid

    def scale(self, kind: FeatureKind, mid: float) -> Array | None:
        """For `Rows.scale`: what each feature of the kind may count; None: alike. `mid`: `midScale` of HeadOptions."""
        if kind != "both" or mid == 1:
            return None
        return np.repeat([1.0, mid], [self.final.shape[2], self.mid.shape[2]])


def challenge_view(picture: Image.Image, digest: str, view: int) -> Image.Image:
    """View `view` >= 1 of an image, the same in every job."""
    return augmented(picture, np.random.default_rng(np.random.SeedSequence((int(digest[:16], 16), VIEW_VERSION, view))))


def augmented(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """One draw of the validator's challenge augmentation: a level of 0..3, all alike, then JPEG of quality 75."""
    from .challenges import augment

    out: Any = augment(picture, int(rng.integers(0, 4)), rng)
    image = out if isinstance(out, Image.Image) else Image.fromarray(out)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


class Extractor:
    """Computes and remembers the features of one backbone."""

    def __init__(self, ctx: JobContext, ref: BackboneRef) -> None:
        """Raises BadInput or Infrastructure when the weights cannot be had."""
        self._ctx = ctx
        self.backbone = Backbone(ref, ctx)
        space = self.backbone.space
        dims = (self.backbone.dimensions["final"], self.backbone.dimensions["mid"])
        shared = ctx.objects.derived(f"features/{space}")
        self._store = FeatureStore(ctx.cache_dir / "features" / space, dims, shared, self._tell)

    def _tell(self, what: str) -> None:
        self._ctx.progress.step("shared-features", 1, 1, "notes", what)

    def features(self, digests: Sequence[str], views: int = 0, phase: str = "features") -> Features:
        """Features of the images, view 0 and `views` challenge views of each.

        Raises BadInput for an unreadable image, Interrupted on SIGTERM; what was computed is kept.
        """
        width = 1 + views
        wanted = [(digest, view) for digest in dict.fromkeys(digests) for view in range(width)]
        missing = [key for key in wanted if key not in self._store]
        if missing:
            self._store.pull(missing, lambda done: self._ctx.progress.step(phase, done, len(missing), "views", "from the object store"))
            missing = [key for key in missing if key not in self._store]
        if missing:
            self._compute(missing, phase)
        else:
            self._ctx.progress.step(phase, len(wanted), len(wanted), "views", "all cached")
        dims = self.backbone.dimensions
        final = np.empty((len(digests), width, dims["final"]), np.float32)
        mid = np.empty((len(digests), width, dims["mid"]), np.float32)
        for index, digest in enumerate(digests):
            for view in range(width):
                final[index, view], mid[index, view] = self._store[(digest, view)]
        return Features(final, mid)

    def keep(self, digests: Sequence[str], final: Floats, mid: Floats) -> None:
        """Keeps features [n, d] of the images as they are (view 0), computed elsewhere by these very weights."""
        self._store.add([(digest, 0) for digest in digests], final, mid)

    def _compute(self, keys: list[Key], phase: str) -> None:
        pending: list[Key] = []
        parts: list[dict[Computed, Floats]] = []

        def flush() -> None:
            if pending:
                self._store.add(pending, np.concatenate([part["final"] for part in parts]), np.concatenate([part["mid"] for part in parts]))
                pending.clear()
                parts.clear()

        done = 0
        try:
            for chunk, pixels in self._batches(keys):
                parts.append(self._guarded(pixels))
                pending.extend(chunk)
                done += len(chunk)
                if len(pending) >= SHARD:
                    flush()
                self._ctx.progress.step(phase, done, len(keys), "views")
        finally:
            flush()

    def _guarded(self, pixels: Bytes) -> dict[Computed, Floats]:
        """A batch that does not fit into memory is halved, down to one image."""
        try:
            return self.backbone.compute(pixels)
        except Exception as error:
            if not says_out_of_memory(error):
                raise
            if len(pixels) == 1:
                raise OneImageTooBig(
                    f"the features of one image at a time do not fit into memory: {error}. Finished features were kept. "
                    "Use a bigger machine, a smaller backbone or a lower resolution."
                ) from error
            half = len(pixels) // 2
            first, second = self._guarded(pixels[:half]), self._guarded(pixels[half:])
            return {"final": np.concatenate([first["final"], second["final"]]), "mid": np.concatenate([first["mid"], second["mid"]])}

    def _batches(self, keys: list[Key]) -> Iterator[tuple[list[Key], Bytes]]:
        batch = self._ctx.batch(BATCH)
        chunks = [keys[start : start + batch] for start in range(0, len(keys), batch)]
        prepare = _Preparer(self._ctx, self.backbone)
        if self._ctx.threads < 2:
            yield from ((chunk, prepare(chunk)) for chunk in chunks)
            return
        # the next batch is decoded and augmented while this one is in the network
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(prepare, chunks[0])
            for index, chunk in enumerate(chunks):
                pixels = ahead.result()
                if index + 1 < len(chunks):
                    ahead = pool.submit(prepare, chunks[index + 1])
                yield chunk, pixels


class _Preparer:
    """Reads, augments and crops the images of a batch; the views of one image decode it once."""

    def __init__(self, ctx: JobContext, backbone: Backbone) -> None:
        self._ctx = ctx
        self._preprocess = backbone.preprocess
        self._last: tuple[str, Image.Image] | None = None

    def __call__(self, keys: Sequence[Key]) -> Bytes:
        return np.stack([self._one(digest, view) for digest, view in keys])

    def _one(self, digest: str, view: int) -> Bytes:
        if self._last is None or self._last[0] != digest:
            self._last = (digest, decode(self._ctx.objects.get(digest), digest))
        picture = self._last[1]
        return self._preprocess.pixels(picture if view == 0 else challenge_view(picture, digest, view))


def extractor_pool(ctx: JobContext) -> Callable[[BackboneRef], Extractor]:
    """Hands out one extractor for each distinct backbone, so that members on the same one share a single pass."""
    made: dict[BackboneRef, Extractor] = {}

    def of(ref: BackboneRef) -> Extractor:
        if ref not in made:
            made[ref] = Extractor(ctx, ref)
        return made[ref]

    return of
