"""Features of images, computed once and kept: by image digest, backbone weights, preprocessing and view.

Two layers: the machine's own cache folder, and the object store, which a rented GPU and the box at home share. Both outlive jobs
and may be deleted at any time. A shard is written whole (by rename) after at most `SHARD` images, so that a killed job loses
seconds. View 0 is the image itself; views 1.. go through the validator's own challenge augmentation with its JPEG, seeded by
image and view, so that every job sees the same views.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from .backbones import Backbone, Bytes, Computed, Floats
from .context import JobContext
from .errors import CorruptImage, OneImageTooBig, says_out_of_memory
from .metrics import Array
from .nets import FeatureKind
from .objects import canonical_json, sha256, write_atomic
from .weights import BackboneRef

VIEW_VERSION = 1
"""raise when the augmentation or its seeding changes"""
BATCH = 32
SHARD = 128
JPEG_QUALITY = 75
"""Pillow's default, which the validator uses"""

Key = tuple[str, int]
"""image digest, view"""


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


def decode(data: bytes, digest: str) -> Image.Image:
    """An RGB picture. Raises CorruptImage naming the image."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptImage(f"object {digest} is no readable image: {error}. Take its row out of the manifest and start again.") from error


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


class FeatureStore:
    """Shards of features in one folder for one feature space, and in a shared folder behind it.

    A shard in the shared folder has a note beside it, written last: its SHA-256 and the images in it, so that only what is
    wanted is fetched and only what is whole is used.
    """

    def __init__(self, folder: Path, shared: Path | None = None) -> None:
        self._folder, self._shared = folder, shared
        self._rows: dict[Key, tuple[Floats, Floats]] = {}
        self._seen: set[str] = set()
        for path in sorted(folder.glob("*.npz")) if folder.is_dir() else []:
            if self._take(path.read_bytes()):
                self._seen.add(path.stem)
            else:
                path.unlink(missing_ok=True)  # a damaged shard is only lost time

    def __contains__(self, key: Key) -> bool:
        return key in self._rows

    def __getitem__(self, key: Key) -> tuple[Floats, Floats]:
        return self._rows[key]

    def _take(self, data: bytes) -> bool:
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as shard:
                digests, views, final, mid = shard["digest"], shard["view"], shard["final"], shard["mid"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return False
        for index, (digest, view) in enumerate(zip(digests.tolist(), views.tolist(), strict=True)):
            self._rows[(digest.decode(), view)] = (final[index], mid[index])
        return True

    def pull(self, keys: Sequence[Key]) -> int:
        """Fetches the shards of the shared folder that hold some of the keys; returns how many rows came."""
        if self._shared is None or not self._shared.is_dir():
            return 0
        wanted, before = set(keys), len(self._rows)
        for note_path in sorted(self._shared.glob("*.json")):
            if note_path.stem in self._seen:
                continue
            try:
                note = json.loads(note_path.read_text())
                if not any((digest, view) in wanted for digest, views in note["images"].items() for view in views):
                    continue
                data = note_path.with_suffix(".npz").read_bytes()
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # unreadable or torn: computed again
            if sha256(data) == note["sha256"] and self._take(data):
                self._seen.add(note_path.stem)
                write_atomic(self._folder / f"{note_path.stem}.npz", data)
        return len(self._rows) - before

    def add(self, keys: Sequence[Key], final: Floats, mid: Floats) -> None:
        """Keeps the rows, durably, in both layers. Raises DiskFull or Infrastructure when the disk refuses."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            digest=np.array([digest.encode() for digest, _ in keys], "S64"),
            view=np.array([view for _, view in keys], np.int32),
            final=final,
            mid=mid,
        )
        data = buffer.getvalue()
        name = sha256("\n".join(f"{digest}:{view}" for digest, view in keys).encode())[:32]
        write_atomic(self._folder / f"{name}.npz", data)
        self._seen.add(name)
        for index, key in enumerate(keys):
            self._rows[key] = (final[index], mid[index])
        if self._shared is not None:
            images: dict[str, list[int]] = {}
            for digest, view in keys:
                images.setdefault(digest, []).append(view)
            write_atomic(self._shared / f"{name}.npz", data)
            write_atomic(self._shared / f"{name}.json", canonical_json({"sha256": sha256(data), "images": images}))


class Extractor:
    """Computes and remembers the features of one backbone."""

    def __init__(self, ctx: JobContext, ref: BackboneRef) -> None:
        """Raises BadInput or Infrastructure when the weights cannot be had."""
        self._ctx = ctx
        self.backbone = Backbone(ref, ctx)
        shared = ctx.objects.derived / "features" / self.backbone.space
        self._store = FeatureStore(ctx.cache_dir / "features" / self.backbone.space, shared)

    def features(self, digests: Sequence[str], views: int = 0, phase: str = "features") -> Features:
        """Features of the images, view 0 and `views` challenge views of each.

        Raises BadInput for an unreadable image, Interrupted on SIGTERM; what was computed is kept.
        """
        width = 1 + views
        wanted = [(digest, view) for digest in dict.fromkeys(digests) for view in range(width)]
        missing = [key for key in wanted if key not in self._store]
        if missing and self._store.pull(missing):
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
