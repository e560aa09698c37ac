"""Content-addressed objects on a file system: the name of an object is the SHA-256 of its bytes.

Layout `<root>/<first two hex>/<digest>`, shared with the TypeScript side. Writing is durable and idempotent
(temporary file, fsync, rename), reading verifies: bytes that do not hash to their name are never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from .errors import BadInput, Infrastructure, not_written

_DIGEST = re.compile(r"^[0-9a-f]{64}$")


def sha256(data: bytes) -> str:
    """SHA-256 in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Compact JSON with sorted keys, UTF-8: equal content has equal bytes."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def write_atomic(path: Path, data: bytes) -> None:
    """Writes beside the target, syncs, renames: a reader sees the old bytes or the new, never a part.

    Raises DiskFull or Infrastructure when the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".part-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise not_written(path, error) from error


class Derived(Protocol):
    """Files by name that can be computed again. Each is written whole; who reads one checks it by what it knows of it."""

    def names(self, suffix: str) -> list[str]:
        """Names that end so, sorted. Raises Infrastructure when the place cannot be read."""
        ...

    def get(self, name: str) -> bytes | None:
        """The bytes, unverified; None when there is no such file. Raises Infrastructure when it cannot be read."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Writes or replaces a file. Raises DiskFull or Infrastructure."""
        ...


class DerivedFiles:
    """Derived files in one folder, which is made when the first is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self, suffix: str) -> list[str]:
        try:
            return sorted(path.name for path in self._folder.iterdir() if path.name.endswith(suffix))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Infrastructure(f"{self._folder} cannot be read: {error}. Correct its permissions, or delete it.") from error

    def get(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Infrastructure(f"{self._folder / name} cannot be read: {error}. Correct its permissions, or delete it.") from error

    def put(self, name: str, data: bytes) -> None:
        write_atomic(self._folder / name, data)


class FileObjects:
    """An object store in one directory."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path(self, digest: str) -> Path:
        """Where the object lies (it need not exist). Raises BadInput when `digest` is no SHA-256."""
        if not _DIGEST.match(digest):
            raise BadInput(f"not a SHA-256 digest in lower-case hex: {digest!r}. Correct the reference in the job's input.")
        return self.root / digest[:2] / digest

    def local(self, digest: str) -> Path:
        """A file with the object's bytes, for whoever can not take them from memory; missing where the object is."""
        return self.path(digest)

    def derived(self, space: str) -> Derived:
        """A part of the store for what can be computed again (`features/...`): shared by all machines, named by its readers, no
        object, in no backup, and deletable at any time."""
        return DerivedFiles(self.root / "derived" / space)

    def has(self, digest: str) -> bool:
        """Whether the object is there (its bytes are checked on reading, not here)."""
        return self.path(digest).is_file()

    def put(self, data: bytes) -> str:
        """Stores the bytes and returns their digest; the same bytes twice are one object."""
        digest = sha256(data)
        path = self.path(digest)
        # a present object of another size is a torn copy: write it anew
        if not (path.is_file() and path.stat().st_size == len(data)):
            write_atomic(path, data)
        return digest

    def put_file(self, path: Path) -> str:
        """Stores the contents of a file."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise Infrastructure(f"could not read {path}: {error}.") from error
        return self.put(data)

    def get(self, digest: str) -> bytes:
        """The verified bytes. Raises BadInput when the object is missing, Infrastructure when it is unreadable or corrupt."""
        path = self.path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise BadInput(
                f"object {digest} is not in the store {self.root}. Nothing was changed. Import it again, or correct the reference."
            ) from error
        except OSError as error:
            raise Infrastructure(f"object {digest} cannot be read: {error}. Start the job again when the store is back.") from error
        if sha256(data) != digest:
            raise Infrastructure(
                f"object {digest} is corrupt in {self.root}: its bytes hash to {sha256(data)}. "
                "It was left in place and not used. Delete that file and restore or import it again."
            )
        return data

    def put_jsonl(self, rows: Iterable[Any]) -> str:
        """Stores rows in the given order: one compact JSON object a line, a newline after each."""
        text = "".join(json.dumps(row, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        return self.put(text.encode())

    def get_jsonl(self, digest: str) -> list[dict[str, Any]]:
        """The rows of a JSON Lines object. Raises BadInput naming the line that is no JSON object."""
        rows: list[dict[str, Any]] = []
        try:
            text = self.get(digest).decode()
        except UnicodeDecodeError as error:
            raise BadInput(f"object {digest} is no JSON Lines text: {error}. Correct the reference.") from error
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise BadInput(f"object {digest}, line {number} is no JSON: {error}. Correct the reference.") from error
            if not isinstance(row, dict):
                raise BadInput(f"object {digest}, line {number} is no JSON object. Correct the reference.")
            rows.append(row)
        return rows

    def put_json(self, value: Any) -> str:
        """Stores canonical JSON (sorted keys, compact)."""
        return self.put(canonical_json(value))

    def get_json(self, digest: str) -> Any:
        """A JSON object. Raises BadInput when it is none."""
        try:
            return json.loads(self.get(digest))
        except ValueError as error:
            raise BadInput(f"object {digest} is no JSON: {error}. Correct the reference.") from error
