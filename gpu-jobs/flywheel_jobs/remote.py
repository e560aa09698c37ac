"""Objects of an S3 bucket, read through a cache on the local disk: how a job on a rented machine has what the box at home has.

Keys are `<prefix><first two hex>/<digest>`, the layout of the file store, so that `aws s3 sync` between a home's `objects/` and the bucket
moves one into the other. Every object is verified when it is read, from wherever it comes. Credentials come from the environment or
the machine's role, as boto3 looks for them, and never stand in a spec. What can be computed again (features) lies under
`<prefix>derived/`, the file store's layout too, and is checked by its readers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BadInput, Infrastructure
from .objects import Derived, FileObjects, sha256, write_atomic

ATTEMPTS = 5
TIMEOUT_SECONDS = 60
KEPT_SHARE = 0.9
"""the cache is emptied down to this share of its limit, oldest use first"""
PAGE = 1000
"""names a page of a listing: the most that S3 gives"""
MISSING = ("404", "NoSuchKey", "NotFound")


@dataclass(frozen=True)
class Bucket:
    """Where the objects are. `endpoint` None: AWS itself."""

    name: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None


class RemoteObjects(FileObjects):
    """The object store of a bucket. What is written is uploaded before its digest is returned."""

    def __init__(self, bucket: Bucket, cache: Path, limit: int) -> None:
        """`limit`: bytes that the cache may hold on the local disk. Raises Infrastructure when boto3 is not installed."""
        super().__init__(cache)
        self._bucket, self._limit = bucket, limit
        self._client_: Any = None
        self._owner = -1
        self._held: int | None = None
        self._client()

    def _client(self) -> Any:
        if self._owner != os.getpid():  # a client does not survive a fork
            try:
                import boto3
                from botocore.config import Config
            except ImportError as error:
                raise Infrastructure(
                    "the objects are in an S3 bucket, and boto3 is not installed here. Nothing was started. Install flywheel-jobs[s3]."
                ) from error
            config = Config(
                retries={"max_attempts": ATTEMPTS, "mode": "standard"},
                connect_timeout=TIMEOUT_SECONDS,
                read_timeout=TIMEOUT_SECONDS,
                s3={"addressing_style": "auto" if self._bucket.endpoint is None else "path"},
            )
            session, where = boto3.session.Session(), self._bucket
            self._client_ = session.client("s3", endpoint_url=where.endpoint, region_name=where.region, config=config)
            self._owner = os.getpid()
        return self._client_

    def _key(self, digest: str) -> str:
        self.path(digest)  # refuses what is no digest
        return f"{self._bucket.prefix}{digest[:2]}/{digest}"

    def _ask(self, digest: str, what: str, **more: Any) -> Any:
        """One call of the bucket for an object; None when it is not there. Raises Infrastructure for any other failure."""
        return self._call(f"object {digest}", what, Key=self._key(digest), **more)

    def _call(self, whom: str, what: str, **more: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client(), what)(Bucket=self._bucket.name, **more)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in MISSING:
                return None
            raise self._unreachable(whom, error) from error
        except BotoCoreError as error:
            raise self._unreachable(whom, error) from error

    def _unreachable(self, whom: str, error: Exception) -> Infrastructure:
        return Infrastructure(
            f"{whom} of bucket {self._bucket.name}: {error}. Finished parts were kept. "
            "Check bucket, endpoint and credentials, then start the job again."
        )

    def derived(self, space: str) -> Derived:
        return DerivedKeys(self._call, self._body, f"{self._bucket.prefix}derived/{space}/")

    def has(self, digest: str) -> bool:
        """Whether the object is there, here or in the bucket."""
        return super().has(digest) or self._ask(digest, "head_object") is not None

    def get(self, digest: str) -> bytes:
        """The verified bytes, from the cache or the bucket. A damaged copy in the cache is fetched anew."""
        path = self.path(digest)
        try:
            data = path.read_bytes()
            if sha256(data) == digest:
                os.utime(path)  # the mark of use, which the cache is emptied by
                return data
        except FileNotFoundError:
            pass
        found = self._ask(digest, "get_object")
        if found is None:
            raise BadInput(
                f"object {digest} is not in bucket {self._bucket.name} under {self._bucket.prefix or 'its root'}. Nothing was changed. "
                "Upload it, or correct the reference."
            )
        data = self._body(f"object {digest}", found)
        if sha256(data) != digest:
            raise Infrastructure(
                f"object {digest} is corrupt in bucket {self._bucket.name}: its bytes do not hash to its name. "
                "It was not used. Delete it there and upload it again."
            )
        self._keep(path, data)
        return data

    def _body(self, whom: str, found: Any) -> bytes:
        from botocore.exceptions import BotoCoreError, FlexibleChecksumError

        try:
            data: bytes = found["Body"].read()
            return data
        except FlexibleChecksumError:  # the bucket's own checksum: the digest tells the same, in our words
            return b""
        except (BotoCoreError, OSError) as error:
            raise self._unreachable(whom, error) from error

    def put(self, data: bytes) -> str:
        """Uploads the bytes unless they are there, keeps a copy, and returns their digest."""
        digest = sha256(data)
        there = self._ask(digest, "head_object")
        if there is None or int(there["ContentLength"]) != len(data):
            self._ask(digest, "put_object", Body=data)
        if not super().has(digest):
            self._keep(self.path(digest), data)
        return digest

    def local(self, digest: str) -> Path:
        """A file with the object's bytes; open it at once, since the cache is emptied by use."""
        if not super().has(digest):
            self.get(digest)
        return self.path(digest)

    def _keep(self, path: Path, data: bytes) -> None:
        if len(data) > self._limit:
            raise Infrastructure(
                f"object {path.name} has {len(data)} bytes, more than the whole cache may hold ({self._limit}). "
                "Nothing of it was kept. Raise `cacheBytes` in the spec."
            )
        if self._held is None:
            self._held = sum(size for _, size, _ in self._copies())
        self._held += len(data)
        if self._held > self._limit:
            self._empty(len(data))
        write_atomic(path, data)

    def _copies(self) -> list[tuple[float, int, Path]]:
        """Last use, bytes and path of every object in the cache; what another process takes away meanwhile is left out."""
        found = []
        for path in self.root.glob("[0-9a-f][0-9a-f]/*"):
            try:
                told = path.stat()
            except FileNotFoundError:
                continue
            found.append((told.st_mtime, told.st_size, path))
        return found

    def _empty(self, room: int) -> None:
        """Deletes what was not used for longest until there is room."""
        copies = sorted(self._copies())
        held = sum(size for _, size, _ in copies)
        for _, size, path in copies:
            if held + room <= self._limit * KEPT_SHARE:
                break
            path.unlink(missing_ok=True)
            held -= size
        self._held = held + room


class DerivedKeys:
    """Derived files of a bucket under one prefix. A key is replaced whole or not at all, as S3 has it."""

    def __init__(self, call: Callable[..., Any], body: Callable[[str, Any], bytes], prefix: str) -> None:
        """`call`, `body`: those of the bucket's RemoteObjects, so that client, retries and failures are the same."""
        self._call, self._body, self._prefix = call, body, prefix

    def names(self, suffix: str) -> list[str]:
        """One page of `PAGE` names after the other; keys of folders below are left out."""
        found: list[str] = []
        more: dict[str, str] = {}
        while True:
            page = self._call(self._prefix, "list_objects_v2", Prefix=self._prefix, Delimiter="/", MaxKeys=PAGE, **more)
            keys = [one["Key"] for one in (page or {}).get("Contents", [])]
            found += [key.removeprefix(self._prefix) for key in keys if key.endswith(suffix)]
            if not (page or {}).get("IsTruncated"):
                return sorted(found)
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def get(self, name: str) -> bytes | None:
        key = self._prefix + name
        found = self._call(key, "get_object", Key=key)
        return None if found is None else self._body(key, found)

    def put(self, name: str, data: bytes) -> None:
        key = self._prefix + name
        self._call(key, "put_object", Key=key, Body=data)
