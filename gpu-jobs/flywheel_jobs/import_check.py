"""Job `import-check`: decodes every image of a manifest or a folder and tells what training or the miner would stumble over.

Nothing is changed and nothing is refused: a finding is a row of the report. What makes an image of no use is marked `unusable`.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from .context import JobContext
from .errors import BadInput, EmptySplit, Infrastructure
from .objects import sha256
from .pictures import UNREADABLE, why_unreadable
from .spec import validate

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF")
"""what the miner reads; `sniffFormat` in `src/platform/inference/preprocess.ts`"""
PLAIN_MODES = ("RGB", "L")
"""anything else is converted, which loses transparency, depth or the colours of print"""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".heic", ".avif", ".jp2", ".ppm")
"""files of a folder that are meant to be images; others (labels.csv, README) are passed over"""
BLOCK = 2048
FIRST = 20


@dataclass(frozen=True)
class _Seen:
    """An image that was decoded."""

    name: str
    digest: str
    hash: int
    row: dict[str, Any] | None


def run(ctx: JobContext, job_input: dict[str, Any]) -> dict[str, Any]:
    """The report. Raises BadInput when not exactly one of `manifest` and `folder` is given, EmptySplit when there is no image."""
    if (job_input["manifest"] is None) == (job_input["folder"] is None):
        raise BadInput("give either `manifest` or `folder`, not both and not neither. Nothing was checked.")
    items = list(_of_manifest(ctx, job_input["manifest"]) if job_input["manifest"] is not None else _of_folder(job_input["folder"]))
    if not items:
        raise EmptySplit(f"{job_input['manifest'] or job_input['folder']} holds no image: there is nothing to check.")
    findings: list[dict[str, Any]] = []
    formats: Counter[str] = Counter()
    seen: list[_Seen] = []
    for number, (name, path, row) in enumerate(items, 1):
        found, image = _check(name, path, row, job_input, formats)
        findings += found
        if image is not None:
            seen.append(image)
        ctx.progress.step("import-check", number, len(items), "images")
    findings += _duplicates(seen)
    if job_input["nearDuplicates"] is not None:
        findings += _near(seen, int(job_input["nearDuplicates"]), ctx)
    findings.sort(key=lambda f: (not f["unusable"], f["kind"], f["image"]))
    unusable = {finding["image"] for finding in findings if finding["unusable"]}
    return {
        "findings": ctx.objects.put_jsonl(findings),
        "checked": len(items),
        "usable": len(items) - len(unusable),
        "byKind": dict(sorted(Counter(finding["kind"] for finding in findings).items())),
        "byFormat": dict(sorted(formats.items())),
        "first": findings[:FIRST],
    }


def _finding(image: str, kind: str, message: str, unusable: bool = False, other: str | None = None) -> dict[str, Any]:
    return {"image": image, "kind": kind, "unusable": unusable, "message": message, "other": other}


def _of_manifest(ctx: JobContext, digest: str) -> Iterator[tuple[str, Path, dict[str, Any] | None]]:
    for number, raw in enumerate(ctx.objects.get_jsonl(digest), 1):
        validate("image-row", raw, f"row {number} of the manifest")
        try:
            path = ctx.objects.local(raw["digest"])
        except BadInput:  # no such object: told as a finding
            path = ctx.objects.path(raw["digest"])
        yield raw["digest"], path, raw


def _of_folder(folder: str) -> Iterator[tuple[str, Path, dict[str, Any] | None]]:
    root = Path(folder)
    if not root.is_dir():
        raise BadInput(f"{folder} is no folder. Nothing was checked; give the path of a folder of images.")
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix.lower() in SUFFIXES:
            yield path.relative_to(root).as_posix(), path, None


def _check(
    name: str, path: Path, row: dict[str, Any] | None, limits: dict[str, Any], formats: Counter[str]
) -> tuple[list[dict[str, Any]], _Seen | None]:
    """Findings of one image by itself."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [_finding(name, "missing", f"{path} is not there", unusable=True)], None
    except OSError as error:
        raise Infrastructure(f"{path} cannot be read: {error}. Start the job again when it can.") from error
    digest = sha256(data)
    if row is not None and digest != name:
        return [_finding(name, "corrupt", f"the object's bytes hash to {digest}: they were changed", unusable=True)], None
    if len(data) > int(limits["maxBytes"]):
        return [_finding(name, "too-large", f"{len(data)} bytes, more than {limits['maxBytes']}", unusable=True)], None
    findings = []
    try:
        with Image.open(io.BytesIO(data)) as picture:
            kind, (width, height), mode = picture.format or "unknown", picture.size, picture.mode
            formats[kind] += 1
            if width * height > int(limits["maxPixels"]):
                told = f"{width} x {height} pixels, more than {limits['maxPixels']}"
                return [_finding(name, "too-large", told, unusable=True)], None
            if kind not in FORMATS:
                findings.append(_finding(name, "unsupported-format", f"{kind}: the miner reads {', '.join(FORMATS)} only", unusable=True))
            picture.load()  # header and body: a cut-off file opens, but does not load
            small = picture.convert("L").resize((9, 8), Image.Resampling.BILINEAR)
    except Image.DecompressionBombError as error:
        return [_finding(name, "too-large", str(error), unusable=True)], None
    except UnidentifiedImageError as error:
        return [_finding(name, "corrupt", why_unreadable(error), unusable=True)], None
    except UNREADABLE as error:
        return [_finding(name, "corrupt", f"cannot be decoded: {error}", unusable=True)], None
    if mode not in PLAIN_MODES:
        findings.append(_finding(name, "odd-mode", f"mode {mode} is converted to RGB"))
    if min(width, height) < int(limits["minSide"]):
        findings.append(_finding(name, "too-small", f"{width} x {height}: the shorter side is below {limits['minSide']}"))
    if row is not None and (row["width"], row["height"]) != (width, height):
        told = f"the manifest says {row['width']} x {row['height']}, the image is {width} x {height}"
        findings.append(_finding(name, "wrong-size", told))
    return findings, _Seen(name, digest, _difference_hash(small), row)


def _difference_hash(small: Image.Image) -> int:
    """64 bits of a 9 x 8 grey picture: whether each pixel is brighter than its right neighbour."""
    grey = np.asarray(small, np.int16)
    bits = np.packbits((grey[:, :-1] > grey[:, 1:]).reshape(-1))
    return int.from_bytes(bits.tobytes(), "big")


def _clash(one: _Seen, two: _Seen) -> Iterator[dict[str, Any]]:
    """What a pair of (nearly) equal images breaks beyond being a pair: labels that differ, a border between learned and held out."""
    if one.row is None or two.row is None:
        return
    labels = {one.row["label"], two.row["label"]} - {None}
    if len(labels) > 1:
        yield _finding(two.name, "label-conflict", f"labelled {two.row['label']}, but {one.name} {one.row['label']}", other=one.name)
    side = {"train": "learned", "traffic": "learned"}
    mine, other = (side.get(seen.row["pool"], seen.row["pool"]) for seen in (two, one) if seen.row is not None)
    if mine != other:
        yield _finding(two.name, "leak", f"in pool {two.row['pool']}, but {one.name} is in {one.row['pool']}", other=one.name)


def _duplicates(seen: list[_Seen]) -> list[dict[str, Any]]:
    first: dict[str, _Seen] = {}
    found = []
    for image in seen:
        before = first.setdefault(image.digest, image)
        if before is not image:
            found.append(_finding(image.name, "duplicate", f"the same bytes as {before.name}", unusable=True, other=before.name))
            found += _clash(before, image)
    return found


def _near(seen: list[_Seen], most: int, ctx: JobContext) -> list[dict[str, Any]]:
    """Each image with the nearest earlier one by the hash, when that is within `most` bits; equal bytes are told as duplicates already."""
    unique = list({image.digest: image for image in reversed(seen)}.values())[::-1]
    hashes: NDArray[np.uint64] = np.array([image.hash for image in unique], np.uint64)
    found = []
    for start in range(0, len(unique), BLOCK):
        part = hashes[start : start + BLOCK]
        distance = np.bitwise_count(part[:, None] ^ hashes[None, : start + len(part)]).astype(np.int16)
        rows, columns = np.indices(distance.shape, sparse=True)
        distance[columns >= rows + start] = 99
        nearest = distance.argmin(1)
        for offset in np.flatnonzero(distance.min(1) <= most):
            one, two = unique[int(nearest[offset])], unique[start + int(offset)]
            bits = int(distance[offset, nearest[offset]])
            found.append(_finding(two.name, "near-duplicate", f"{bits} of 64 bits from {one.name}", other=one.name))
            found += _clash(one, two)
        ctx.progress.step("near-duplicates", min(start + BLOCK, len(unique)), len(unique), "images")
    return found
