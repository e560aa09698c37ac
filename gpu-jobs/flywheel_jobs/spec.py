"""Specs and manifests as the jobs see them: checked against the JSON Schemas written from the zod contracts.

`schema/*.json` is generated (`scripts/schemas.mjs`); never edit it by hand. Nothing here computes on images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import BadInput, WrongSpec
from .objects import FileObjects

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

Pool = Literal["train", "calibrate", "validate", "test", "traffic"]


@cache
def _validator(name: str) -> Validator:
    from jsonschema import Draft202012Validator

    text = resources.files(__package__).joinpath("schema", f"{name}.json").read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(text))


def validate(name: str, value: Any, what: str, error: type[BadInput] = BadInput) -> None:
    """Checks `value` against the schema `name` (file name without `.json`). Raises `error` that names each wrong field."""
    errors = sorted(_validator(name).iter_errors(value), key=lambda error: list(map(str, error.absolute_path)))
    if errors:
        shown = "; ".join(f"{'.'.join(map(str, error.absolute_path)) or '(top)'}: {error.message}" for error in errors[:5])
        more = f" (and {len(errors) - 5} more)" if len(errors) > 5 else ""
        raise error(f"{what} does not fit the contract `{name}`: {shown}{more}. Nothing was started; correct it and start again.")


def with_defaults(name: str, value: dict[str, Any]) -> dict[str, Any]:
    """A copy with the defaults of a schema filled in, also those of objects inside it."""
    return _filled(dict(_validator(name).schema), value)


def _filled(schema: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    out = dict(value)
    for key, field in schema.get("properties", {}).items():
        if key not in out and "default" in field:
            out[key] = field["default"]
        if isinstance(out.get(key), dict) and "properties" in field:
            out[key] = _filled(field, out[key])
        items = field.get("items")
        if isinstance(out.get(key), list) and isinstance(items, dict) and "properties" in items:
            out[key] = [_filled(items, one) if isinstance(one, dict) else one for one in out[key]]
    return out


@dataclass(frozen=True)
class Spec:
    """What `flywheel-job run` was asked to do."""

    job: str
    name: str
    objects: dict[str, Any]
    """where the objects are, see `store`"""
    cache_dir: Path
    work_dir: Path
    threads: int
    batch_divisor: int
    input: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> Spec:
        """Reads and checks a spec file and the job's own input. Raises WrongSpec."""
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise WrongSpec(f"the spec {path} cannot be read: {error}. Nothing was started.") from error
        _same_version(raw, path)
        validate("job-spec", raw, f"the spec {path}", WrongSpec)
        validate(f"{raw['job']}.input", raw["input"], f"the input of job {raw['job']}", WrongSpec)
        return cls(
            job=raw["job"],
            name=raw["name"],
            objects=raw["objects"],
            cache_dir=Path(raw["cacheDir"]),
            work_dir=Path(raw["workDir"]),
            threads=int(raw["threads"]),
            batch_divisor=int(raw.get("batchDivisor", 1)),
            input=with_defaults(f"{raw['job']}.input", raw["input"]),
        )


def _same_version(raw: Any, path: str | Path) -> None:
    """Another version is told by its number, before its fields are found strange. Raises WrongSpec."""
    spoken = _validator("job-spec").schema["properties"]["version"]["const"]  # type: ignore[index, unused-ignore]
    found = raw.get("version") if isinstance(raw, dict) else None
    if isinstance(found, int) and found != spoken:
        raise WrongSpec(
            f"the spec {path} is of contract version {found}, this flywheel-job speaks {spoken}. Nothing was started. "
            "Bring the flywheel and gpu-jobs to the same release."
        )


@dataclass(frozen=True)
class ImageRow:
    """One image of a manifest; see `ImageRow` in `src/domain/contracts/common.ts`."""

    digest: str
    label: int | None
    truth: str
    pool: Pool
    group: str
    source: str
    parents: tuple[str, ...]
    provider: str | None
    intent: int | None
    weight: float
    twin: str | None = None

    @property
    def synthetic(self) -> bool:
        """Made by a generator, not photographed."""
        return self.provider is not None


def read_manifest(objects: FileObjects, digest: str, what: str, refuse_test: bool = True) -> list[ImageRow]:
    """The rows of a manifest, each image once. Raises BadInput for a wrong row, a repeated image, and (unless told) a `test` row."""
    rows: list[ImageRow] = []
    seen: set[str] = set()
    for number, raw in enumerate(objects.get_jsonl(digest), 1):
        validate("image-row", raw, f"row {number} of the {what}")
        if raw["digest"] in seen:
            raise BadInput(f"the {what} names image {raw['digest']} twice (row {number}). Write every image once.")
        seen.add(raw["digest"])
        rows.append(
            ImageRow(
                digest=raw["digest"],
                label=raw["label"],
                truth=raw["truth"],
                pool=raw["pool"],
                group=raw["group"],
                source=raw["source"],
                parents=tuple(raw.get("parents", ())),
                provider=raw.get("provider"),
                intent=raw.get("intent"),
                weight=float(raw.get("weight", 1)),
                twin=raw.get("twin"),
            )
        )
    if refuse_test:
        forbid_test(rows, what)
    return rows


def forbid_test(rows: Iterable[ImageRow], what: str) -> None:
    """Raises BadInput when a row is of pool `test`: test images are never mined, learned from, or tuned on."""
    found = [row.digest for row in rows if row.pool == "test"]
    if found:
        raise BadInput(
            f"the {what} holds {len(found)} image(s) of pool `test`, the first {found[0]}: test is never learned from or tuned on. "
            "Nothing was started; take these rows out."
        )


def forbid_leaks(rows: Iterable[ImageRow], what: str) -> None:
    """Raises BadInput when a group, or an image and its parent, stand on both sides of a border between learned and held-out pools."""
    side = {"train": "learned", "traffic": "learned"}
    rows = list(rows)
    of_group: dict[str, str] = {}
    of_image = {row.digest: side.get(row.pool, row.pool) for row in rows}
    for row in rows:
        mine = side.get(row.pool, row.pool)
        other = of_group.setdefault(row.group, mine)
        if other != mine:
            raise BadInput(f"the {what} leaks: group {row.group!r} stands in {other} and in {mine}. Put the whole group into one pool.")
        for parent in row.parents:
            if of_image.get(parent, mine) != mine:
                raise BadInput(
                    f"the {what} leaks: image {row.digest} of pool {row.pool} was made from {parent} of pool {of_image[parent]}. "
                    "A derived image inherits its parents' pool; take it out."
                )
