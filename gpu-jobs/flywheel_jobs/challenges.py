"""Challenge images of validator profile `2026-01`: the job `challenges` and the augmentation behind it.

The distortions are those of the subnet's validator (after DeeperForensics-1.0), quirks included: every distortion takes
and gives 8-bit pixels, its colour arithmetic runs on a video-range YCbCr whose chroma is centred on 0.5, and values are
cut off, not rounded. What the miner is asked is what this module makes: a 224 x 224 JPEG of quality 75.
No training and no synthesis here.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ._light import InterpolationMode, tvf
from .errors import BadInput

if TYPE_CHECKING:
    from .context import JobContext

Pixels = NDArray[np.uint8]
"""height x width x 3, RGB"""
Row = dict[str, Any]

SIDE: Final = 224
"""side of a challenge image, pixels"""
JPEG_QUALITY: Final = 75
"""Pillow's default, which the validator uses"""
MAX_ROTATION: Final = 20.0
"""degrees, either way"""
CROP_AREA: Final = (0.2, 1.0)
"""share of the image's area a crop covers"""
CROP_MARGIN: Final = 10
"""pixels kept beyond a mask centre when the crop is shifted to hold it"""

PARAMETERS: Final[dict[str, tuple[float, ...]]] = {
    "CS": (0.4, 0.3, 0.2, 0.1, 0.0),
    "CC": (0.85, 0.725, 0.6, 0.475, 0.35),
    "JPEG": (2, 3, 4, 5, 6),
    "GNC": (0.001, 0.002, 0.005, 0.01, 0.05),
    "GB": (7, 9, 13, 17, 21),
}
"""parameter of each distortion by its level 1..5, mildest first"""
DISTORTIONS: Final[dict[int, tuple[tuple[str, ...], int]]] = {
    0: ((), 0),
    1: ((), 0),
    2: (("CS", "CC", "JPEG"), 1),
    3: (("CS", "CC", "JPEG", "GNC", "GB"), 2),
}
"""for each challenge level: the distortions in order, and the highest level each may draw (0 is none)"""


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


def crop_box(width: int, height: int, rng: np.random.Generator, centre: tuple[int, int] | None = None) -> tuple[int, int, int]:
    """A square crop (top, left, side) covering a uniform share of the area, as torchvision's RandomResizedCrop with ratio 1.

    Ten draws that do not fit fall back to the centre square. With a mask `centre` (x, y) the crop is shifted to hold it.
    """
    for _ in range(10):
        side = round(math.sqrt(width * height * rng.uniform(*CROP_AREA)))
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
) -> Pixels:
    """The challenge view of an image at level 0 to 3, as 224 x 224 x 3 RGB before JPEG.

    Level 0 is a centre crop; level 1 rotation and random resized crop; 2 and 3 add distortions. `flips`: horizontal and
    vertical flips stand in the validator's code but never fire (their stored parameters start empty), so off is faithful.
    """
    picture = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")
    if level == 0:
        square = tvf.center_crop(picture, [min(picture.size)])
        return np.asarray(tvf.resize(square, [SIDE], InterpolationMode.BILINEAR), np.uint8)
    names, highest = DISTORTIONS[level]
    tensor = tvf.rotate(tvf.to_tensor(picture), float(rng.uniform(-MAX_ROTATION, MAX_ROTATION)), InterpolationMode.BILINEAR)
    top, left, side = crop_box(picture.width, picture.height, rng, centre)
    tensor = tvf.resized_crop(tensor, top, left, side, side, [SIDE, SIDE], InterpolationMode.BILINEAR, antialias=True)
    if flips:
        if rng.random() < 0.5:
            tensor = tvf.hflip(tensor)
        if rng.random() < 0.5:
            tensor = tvf.vflip(tensor)
    pixels = np.ascontiguousarray((tensor.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy())
    for name in names:
        pixels = distort(pixels, name, int(rng.integers(0, highest + 1)), rng)
    return pixels


def encode(pixels: Pixels, quality: int = JPEG_QUALITY) -> bytes:
    """Pillow JPEG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def decode(data: bytes, digest: str) -> Pixels:
    """RGB pixels of an encoded image. Raises BadInput naming the digest when it is none."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("RGB"), np.uint8)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(f"object {digest} is no readable image: {error}. Take its row out of the manifest and start again.") from error


def run(ctx: JobContext, job_input: Row) -> Row:
    """Job `challenges`. The same manifest, mode, count and seed give the same set digest."""
    # Images are small: one thread an image and several images at once beats several threads an image by far.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = ctx.objects.get_jsonl(job_input["manifest"])
    mode, count, seed = job_input["mode"], int(job_input["count"]), int(job_input["seed"])
    flips = bool(job_input.get("flips", False))
    if job_input.get("profile") != "2026-01":
        raise BadInput(f"unknown validator profile {job_input.get('profile')!r}; this version knows 2026-01.")
    if not rows:
        raise BadInput(f"manifest {job_input['manifest']} holds no image: there is nothing to make challenges from.")
    strata = _strata(rows) if mode == "draw" else {}
    total = count if mode == "draw" else count * len(rows)
    made: list[Row] = []
    levels: Counter[int] = Counter()

    @lru_cache(maxsize=2 * max(1, ctx.threads))
    def pixels_of(digest: str) -> Pixels:
        return decode(ctx.objects.get(digest), digest)

    def make(index: int) -> Row:
        rng = np.random.default_rng(np.random.SeedSequence((seed, index)))
        if mode == "draw":
            row = _draw(strata, rng)
            level = int(rng.integers(0, 4))
        else:
            row = rows[index // count]
            level = 1 + index % count % 3
        return {
            "digest": ctx.objects.put(encode(augment(pixels_of(row["digest"]), level, rng, flips))),
            "label": row["label"],
            "parent": row["digest"],
            "group": row["group"],
            "source": row["source"],
            "pool": row["pool"],
            "truth": row["truth"],
            "level": level,
            "synthetic": row.get("provider") is not None,
        }

    # Every image has a random stream of its own, so the order of the work does not matter; map keeps that of the rows.
    with ThreadPoolExecutor(max(1, ctx.threads)) as pool:
        try:
            for index, challenge in enumerate(pool.map(make, range(total))):
                made.append(challenge)
                levels[challenge["level"]] += 1
                ctx.progress.step("challenges", index + 1, total, "images")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    by_level = {str(level): levels[level] for level in range(4)}
    return {"set": ctx.objects.put_jsonl(made), "count": len(made), "byLevel": by_level}


def _strata(rows: list[Row]) -> dict[int, list[list[Row]]]:
    """For each label its rows, apart by real and synthetic where both kinds exist."""
    strata: dict[int, list[list[Row]]] = {}
    for label in (0, 1):
        rows_of = [row for row in rows if row["label"] == label]
        real = [row for row in rows_of if row.get("provider") is None]
        synthetic = [row for row in rows_of if row.get("provider") is not None]
        strata[label] = [kind for kind in (real, synthetic) if kind]
    counts = {label: sum(map(len, kinds)) for label, kinds in strata.items()}
    if not all(counts.values()):
        unlabelled = sum(row["label"] is None for row in rows)
        raise BadInput(
            "a challenge draws its label first, so both classes are needed: the manifest has "
            f"{counts[1]} images with roadwork, {counts[0]} without and {unlabelled} without a label. "
            "Add labelled images of the missing class."
        )
    return strata


def _draw(strata: dict[int, list[list[Row]]], rng: np.random.Generator) -> Row:
    """Label 50/50, then real or synthetic 50/50, then an image uniformly, as the validator does."""
    kinds = strata[int(rng.integers(0, 2))]
    kind = kinds[int(rng.integers(0, len(kinds)))]
    return kind[int(rng.integers(0, len(kind)))]


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
