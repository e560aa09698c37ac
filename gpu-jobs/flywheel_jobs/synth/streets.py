"""Whole rendered street scenes with exact labels, for a machine with no photographs and for tests.

A street (its road, houses, trees, sky and light) is drawn from one seed; what stands in it is put there by the compositor.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from .camera import finish
from .canvas import WHITE, Colour, Floats, Pixels, jitter, pick
from .compositor import compose, open_picture
from .figures import YELLOW, car, truck
from .scene import CAMERA_HEIGHT, Scene

Point = tuple[float, float]

FACADES: tuple[Colour, ...] = (
    (0.6, 0.33, 0.25),
    (0.72, 0.66, 0.56),
    (0.82, 0.8, 0.76),
    (0.5, 0.5, 0.52),
    (0.75, 0.56, 0.38),
    (0.4, 0.34, 0.32),
)
LEAVES: tuple[Colour, ...] = ((0.2, 0.33, 0.13), (0.3, 0.42, 0.18), (0.7, 0.42, 0.12), (0.42, 0.36, 0.22), (0.62, 0.24, 0.12))


@dataclass(frozen=True)
class Light:
    """Time of day and weather of a rendered street."""

    zenith: Colour
    low_sky: Colour
    white: float
    """what white paint shows, 0..255"""
    tint: Colour
    sun: float
    dark: float
    haze_reach: float
    """metres at which contrast has fallen to a third"""


LIGHTS: dict[str, Light] = {
    "clear": Light((0.25, 0.5, 0.85), (0.75, 0.85, 0.95), 245, (1.03, 1.0, 0.95), 0.8, 0.0, 500),
    "grey": Light((0.72, 0.75, 0.78), (0.86, 0.88, 0.89), 215, (0.97, 1.0, 1.03), 0.05, 0.0, 250),
    "haze": Light((0.72, 0.76, 0.8), (0.84, 0.85, 0.85), 220, (1.0, 1.0, 1.0), 0.1, 0.0, 70),
    "dusk": Light((0.25, 0.32, 0.48), (0.92, 0.68, 0.5), 165, (1.1, 0.95, 0.9), 0.1, 0.35, 220),
    "night": Light((0.05, 0.06, 0.1), (0.2, 0.18, 0.18), 120, (1.1, 1.0, 0.85), 0.0, 1.0, 160),
}


@dataclass
class Street:
    """A street without anything in it yet."""

    scene: Scene
    values: Floats
    """h x w x 3, 0..255"""


def render(street_seed: int, variant: int, label: int, width: int, height: int) -> Pixels:
    """One picture (height x width x 3, RGB) of the street of a seed: with roadwork (`label` 1) or without (0)."""
    street = draw_street(np.random.default_rng(np.random.SeedSequence((street_seed, 0))), width, height)
    rng = np.random.default_rng(np.random.SeedSequence((street_seed, 1 + variant)))
    picture = open_picture(street.scene, np.clip(street.values, 0, 255).astype(np.uint8), rng)
    picture.values = street.values
    for _ in range(int(rng.integers(0, 4))):
        _traffic(picture.scene, picture.values, rng)
    compose(picture, label)
    return finish(picture.values, rng)


def draw_street(rng: np.random.Generator, width: int, height: int) -> Street:
    """Sky, ground, road, houses and trees in perspective, lit for one time of day."""
    name = str(pick(rng, list(LIGHTS), [4, 3, 1.5, 1.5, 1.5]))
    light = LIGHTS[name]
    horizon = height * rng.uniform(0.42, 0.54)
    focal = width * rng.uniform(0.75, 1.15)
    road_left, road_right = -rng.uniform(2.2, 7.5), rng.uniform(2.2, 7.5)
    bend = rng.normal(0, 0.0012)
    painter = _Painter(width, height, horizon, focal, bend, light, rng)
    painter.sky()
    mask = painter.ground(road_left, road_right)
    painter.sides(road_left, road_right)
    values = painter.values
    white = np.array(light.tint, np.float32) * light.white
    scene = Scene(
        width=width,
        height=height,
        horizon=horizon,
        focal=focal,
        road=mask,
        black=np.full(3, 12, np.float32),
        white=np.clip(white, 0, 255),
        haze=np.array(light.low_sky, np.float32) * 255,
        sun=light.sun,
        dark=light.dark,
        chroma=float(rng.uniform(0.85, 1.05)),
        blur=float(rng.uniform(0.3, 0.8)),
        noise=float(rng.uniform(0.3, 2.0)),
    )
    blurred = cv2.GaussianBlur(values, (0, 0), scene.blur)
    grain = rng.standard_normal(blurred.shape[:2], dtype=np.float32)[:, :, None] * scene.noise
    return Street(scene, blurred + grain)


class _Painter:
    """Draws with the light already in the colours."""

    def __init__(self, width: int, height: int, horizon: float, focal: float, bend: float, light: Light, rng: np.random.Generator) -> None:
        self.width, self.height, self.horizon, self.focal, self.bend = width, height, horizon, focal, bend
        self.light, self.rng = light, rng
        self.values: Floats = np.zeros((height, width, 3), np.float32)

    def point(self, x: float, z: float, y: float = 0.0) -> Point:
        z = max(z, 0.6)
        side = x + self.bend * z * z
        return self.width / 2 + self.focal * side / z, self.horizon + self.focal * (CAMERA_HEIGHT - y) / z

    def lit(self, colour: Colour, z: float, gain: float = 1.0) -> tuple[float, float, float]:
        """Display colour 0..255 at a distance, with haze."""
        fog = 1 - float(np.exp(-z / self.light.haze_reach))
        fade = 1.0
        if self.light.dark > 0.5:
            # headlights: near things only
            fade = 0.35 + 0.9 * float(np.exp(-z / 22))
        values = [
            float(c * self.light.white * t * gain * fade * (1 - fog) + h * 255 * fog)
            for c, t, h in zip(colour, self.light.tint, self.light.low_sky, strict=True)
        ]
        return values[0], values[1], values[2]

    def fill(self, points: list[Point], colour: tuple[float, float, float]) -> None:
        corners = np.round(np.clip(np.array(points), -4000, 4000) * 8).astype(np.int32)
        cv2.fillPoly(self.values, [corners], colour, cv2.LINE_8, 3)

    def sky(self) -> None:
        rows = np.clip(np.arange(self.height, dtype=np.float32) / self.horizon, 0, 1)[:, None]
        gradient = np.array(self.light.zenith, np.float32) * (1 - rows) + np.array(self.light.low_sky, np.float32) * rows
        self.values[:] = gradient[:, None, :] * 255
        cover = self.rng.random()
        if self.light.dark < 0.9:
            field = np.zeros((self.height, self.width), np.float32)
            for cells, weight in ((4, 1.0), (8, 0.6), (16, 0.35), (32, 0.2)):
                grid = self.rng.normal(0, weight, (max(2, cells * 2 // 3), cells)).astype(np.float32)
                field += cv2.resize(grid, (self.width, self.height), interpolation=cv2.INTER_CUBIC)
            cloud = np.clip((field + 1.6 * (cover - 0.6)) * 1.2, 0, 0.85)[:, :, None]
            self.values = self.values * (1 - cloud) + np.array(self.light.low_sky, np.float32) * 255 * 1.05 * cloud

    def ground(self, left: float, right: float) -> NDArray[np.bool_]:
        rng = self.rng
        verge = jitter(rng, pick(rng, [(0.36, 0.42, 0.22), (0.5, 0.45, 0.36), (0.62, 0.6, 0.57), (0.45, 0.4, 0.28)]), 0.08)
        asphalt = jitter(rng, pick(rng, [(0.3, 0.3, 0.31), (0.42, 0.41, 0.4), (0.5, 0.48, 0.45), (0.25, 0.25, 0.27)]), 0.06)
        walk = jitter(rng, (0.62, 0.6, 0.57), 0.06)
        steps = [1.2, 1.6, 2.2, 3, 4, 5.5, 7.5, 10, 14, 20, 28, 40, 60, 100, 200, 400]
        mask = np.zeros((self.height, self.width), np.uint8)
        pavement = rng.uniform(1.5, 3.5) if rng.random() < 0.7 else 0.0
        for near, far in reversed(list(pairwise(steps))):
            z = (near + far) / 2
            self.fill(
                [
                    (-5, self.point(0, near)[1]),
                    (self.width + 5, self.point(0, near)[1]),
                    (self.width + 5, self.point(0, far)[1]),
                    (-5, self.point(0, far)[1]),
                ],
                self.lit(verge, z),
            )
            if pavement:
                self.strip(left - pavement, right + pavement, near, far, walk)
                self.strip(left - 0.15, right + 0.15, near, far, (0.72, 0.71, 0.69))
            self.strip(left, right, near, far, asphalt)
            quad = [self.point(left, near), self.point(right, near), self.point(right, far), self.point(left, far)]
            cv2.fillPoly(mask, [np.round(np.clip(np.array(quad), -4000, 4000) * 8).astype(np.int32)], 1, cv2.LINE_8, 3)
        line = jitter(rng, pick(rng, [WHITE, WHITE, YELLOW]), 0.05)
        middle = rng.uniform(left * 0.3, right * 0.3)
        dash, gap = rng.uniform(2, 5), rng.uniform(3, 8)
        z = rng.uniform(2, 6)
        while z < 70:
            self.strip(middle - 0.08, middle + 0.08, z, z + dash, line)
            z += dash + gap
        if rng.random() < 0.7:
            for x in (left + 0.3, right - 0.3):
                for near, far in pairwise(steps[:-2]):
                    self.strip(x - 0.07, x + 0.07, near, far, WHITE)
        if rng.random() < 0.2:
            z = rng.uniform(8, 20)
            for x in np.arange(left + 0.4, right - 0.4, 1.0):
                self.strip(float(x), float(x) + 0.5, z, z + 3, WHITE)
        # grain of the ground, coarser when near
        row = int(self.horizon) + 1
        depth = self.height - row
        fine = rng.normal(0, 0.035, (depth, self.width)).astype(np.float32)
        coarse = cv2.resize(
            rng.normal(0, 0.06, (max(2, depth // 8), max(2, self.width // 25))).astype(np.float32),
            (self.width, depth),
            interpolation=cv2.INTER_CUBIC,
        )
        self.values[row:] *= (1 + cv2.GaussianBlur(fine, (0, 0), 0.6) + coarse)[:, :, None]
        road = mask.astype(bool)
        road[: int(self.horizon) + 3] = False
        road[int(self.height * 0.95) :] = False
        return road

    def strip(self, left: float, right: float, near: float, far: float, colour: Colour) -> None:
        quad = [self.point(left, near), self.point(right, near), self.point(right, far), self.point(left, far)]
        self.fill(quad, self.lit(colour, (near + far) / 2))

    def sides(self, left: float, right: float) -> None:
        rng = self.rng
        density = rng.uniform(0.2, 1.0)
        urban = rng.random()
        things: list[tuple[float, str, float]] = []
        for side, edge in ((-1, left), (1, right)):
            z = rng.uniform(2, 10)
            while z < 130:
                if rng.random() < density:
                    what = "house" if rng.random() < urban else "tree"
                    things.append((z, what, edge + side * (rng.uniform(3.0, 7.0) if what == "house" else rng.uniform(1.2, 6.0))))
                z += rng.uniform(4, 15)
        for z, what, x in sorted(things, reverse=True):
            if what == "house":
                self.house(x, z, rng.uniform(7, 14))
            else:
                self.tree(x, z)

    def house(self, x: float, z: float, long: float) -> None:
        rng = self.rng
        high = float(pick(rng, [rng.uniform(4, 8), rng.uniform(8, 18), rng.uniform(18, 60)], [4, 3, 1]))
        paint = jitter(rng, pick(rng, FACADES), 0.1)
        away = 9.0 if x > 0 else -9.0
        far = z + long
        front = 0.85 if rng.random() < 0.5 else 1.1
        self.fill(
            [self.point(x, z), self.point(x + away, z), self.point(x + away, z, high), self.point(x, z, high)], self.lit(paint, z, front)
        )
        self.fill([self.point(x, z), self.point(x, far), self.point(x, far, high), self.point(x, z, high)], self.lit(paint, z, 1.9 - front))
        if high < 9 and rng.random() < 0.7:
            roof = jitter(rng, pick(rng, [(0.45, 0.2, 0.15), (0.25, 0.25, 0.28), (0.35, 0.28, 0.24)]))
            peak = high + rng.uniform(1.5, 3)
            self.fill(
                [self.point(x, z, high), self.point(x, far, high), self.point(x + away / 2, far, peak), self.point(x + away / 2, z, peak)],
                self.lit(roof, z),
            )
            self.fill([self.point(x, z, high), self.point(x + away, z, high), self.point(x + away / 2, z, peak)], self.lit(paint, z, front))
        lit_windows = self.light.dark > 0.2
        for floor in range(min(16, int(high / 3))):
            y = 1.0 + 3 * floor
            for i in range(int(long / 2.5)):
                near = z + 0.8 + 2.5 * i
                glass: Colour = (0.95, 0.8, 0.45) if lit_windows and rng.random() < 0.35 else (0.2, 0.24, 0.28)
                gain = 2.2 if glass[0] > 0.5 else 1.0
                self.fill(
                    [
                        self.point(x, near, y),
                        self.point(x, near + 1.2, y),
                        self.point(x, near + 1.2, y + 1.6),
                        self.point(x, near, y + 1.6),
                    ],
                    self.lit(glass, near, gain),
                )
                if i < 3:
                    side = x + away * (0.12 + 0.3 * i)
                    self.fill(
                        [
                            self.point(side, z, y),
                            self.point(side + away * 0.12, z, y),
                            self.point(side + away * 0.12, z, y + 1.6),
                            self.point(side, z, y + 1.6),
                        ],
                        self.lit(glass, z, gain),
                    )

    def tree(self, x: float, z: float) -> None:
        rng = self.rng
        high = rng.uniform(3.5, 11)
        leaf = jitter(rng, pick(rng, LEAVES, [4, 4, 1.5, 1.5, 1]), 0.1)
        trunk = self.lit((0.3, 0.24, 0.18), z)
        self.fill(
            [self.point(x - 0.15, z), self.point(x + 0.15, z), self.point(x + 0.1, z, high * 0.6), self.point(x - 0.1, z, high * 0.6)],
            trunk,
        )
        bare = rng.random() < 0.25
        for _ in range(14 if bare else 45):
            cx, cy = x + rng.normal(0, high * 0.14), high * 0.66 + rng.normal(0, high * 0.14)
            u, v = self.point(cx, z, cy)
            if bare:
                u0, v0 = self.point(x, z, high * 0.5)
                cv2.line(self.values, (round(u0), round(v0)), (round(u), round(v)), trunk, max(1, round(self.focal / z * 0.06)))
            else:
                radius = self.focal / z * high * rng.uniform(0.05, 0.11)
                cv2.circle(self.values, (round(u), round(v)), max(1, round(radius)), self.lit(jitter(rng, leaf, 0.25), z), -1)


def _traffic(scene: Scene, values: Floats, rng: np.random.Generator) -> None:
    """An ordinary vehicle on the road; both classes have them."""
    z = float(np.exp(rng.uniform(np.log(9), np.log(45))))
    row = scene.project(0, z)[1]
    line = np.flatnonzero(scene.road[min(scene.height - 1, int(row))])
    if len(line) < 8:
        return
    column = float(line[int(rng.integers(0, len(line)))])
    ppm = scene.scale(row)
    maker = car if rng.random() < 0.75 else truck
    sprite = maker(rng, 2.0 * ppm, 0.3).at(ppm)
    high, wide = sprite.alpha.shape
    left, top = round(column - wide / 2), round(row - high)
    x0, y0, x1, y1 = max(0, left), max(0, top), min(scene.width, left + wide), min(scene.height, top + high)
    if x1 <= x0 or y1 <= y0:
        return
    part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    alpha = sprite.alpha[part][:, :, None]
    shine = np.clip(sprite.glow[part] - 0.6, 0, 1)[:, :, None] * scene.dark * 255
    values[y0:y1, x0:x1] = values[y0:y1, x0:x1] * (1 - alpha) + sprite.rgb[part] * (scene.white + shine)
    foot = slice(max(0, round(row) - 2), min(scene.height, round(row) + 2))
    values[foot, x0:x1] *= 0.6
