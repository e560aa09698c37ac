"""Where features are kept: shards in the machine's own cache folder, and the same shards in the object store for all machines.

Both layers outlive jobs and may be deleted at any time. In the object store (`derived/features/SPACE`, a folder or a bucket) a shard has
a note beside it, written last: its SHA-256 and the images in it, so that only what is wanted is fetched and only what is whole is
used. A shard is named by its bytes: two jobs that write at once write the same, or each its own. What is torn or foreign is passed
over and computed again. An object store that fails here costs time, never the job: it is told once, and the job goes on with
its own folder alone.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .backbones import Floats
from .errors import DiskFull, Infrastructure
from .objects import Derived, canonical_json, sha256, write_atomic

READERS = 8
"""files of the object store that are read at once"""

Key = tuple[str, int]
"""image digest, view"""


class FeatureStore:
    """The rows of one feature space, by image and view."""

    def __init__(
        self, folder: Path, dims: tuple[int, int], shared: Derived | None = None, tell: Callable[[str], None] = lambda _what: None
    ) -> None:
        """`dims`: columns of `final` and `mid`. `tell`: hears, once, why the shared layer is not used any more."""
        self._folder, self._dims, self._shared, self._tell = folder, dims, shared, tell
        self._rows: dict[Key, tuple[Floats, Floats]] = {}
        self._seen: set[str] = set()
        self._notes: dict[str, tuple[str, set[Key]] | None] = {}
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
        """The rows of a shard; False, and none of them, when it is torn or of another feature space."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as shard:
                keys = list(zip((one.decode() for one in shard["digest"].tolist()), shard["view"].tolist(), strict=True))
                final, mid = shard["final"], shard["mid"]
        except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile):
            return False
        if (final.shape, mid.shape) != ((len(keys), self._dims[0]), (len(keys), self._dims[1])):
            return False
        for index, key in enumerate(keys):
            self._rows.setdefault(key, (final[index], mid[index]))  # what a table was made of stays
        return True

    def pull(self, keys: Sequence[Key], step: Callable[[int], None] = lambda _done: None) -> None:
        """Fetches the shards of the object store that hold some of the keys.

        `step` is called often, with the number of keys that are here. Raises DiskFull or Infrastructure when the own folder refuses.
        """
        wanted = set(keys)
        for file, data in self._read(self._new_notes(), lambda: step(0)):
            self._notes[file.removesuffix(".json")] = _read_note(data)
        useful = [name for name, note in sorted(self._notes.items()) if name not in self._seen and note is not None and note[1] & wanted]
        for file, data in self._read([f"{name}.npz" for name in useful], lambda: step(sum(key in self._rows for key in wanted))):
            name = file.removesuffix(".npz")
            note = self._notes[name]
            if note is not None and sha256(data) == note[0] and self._take(data):
                self._seen.add(name)
                write_atomic(self._folder / file, data)
            else:
                self._notes[name] = None  # torn or foreign: not asked for again

    def _new_notes(self) -> list[str]:
        if self._shared is None:
            return []
        try:
            files = self._shared.names(".json")
        except Infrastructure as error:
            self._leave(error)
            return []
        names = (file.removesuffix(".json") for file in files)
        return [f"{name}.json" for name in names if name not in self._notes and name not in self._seen]

    def _read(self, files: Sequence[str], step: Callable[[], None]) -> Iterator[tuple[str, bytes]]:
        """The files that are still there; ends early when the object store fails."""
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(files), READERS):
                step()
                part = files[start : start + READERS]
                if self._shared is None:
                    return
                try:
                    found = list(pool.map(self._shared.get, part))
                except Infrastructure as error:
                    self._leave(error)
                    return
                yield from ((file, data) for file, data in zip(part, found, strict=True) if data is not None)

    def _leave(self, error: Infrastructure) -> None:
        self._shared = None
        self._tell(f"this job goes on with the features of this machine alone, and computes what is missing: {error}")

    def add(self, keys: Sequence[Key], final: Floats, mid: Floats) -> None:
        """Keeps the rows, durably, in the own folder, and in the object store if it takes them.

        Raises DiskFull or Infrastructure when the own folder refuses, and DiskFull when the object store is full too: then the job's
        result would have no room either.
        """
        buffer = io.BytesIO()
        np.savez(
            buffer,
            digest=np.array([digest.encode() for digest, _ in keys], "S64"),
            view=np.array([view for _, view in keys], np.int32),
            final=final,
            mid=mid,
        )
        data = buffer.getvalue()
        digest = sha256(data)
        name = digest[:32]
        write_atomic(self._folder / f"{name}.npz", data)
        self._seen.add(name)
        for index, key in enumerate(keys):
            self._rows[key] = (final[index], mid[index])
        if self._shared is None:
            return
        images: dict[str, list[int]] = {}
        for image, view in keys:
            images.setdefault(image, []).append(view)
        try:
            self._shared.put(f"{name}.npz", data)
            self._shared.put(f"{name}.json", canonical_json({"sha256": digest, "images": images}))
        except DiskFull:
            raise
        except Infrastructure as error:
            self._leave(error)


def _read_note(data: bytes) -> tuple[str, set[Key]] | None:
    """A shard's SHA-256 and its keys; None when the note is torn or foreign."""
    try:
        note = json.loads(data)
        return str(note["sha256"]), {(image, view) for image, views in note["images"].items() for view in views}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
