"""Tar shards: many images in few large objects, with an index, for sets so large that a file an image is slow.

Each shard is an ordinary tar (WebDataset reads it too: one file `<digest>.<ext>` an image) and an object like any other. Its
index says where each image lies, so that any order of reading costs one seek and no scan, and every image is still checked
against its own digest. Job `pack` writes them; `ShardedObjects` reads them.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .context import JobContext
from .errors import BadInput
from .objects import Derived, FileObjects, sha256
from .spec import read_manifest

FORMAT = "streetvision-shards/1"
_KINDS = ((b"\xff\xd8", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"))


def run(ctx: JobContext, job_input: dict[str, Any]) -> dict[str, Any]:
    """Job `pack`: the images of a manifest, in its order. Raises BadInput for a missing image."""
    # packing neither learns nor tunes: any pool may be packed
    rows = read_manifest(ctx.objects, job_input["manifest"], "manifest", refuse_test=False)
    shards: list[dict[str, Any]] = []
    writer = _Writer()
    for number, row in enumerate(rows, 1):
        data = ctx.objects.get(row.digest)
        if writer.entries and writer.size + len(data) > int(job_input["maxShardBytes"]):
            shards.append(writer.close(ctx.objects))
            writer = _Writer()
        writer.add(row.digest, data)
        ctx.progress.step("pack", number, len(rows), "images")
    if writer.entries:
        shards.append(writer.close(ctx.objects))
    return {
        "index": ctx.objects.put_json({"format": FORMAT, "shards": shards}),
        "shards": len(shards),
        "images": len(rows),
        "bytes": sum(shard["bytes"] for shard in shards),
    }


class _Writer:
    """One shard in memory; equal images in equal order give equal bytes."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115, closed in close()
        self.entries: list[list[Any]] = []

    @property
    def size(self) -> int:
        return self._buffer.tell()

    def add(self, digest: str, data: bytes) -> None:
        kind = next((kind for magic, kind in _KINDS if data.startswith(magic)), "bin")
        info = tarfile.TarInfo(f"{digest}.{kind}")  # time and owner stay 0
        info.size = len(data)
        offset = self._buffer.tell() + tarfile.BLOCKSIZE
        self._tar.addfile(info, io.BytesIO(data))
        self.entries.append([digest, offset, len(data)])

    def close(self, objects: FileObjects) -> dict[str, Any]:
        self._tar.close()
        data = self._buffer.getvalue()
        return {"tar": objects.put(data), "index": objects.put_json(self.entries), "bytes": len(data), "images": len(self.entries)}


class ShardedObjects(FileObjects):
    """An object store that looks into tar shards first; what is in none of them is read as an object of its own."""

    def __init__(self, base: FileObjects, index: str) -> None:
        """Raises BadInput when `index` is no index of the `pack` job."""
        super().__init__(base.root)
        self._base = base
        told = base.get_json(index)
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            raise BadInput(f"object {index} is no index of tar shards ({FORMAT}). Give the `index` of a pack job.")
        self._place: dict[str, tuple[str, int, int]] = {}
        for shard in told["shards"]:
            for digest, offset, size in base.get_json(shard["index"]):
                self._place[digest] = (shard["tar"], offset, size)
        self._open: dict[str, int] = {}
        self._owner = os.getpid()

    def shards(self) -> Iterable[str]:
        """Digests of the tars."""
        return {tar for tar, _, _ in self._place.values()}

    def has(self, digest: str) -> bool:
        return digest in self._place or self._base.has(digest)

    def put(self, data: bytes) -> str:
        return self._base.put(data)

    def local(self, digest: str) -> Path:
        return self._base.local(digest)

    def derived(self, space: str) -> Derived:
        return self._base.derived(space)

    def get(self, digest: str) -> bytes:
        place = self._place.get(digest)
        if place is None:
            return self._base.get(digest)
        tar, offset, size = place
        try:
            data = os.pread(self._descriptor(tar), size, offset)
        except OSError:
            data = b""
        # a shard that is gone or damaged: the image may still be there by itself
        return data if sha256(data) == digest else self._base.get(digest)

    def _descriptor(self, tar: str) -> int:
        if self._owner != os.getpid():  # a worker process opens its own
            self._open, self._owner = {}, os.getpid()
        if tar not in self._open:
            self._open[tar] = os.open(self.local(tar), os.O_RDONLY | os.O_CLOEXEC)
        return self._open[tar]
