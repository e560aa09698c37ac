"""Challenge images as a validator profile has them made: the job `challenges` and the augmentation behind it.

The distortions are those of the subnet's validator (after DeeperForensics-1.0), quirks included: every distortion takes
and gives 8-bit pixels, its colour arithmetic runs on a video-range YCbCr whose chroma is centred on 0.5, and values are
cut off, not rounded. What the miner is asked is what this module makes: a JPEG of quality 75, 224 x 224 or of the source's
own size. The profiles' figures are in `schema/profiles.json`, written from `src/domain/profiles`: nothing of them is
repeated here. No training and no synthesis here.
"""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ._light import InterpolationMode, tvf
from .errors import BadInput, EmptySplit, OneClass
from .pictures import decode

if TYPE_CHECKING:
    from .context import JobContext

Pixels = NDArray[np.uint8]
"""height x width x 3, RGB"""
Row = dict[str, Any]

CROP_MARGIN: Final = 10
"""pixels kept beyond a mask centre when the crop is shifted to hold it"""
BENCHMARK: Final = "benchmark"
"""rows whose source begins so are benchmark tasks"""


@dataclass(frozen=True)
class Level:
    """What a challenge of one level goes through: `highest` is the top level each distortion may draw (0 is none)."""

    number: int
    probability: float
    geometry: str
    distortions: tuple[str, ...]
    highest: int


@dataclass(frozen=True)
class Rules:
    """The drawing rules of one profile. `kinds`: share of each kind of source; `side` None: images keep their size."""

    name: str
    positive: float
    kinds: dict[str, float]
    side: int | None
    quality: int
    rotation: float
    crop_area: tuple[float, float]
    levels: tuple[Level, ...]
    parameters: dict[str, tuple[float, ...]]


@cache
def rules_of(name: str) -> Rules:
    """The profile of that name. Raises BadInput naming the profiles there are."""
    known = json.loads(resources.files(__package__).joinpath("schema", "profiles.json").read_text(encoding="utf-8"))
    if name not in known:
        raise BadInput(f"unknown validator profile {name!r}; this version knows {', '.join(known)}.")
    draw, image = known[name]["draw"], known[name]["image"]
    sources = draw["sources"]
    return Rules(
        name=name,
        positive=draw["positiveShare"],
        kinds={
            "real": sources["real"],
            "synthetic": sources["textToImage"] + sources["imageToImage"],
            "benchmark": sources["benchmark"],
        },
        side=image["side"],
        quality=image["jpegQuality"],
        rotation=image["maxRotationDegrees"],
        crop_area=(image["cropArea"][0], image["cropArea"][1]),
        levels=tuple(
            Level(x["level"], x["probability"], x["geometry"], tuple(x["distortions"]), x["maxDistortionLevel"]) for x in image["levels"]
        ),
        parameters={x["name"]: tuple(x["parameters"]) for x in image["distortions"]},
    )


STANDARD: Final = rules_of("2026-01")
"""the profile whose augmentation serves for training and for measuring instability, too"""
PARAMETERS: Final = STANDARD.parameters
"""parameter of each distortion by its level 1..5, mildest first"""


def saturation(image: Pixels, factor: float) -> Pixels:
    """CS: chroma scaled by `factor` about the middle in YCbCr, then cast to 8 bit."""
    ycc = _to_ycbcr(image)
    ycc[:, :, 1:] = 0.5 + (ycc[:, :, 1:] - 0.5) * factor
    return _cast(_from_ycbcr(ycc))


def contrast(image: Pixels, factor: float) -> Pixels:
    """CC: every pixel times `factor`, then cast to 8 bit."""
    return _cast(image.astype(np.float32) * np.float32(factor))


def resample(image: Pixels, factor: int) -> Pixels:
    """JPEG: bilinear resize down by the whole number `factor` and up again (no antialiasing, as the validator does)."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (width // factor, height // factor))
    return np.asarray(cv2.resize(small, (width, height)), np.uint8)


def colour_noise(image: Pixels, variance: float, rng: np.random.Generator) -> Pixels:
    """GNC: Gaussian noise of `variance` on each of Y, Cb and Cr on the 0-1 scale, clipped."""
    ycc = _to_ycbcr(image) / 255.0
    noisy = (ycc + math.sqrt(variance) * rng.standard_normal(ycc.shape)) * 255.0
    return _cast(_from_ycbcr(noisy.astype(np.float32)))


def gaussian_blur(image: Pixels, kernel: int) -> Pixels:
    """GB: Gaussian blur with an odd `kernel` size in pixels and sigma kernel / 6."""
    return np.asarray(cv2.GaussianBlur(image, (kernel, kernel), kernel / 6.0), np.uint8)


def distort(image: Pixels, name: str, level: int, rng: np.random.Generator) -> Pixels:
    """One named distortion at level 0 (none) to 5."""
    if level == 0:
        return image
    parameter = PARAMETERS[name][level - 1]
    if name == "CS":
        return saturation(image, parameter)
    if name == "CC":
        return contrast(image, parameter)
    if name == "JPEG":
        return resample(image, int(parameter))
    if name == "GNC":
        return colour_noise(image, parameter, rng)
    return gaussian_blur(image, int(parameter))


def crop_box(
    width: int, height: int, rng: np.random.Generator, centre: tuple[int, int] | None = None, area: tuple[float, float] = STANDARD.crop_area
) -> tuple[int, int, int]:
    """A square crop (top, left, side) covering a uniform share of the area, as torchvision's RandomResizedCrop with ratio 1.

    Ten draws that do not fit fall back to the centre square. With a mask `centre` (x, y) the crop is shifted to hold it.
    """
    for _ in range(10):
        side = round(math.sqrt(width * height * rng.uniform(*area)))
        if 0 < side <= width and side <= height:
            top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
            break
    else:
        side = min(width, height)
        top, left = (height - side) // 2, (width - side) // 2
    if centre is not None:
        left, top = _shift(left, side, width, centre[0]), _shift(top, side, height, centre[1])
    return top, left, side


def augment(
    image: Pixels | Image.Image,
    level: int,
    rng: np.random.Generator,
    flips: bool = False,
    centre: tuple[int, int] | None = None,
    rules: Rules = STANDARD,
) -> Pixels:
    """The challenge view of an image at a level of the profile, as height x width x 3 RGB before JPEG.

    In `2026-01` all are 224 x 224: level 0 is a centre crop; level 1 rotation and random resized crop; 2 and 3 add
    distortions. `flips`: horizontal and vertical flips stand in the validator's code but never fire (their stored
    parameters start empty), so off is faithful.
    """
    picture = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")
    rule = next(one for one in rules.levels if one.number == level)
    if rule.geometry == "none" or rules.side is None:
        return np.asarray(picture, np.uint8)
    if rule.geometry == "centre-crop":
        square = tvf.center_crop(picture, [min(picture.size)])
        return np.asarray(tvf.resize(square, [rules.side], InterpolationMode.BILINEAR), np.uint8)
    tensor = tvf.rotate(tvf.to_tensor(picture), float(rng.uniform(-rules.rotation, rules.rotation)), InterpolationMode.BILINEAR)
    top, left, side = crop_box(picture.width, picture.height, rng, centre, rules.crop_area)
    tensor = tvf.resized_crop(tensor, top, left, side, side, [rules.side, rules.side], InterpolationMode.BILINEAR, antialias=True)
    if flips:
        if rng.random() < 0.5:
            tensor = tvf.hflip(tensor)
        if rng.random() < 0.5:
            tensor = tvf.vflip(tensor)
    pixels = np.ascontiguousarray((tensor.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy())
    for name in rule.distortions:
        pixels = distort(pixels, name, int(rng.integers(0, rule.highest + 1)), rng)
    return pixels


def encode(pixels: Pixels, quality: int = STANDARD.quality) -> bytes:
    """Pillow JPEG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def run(ctx: JobContext, job_input: Row) -> Row:
    """Job `challenges`. The same manifest, mode, count and seed give the same set digest."""
    # Images are small: one thread an image and several images at once beats several threads an image by far.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = ctx.objects.get_jsonl(job_input["manifest"])
    mode, count, seed = job_input["mode"], int(job_input["count"]), int(job_input["seed"])
    flips = bool(job_input.get("flips", False))
    rules = rules_of(str(job_input.get("profile")))
    if not rows:
        raise EmptySplit(f"manifest {job_input['manifest']} holds no image: there is nothing to make challenges from.")
    strata = _strata(rows, rules) if mode == "draw" else {}
    total = count if mode == "draw" else count * len(rows)
    made: list[Row] = []
    levels: Counter[int] = Counter()
    kinds: Counter[str] = Counter()
    probabilities = np.cumsum([level.probability for level in rules.levels])

    @lru_cache(maxsize=2 * max(1, ctx.threads))
    def pixels_of(digest: str) -> Pixels:
        return np.asarray(decode(ctx.objects.get(digest), digest), np.uint8)

    def make(index: int) -> Row:
        rng = np.random.default_rng(np.random.SeedSequence((seed, index)))
        if mode == "draw":
            row = _draw(strata, rng, rules)
            level = rules.levels[_pick(probabilities, rng)].number
            view = augment(pixels_of(row["digest"]), level, rng, flips, rules=rules)
        else:
            # instability is measured under the one augmentation that there is, whatever the profile sends
            row = rows[index // count]
            level = 1 + index % count % 3
            view = augment(pixels_of(row["digest"]), level, rng, flips)
        return {
            "digest": ctx.objects.put(encode(view, rules.quality)),
            "label": row["label"],
            "parent": row["digest"],
            "group": row["group"],
            "source": row["source"],
            "pool": row["pool"],
            "truth": row["truth"],
            "level": level,
            "synthetic": row.get("provider") is not None,
            "provider": row.get("provider"),
            "kind": _kind(row),
        }

    # Every image has a random stream of its own, so the order of the work does not matter; map keeps that of the rows.
    with ThreadPoolExecutor(max(1, ctx.threads)) as pool:
        try:
            for index, challenge in enumerate(pool.map(make, range(total))):
                kinds[challenge.pop("kind")] += 1
                made.append(challenge)
                levels[challenge["level"]] += 1
                ctx.progress.step("challenges", index + 1, total, "images")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    by_level = {str(level): levels[level] for level in range(4)}
    return {"set": ctx.objects.put_jsonl(made), "count": len(made), "byLevel": by_level, "byKind": dict(sorted(kinds.items()))}


def _kind(row: Row) -> str:
    if row.get("provider") is not None:
        return "synthetic"
    return "benchmark" if str(row["source"]).startswith(BENCHMARK) else "real"


def _strata(rows: list[Row], rules: Rules) -> dict[int, tuple[list[list[Row]], NDArray[np.float64]]]:
    """For each label its rows, apart by kind of source, and the kinds' cumulative shares. What the profile draws but the
    manifest lacks falls to the other kinds in proportion; a kind that the profile never draws serves when there is no other."""
    strata: dict[int, tuple[list[list[Row]], NDArray[np.float64]]] = {}
    counts: dict[int, int] = {}
    for label in (0, 1):
        rows_of = [row for row in rows if row["label"] == label]
        counts[label] = len(rows_of)
        by_kind = {kind: [row for row in rows_of if _kind(row) == kind] for kind in rules.kinds}
        filled = [kind for kind, part in by_kind.items() if part]
        there = [kind for kind in filled if rules.kinds[kind] > 0] or filled
        shares = np.array([rules.kinds[kind] or 1.0 for kind in there])
        strata[label] = ([by_kind[kind] for kind in there], np.cumsum(shares / shares.sum()) if there else shares)
    if not all(counts.values()):
        unlabelled = sum(row["label"] is None for row in rows)
        raise OneClass(
            "a challenge draws its label first, so both classes are needed: the manifest has "
            f"{counts[1]} images with roadwork, {counts[0]} without and {unlabelled} without a label. "
            "Add labelled images of the missing class."
        )
    return strata


def _draw(strata: dict[int, tuple[list[list[Row]], NDArray[np.float64]]], rng: np.random.Generator, rules: Rules) -> Row:
    """Label, then kind of source, then an image uniformly, as the validator does."""
    kinds, shares = strata[int(rng.random() < rules.positive)]
    kind = kinds[_pick(shares, rng)]
    return kind[int(rng.integers(0, len(kind)))]


def _pick(cumulative: NDArray[np.float64], rng: np.random.Generator) -> int:
    """An index drawn by cumulative shares."""
    return min(int(np.searchsorted(cumulative, rng.random(), side="right")), len(cumulative) - 1)


def _shift(start: int, side: int, size: int, point: int) -> int:
    """Moves an interval so that it holds `point`, with a margin where there is room."""
    if point < start:
        start = point - CROP_MARGIN
    elif point >= start + side:
        start = point - side + 1 + CROP_MARGIN
    low, high = point - side + 1, point
    return min(max(0, min(max(start, low), high)), size - side)


def _to_ycbcr(image: Pixels) -> NDArray[np.float32]:
    """Video-range YCbCr of 0-255 RGB pixels; OpenCV's float conversion centres chroma on 0.5, whatever the range."""
    ycc = np.asarray(cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2YCrCb), np.float32)[:, :, (0, 2, 1)]
    ycc[:, :, 0] = (ycc[:, :, 0] * (235 - 16) + 16) / 255.0
    ycc[:, :, 1:] = (ycc[:, :, 1:] * (240 - 16) + 16) / 255.0
    return ycc


def _from_ycbcr(ycc: NDArray[np.float32]) -> NDArray[np.float32]:
    out = ycc.astype(np.float32)
    out[:, :, 0] = (out[:, :, 0] * 255.0 - 16) / (235 - 16)
    out[:, :, 1:] = (out[:, :, 1:] * 255.0 - 16) / (240 - 16)
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(out[:, :, (0, 2, 1)]), cv2.COLOR_YCrCb2RGB), np.float32)


def _cast(values: NDArray[np.float32]) -> Pixels:
    """Cuts off to 8 bit. Out-of-range values are clipped first: casting them is undefined in C."""
    return np.clip(values, 0, 255).astype(np.uint8)
