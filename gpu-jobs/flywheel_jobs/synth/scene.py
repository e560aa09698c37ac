"""What a photograph tells the compositor: where the road lies, where the horizon, what light there is, how its camera sees."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .canvas import Floats, Pixels

CAMERA_HEIGHT = 1.4
"""metres above the road: a dashboard camera"""
WORK_WIDTH = 100
"""width at which the road is looked for, pixels"""


@dataclass(frozen=True)
class Scene:
    """A reading of one photograph."""

    width: int
    height: int
    horizon: float
    """row, pixels from the top"""
    focal: float
    """focal length, pixels"""
    road: NDArray[np.bool_]
    """height x width: where the road is believed to lie"""
    black: Floats
    """RGB 0..255 that the darkest paint takes here"""
    white: Floats
    """RGB 0..255 that white paint takes here in the light of the street"""
    haze: Floats
    """RGB 0..255 of the far distance"""
    sun: float
    """how hard the shadows are, 0..1"""
    dark: float
    """how much it is night, 0..1"""
    chroma: float
    """how colourful this camera renders, about 1"""
    blur: float
    """sigma of the camera's own blur, pixels"""
    noise: float
    """standard deviation of the camera's own noise, grey levels"""

    def scale(self, row: float) -> float:
        """Pixels per metre of something upright that meets the ground at image row `row`."""
        return max(row - self.horizon, 0.5) / CAMERA_HEIGHT

    def project(self, x: float, z: float, y: float = 0.0) -> tuple[float, float]:
        """Image column and row of a point `x` m right of the camera, `z` m ahead, `y` m above the road."""
        z = max(z, 0.5)
        return self.width / 2 + self.focal * x / z, self.horizon + self.focal * (CAMERA_HEIGHT - y) / z

    def ground(self, column: float, row: float) -> tuple[float, float]:
        """The road point (x, z) in metres seen at a pixel below the horizon."""
        z = self.focal * CAMERA_HEIGHT / max(row - self.horizon, 0.5)
        return (column - self.width / 2) * z / self.focal, z

    def on_road(self, column: float, row: float) -> bool:
        """Whether the pixel is believed to be road."""
        c, r = round(column), round(row)
        return 0 <= c < self.width and 0 <= r < self.height and bool(self.road[r, c])


def read_scene(image: Pixels, rng: np.random.Generator) -> Scene:
    """Reads a photograph (h x w x 3, RGB). `rng` only settles what a photograph cannot tell (the focal length)."""
    height, width = image.shape[:2]
    small_size = (WORK_WIDTH, max(8, round(height * WORK_WIDTH / width)))
    small = np.asarray(cv2.resize(image, small_size, interpolation=cv2.INTER_AREA), np.uint8)
    mask = _road(small)
    horizon = _horizon(mask) * height
    road = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
    road[: int(horizon) + 3] = False
    black, white, haze, dark = _light(small, mask, horizon / height)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    blur, noise = _camera(grey)
    return Scene(
        width=width,
        height=height,
        horizon=horizon,
        focal=float(width * rng.uniform(0.75, 1.15)),
        road=road,
        black=black,
        white=white,
        haze=haze,
        sun=_sun(small, mask),
        dark=dark,
        chroma=_chroma(small),
        blur=blur,
        noise=noise,
    )


def _road(small: Pixels) -> Floats:
    """Grows the road from the lower middle by colour and evenness; falls back to a trapezium. 0..1 at the work size."""
    rows, columns = small.shape[:2]
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float32)
    smooth = cv2.blur(lab, (3, 3))
    seed = smooth[int(rows * 0.66) : int(rows * 0.84), int(columns * 0.36) : int(columns * 0.64)].reshape(-1, 3)
    middle = np.median(seed, axis=0)
    spread = np.median(np.abs(seed - middle), axis=0)
    tolerance = np.clip(3.5 * spread, (14, 5, 6), (38, 11, 13))
    near = (np.abs(smooth - middle) <= tolerance).all(axis=2)
    edges = np.abs(cv2.Sobel(lab[:, :, 0], cv2.CV_32F, 0, 1)) + np.abs(cv2.Sobel(lab[:, :, 0], cv2.CV_32F, 1, 0))
    candidate = (near & (edges < 110)).astype(np.uint8)
    candidate[: int(rows * 0.36)] = 0
    candidate = cv2.morphologyEx(candidate, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    _, labels = cv2.connectedComponents(candidate, connectivity=4)
    patch = labels[int(rows * 0.66) : int(rows * 0.84), int(columns * 0.36) : int(columns * 0.64)]
    found = patch[patch > 0]
    trapezium = np.zeros((rows, columns), np.uint8)
    corners = np.array([(0.44, 0.53), (0.56, 0.53), (1.05, 0.9), (-0.05, 0.9)]) * (columns, rows)
    cv2.fillConvexPoly(trapezium, corners.astype(np.int32), 1)
    if found.size == 0:
        return trapezium.astype(np.float32)
    region = (labels == np.bincount(found).argmax()).astype(np.uint8)
    share = float(region[int(rows * 0.5) :].mean())
    if not 0.12 <= share <= 0.92:
        return trapezium.astype(np.float32)
    return cv2.morphologyEx(region, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)).astype(np.float32)


def _horizon(mask: Floats) -> float:
    """Share of the height: a little above where the road ends, held near the usual place."""
    rows = np.flatnonzero(mask.sum(axis=1) >= 3)
    top = float(rows[0]) / mask.shape[0] if rows.size else 0.5
    return float(np.clip(0.7 * (top - 0.015) + 0.3 * 0.47, 0.4, 0.64))


def _light(small: Pixels, mask: Floats, horizon: float) -> tuple[Floats, Floats, Floats, float]:
    """Black, white and haze levels and darkness. Asphalt is grey and reflects about a quarter: it is the grey card."""
    values = small.astype(np.float32)
    rows = small.shape[0]
    line = int(rows * horizon)
    street = values[line : int(rows * 0.9)].reshape(-1, 3)
    luminance = street.mean(axis=1)
    on_road = values[mask > 0.5]
    asphalt = np.median(on_road, axis=0) if len(on_road) else np.median(street, axis=0)
    low, high = np.percentile(luminance, (2, 98))
    level = float(asphalt.mean())
    # an exposure that renders asphalt at 105 shows white paint near 245; the brightest things of the street are a second witness
    white_level = float(np.clip(0.55 * 2.2 * level + 0.45 * high, 45, 250))
    cast = asphalt / max(level, 1.0)
    overall = values.reshape(-1, 3).mean(axis=0)
    cast = 0.5 * cast + 0.5 * overall / max(float(overall.mean()), 1.0)
    white = np.clip(white_level * np.clip(cast, 0.8, 1.25), 0, 255)
    black = np.clip(low * 0.8 * np.clip(cast, 0.85, 1.2), 0, 70)
    band = values[max(0, line - rows // 12) : line + 1].reshape(-1, 3)
    haze = np.median(band, axis=0)
    dark = float(np.clip((60 - float(values.mean())) / 30, 0, 1))
    return black.astype(np.float32), white.astype(np.float32), haze.astype(np.float32), dark


def _sun(small: Pixels, mask: Floats) -> float:
    """Hard shadows lie where the ground has both lit and unlit parts, under a sky that is not evenly grey."""
    grey = small.astype(np.float32).mean(axis=2)
    ground = grey[int(grey.shape[0] * 0.5) :]
    spread = float(np.percentile(ground, 95) - np.percentile(ground, 8)) / 255
    sky = small[: small.shape[0] // 4].astype(np.float32)
    blue = float((sky[:, :, 2] - sky[:, :, 0]).mean()) / 60
    return float(np.clip(0.9 * spread + 0.4 * blue - 0.15, 0, 1))


def _chroma(small: Pixels) -> float:
    """Strongest colours of the picture against those of an ordinary camera."""
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float32)[:, :, 1:] - 128
    strong = float(np.percentile(np.hypot(lab[:, :, 0], lab[:, :, 1]), 95))
    return float(np.clip(0.8 + (strong - 12) / 60, 0.75, 1.05))


def _camera(grey: Floats) -> tuple[float, float]:
    """Blur and noise of the camera: how steep its steepest edges are, and what is left over where nothing happens."""
    gx = np.abs(np.diff(grey, axis=1))
    steep = float(np.percentile(gx, 99.5))
    fine = np.abs(grey[:, 2:] - 2 * grey[:, 1:-1] + grey[:, :-2])
    strong = gx[:, 1:] >= max(steep * 0.6, 8)
    ratio = float(fine[strong].mean() / max(float(gx[:, 1:][strong].mean()), 1.0)) if strong.any() else 0.6
    blur = float(np.clip(1.05 - 0.75 * ratio, 0.3, 0.95))
    # second differences of pure noise have variance 6 sigma^2; the median over calm places ignores texture
    calm = fine[gx[:, 1:] < 6]
    noise = float(np.median(calm) / 0.6745 / np.sqrt(6)) if calm.size > 200 else 1.0
    return blur, float(np.clip(noise, 0.3, 4.0))
