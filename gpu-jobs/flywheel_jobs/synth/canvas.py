"""Drawing of one upright object in metres, anti-aliased by supersampling, with shading and a map of what shines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
"""h x w x 3, RGB"""
Colour = tuple[float, float, float]
"""display RGB, each 0..1, as seen in full neutral light"""
Points = Sequence[tuple[float, float]]

BLACK: Colour = (0.07, 0.07, 0.08)
WHITE: Colour = (0.95, 0.95, 0.93)
GREY: Colour = (0.5, 0.5, 0.5)


def jitter(rng: np.random.Generator, colour: Colour, amount: float = 0.06) -> Colour:
    """The same paint on another day: brightness and hue vary by about `amount`."""
    gain = 1 + rng.normal(0, amount)
    values = [float(np.clip(c * gain + rng.normal(0, min(amount * 0.5, 0.03)), 0.02, 1.0)) for c in colour]
    return values[0], values[1], values[2]


def pick(rng: np.random.Generator, options: Sequence[Any], weights: Sequence[float] | None = None) -> Any:
    """One of the options, uniformly or by weight."""
    if weights is None:
        return options[int(rng.integers(0, len(options)))]
    edges = np.cumsum(weights)
    return options[min(int(np.searchsorted(edges, rng.random() * edges[-1], side="right")), len(options) - 1)]


@dataclass(frozen=True)
class Sprite:
    """A drawn object. Colour is premultiplied by coverage, so that resizing keeps edges clean."""

    rgb: Floats
    """h x w x 3, 0..1, premultiplied"""
    alpha: Floats
    """h x w coverage, 0..1"""
    glow: Floats
    """h x w, 0..1: lamps 1, retroreflective sheeting about 0.4"""
    ppm: float
    """pixels per metre"""
    foot: float
    """metres drawn below the ground contact (the near edge of a base)"""

    def at(self, ppm: float, squeeze: float = 1.0, flip: bool = False) -> Sprite:
        """Resized to `ppm` pixels a metre; `squeeze` narrows it, as a board seen at an angle."""
        factor = ppm / self.ppm
        size = (max(1, round(self.alpha.shape[1] * factor * squeeze)), max(1, round(self.alpha.shape[0] * factor)))
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        paint, glow = np.dstack([self.rgb, self.alpha]), self.glow
        if flip:
            paint, glow = np.ascontiguousarray(paint[:, ::-1]), np.ascontiguousarray(glow[:, ::-1])
        small = np.asarray(cv2.resize(paint, size, interpolation=how), np.float32)
        small_glow = np.asarray(cv2.resize(glow, size, interpolation=how), np.float32)
        return Sprite(small[:, :, :3], small[:, :, 3], small_glow, ppm, self.foot)


class Canvas:
    """An upright plane, x in metres from its middle, y in metres above the ground."""

    def __init__(self, width: float, height: float, pixels: float, light: float = 0.0, foot: float = 0.04) -> None:
        """`pixels`: the object's height in the photograph. `light`: where the sun stands, -1 left to 1 right."""
        oversample = 3.0 if pixels < 70 else 2.0 if pixels < 160 else 1.25
        self.ppm = max(6.0, pixels * oversample) / height
        self.foot = foot * height
        self.light = light
        self.width, self.height = width, height
        shape = (max(2, math.ceil((height + self.foot) * self.ppm)), max(2, math.ceil(width * self.ppm)))
        self.rgb: Floats = np.zeros((*shape, 3), np.float32)
        self.alpha: Floats = np.zeros(shape, np.float32)
        self.glow: Floats = np.zeros(shape, np.float32)

    def poly(
        self,
        points: Points,
        colour: Colour,
        *,
        turned: bool = False,
        stripes: tuple[Colour, float, float] | None = None,
        glow: float = 0.0,
        fade: float = 0.0,
    ) -> None:
        """Fills a polygon. `turned`: shade it as a body of revolution. `stripes`: (other colour, angle in degrees, period in
        metres). `fade`: how much darker the bottom is than the top, 0..1."""
        pixels = np.array([((x + self.width / 2) * self.ppm, (self.height - y) * self.ppm) for x, y in points], np.float64)
        rows, columns = self.alpha.shape
        left, top = (max(0, int(v)) for v in np.floor(pixels.min(0)))
        right, bottom = (int(v) + 1 for v in np.ceil(pixels.max(0)))
        right, bottom = min(right, columns), min(bottom, rows)
        if right <= left or bottom <= top:
            return
        mask = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(mask, [np.round((pixels - (left, top)) * 16).astype(np.int32)], 1, shift=4)
        where = mask.astype(bool)
        paint = np.empty((*mask.shape, 3), np.float32)
        paint[:] = colour
        if stripes is not None:
            other, angle, period = stripes
            radians = math.radians(angle)
            x = np.arange(left, right, dtype=np.float32)[None, :] / self.ppm
            y = np.arange(top, bottom, dtype=np.float32)[:, None] / self.ppm
            phase = (x * math.cos(radians) + y * math.sin(radians)) / period
            paint[(phase - np.floor(phase)) < 0.5] = other
        if turned:
            across = np.linspace(-1, 1, mask.shape[1], dtype=np.float32)
            paint *= (0.5 + 0.55 * np.cos(1.3 * (across - 0.6 * self.light)))[None, :, None]
        if fade:
            paint *= np.linspace(1, 1 - fade, mask.shape[0], dtype=np.float32)[:, None, None]
        area = (slice(top, bottom), slice(left, right))
        self.rgb[area][where] = paint[where]
        self.alpha[area][where] = 1.0
        self.glow[area][where] = glow

    def rect(self, x: float, y: float, width: float, height: float, colour: Colour, **how: Any) -> None:
        """A rectangle with its lower edge's middle at (x, y)."""
        self.poly([(x - width / 2, y), (x + width / 2, y), (x + width / 2, y + height), (x - width / 2, y + height)], colour, **how)

    def disc(self, x: float, y: float, rx: float, colour: Colour, ry: float | None = None, **how: Any) -> None:
        """An ellipse about (x, y)."""
        ry = rx if ry is None else ry
        turns = [2 * math.pi * i / 22 for i in range(22)]
        self.poly([(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns], colour, **how)

    def line(self, x0: float, y0: float, x1: float, y1: float, thickness: float, colour: Colour, **how: Any) -> None:
        """A bar between two points."""
        length = math.hypot(x1 - x0, y1 - y0) or 1e-6
        nx, ny = -(y1 - y0) / length * thickness / 2, (x1 - x0) / length * thickness / 2
        self.poly([(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)], colour, **how)

    def regular(self, x: float, y: float, radius: float, sides: int, colour: Colour, turn: float = 90.0, **how: Any) -> None:
        """A regular polygon; the first corner stands at `turn` degrees."""
        turns = [math.radians(turn) + 2 * math.pi * i / sides for i in range(sides)]
        self.poly([(x + radius * math.cos(t), y + radius * math.sin(t)) for t in turns], colour, **how)

    def finish(self, rng: np.random.Generator, dirt: float = 0.5) -> Sprite:
        """Wear, splashes from below and uneven light, then the sprite. `dirt` 0..1."""
        rows, columns = self.alpha.shape
        patches = rng.normal(0, 0.05 + 0.05 * dirt, (7, 5)).astype(np.float32)
        uneven = 1 + cv2.resize(patches, (columns, rows), interpolation=cv2.INTER_LINEAR)
        rgb = self.rgb * uneven[:, :, None]
        strength = dirt * rng.uniform(0.0, 0.5)
        if strength > 0.02:
            climb = np.clip(np.linspace(-0.6, 1.0, rows, dtype=np.float32), 0, 1)[:, None] * strength
            mud = np.array((0.36, 0.33, 0.29), np.float32)
            rgb = rgb * (1 - climb[:, :, None]) + mud * (climb * self.alpha)[:, :, None]
        return Sprite(np.clip(rgb, 0, 1).astype(np.float32), self.alpha, self.glow, self.ppm, self.foot)
