"""What lies on the road or runs along it: patches, trenches, plates, markings; walls, rails, fences and tapes in perspective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .canvas import GREY, WHITE, Colour, Floats, jitter, pick
from .figures import LIME, ORANGE, RED, SILVER, YELLOW
from .roadwork import CONE_ORANGE, SHEET_RED
from .scene import Scene

EARTH: tuple[Colour, ...] = ((0.46, 0.35, 0.25), (0.55, 0.5, 0.43), (0.38, 0.3, 0.24), (0.6, 0.36, 0.2))
CONCRETE: Colour = (0.66, 0.64, 0.6)
SHIFT = 4


@dataclass
class Layer:
    """Premultiplied paint over the whole picture, 8 bit; drawn with anti-aliased polygons."""

    paint: NDArray[np.uint8]
    """h x w x 4: RGB premultiplied and coverage"""

    @staticmethod
    def empty(scene: Scene) -> Layer:
        return Layer(np.zeros((scene.height, scene.width, 4), np.uint8))

    def poly(self, points: list[tuple[float, float]], colour: Colour, cover: float = 1.0) -> None:
        """Fills a polygon of image points."""
        corners = np.round(np.clip(np.array(points), -3000, 3000) * (1 << SHIFT)).astype(np.int32)
        value = [round(255 * cover * min(1.0, c)) for c in colour] + [round(255 * cover)]
        cv2.fillPoly(self.paint, [corners], value, cv2.LINE_AA, SHIFT)

    def floats(self) -> tuple[Floats, Floats]:
        """Premultiplied colour and coverage, 0..1."""
        values: Floats = self.paint.astype(np.float32) / np.float32(255)
        return values[:, :, :3], values[:, :, 3]


@dataclass(frozen=True)
class Run:
    """A line along the road, from near to far."""

    x0: float
    z0: float
    x1: float
    z1: float

    def at(self, z: float) -> float:
        """Metres right of the camera at `z` metres ahead."""
        share = (z - self.z0) / max(self.z1 - self.z0, 1e-3)
        return self.x0 + (self.x1 - self.x0) * share


Paint = Callable[[int], Colour]


def _bands(
    layer: Layer, scene: Scene, run: Run, low: float, high: float, step: float, paint: Paint, cover: float = 1.0, cap: float = 0.0
) -> None:
    """A vertical band between two heights in pieces of `step` metres, far to near; `cap` adds a top that wide."""
    count = max(1, min(70, round((run.z1 - run.z0) / step)))
    edges = np.linspace(run.z0, run.z1, count + 1)
    for i in range(count - 1, -1, -1):
        near, far = float(edges[i]), float(edges[i + 1])
        a, b = run.at(near), run.at(far)
        colour = paint(i)
        corners = [scene.project(a, near, low), scene.project(b, far, low), scene.project(b, far, high), scene.project(a, near, high)]
        layer.poly(corners, colour, cover)
        if cap:
            away = cap if a > 0 else -cap
            top = [
                scene.project(a, near, high),
                scene.project(b, far, high),
                scene.project(b + away, far, high),
                scene.project(a + away, near, high),
            ]
            layer.poly(top, (min(1, colour[0] * 1.2), min(1, colour[1] * 1.2), min(1, colour[2] * 1.2)), cover)


def _posts(layer: Layer, scene: Scene, run: Run, step: float, high: float, width: float, colour: Colour) -> None:
    count = max(2, min(60, round((run.z1 - run.z0) / step)))
    for z in np.linspace(run.z1, run.z0, count):
        x = run.at(float(z))
        corners = [scene.project(x - width / 2, z), scene.project(x + width / 2, z)]
        corners += [scene.project(x + width / 2, z, high), scene.project(x - width / 2, z, high)]
        layer.poly(corners, colour)


def _shades(rng: np.random.Generator, colours: list[Colour]) -> Paint:
    worn = [[jitter(rng, colour, 0.07) for _ in range(5)] for colour in colours]
    return lambda i: worn[i % len(worn)][(i * 7 // len(worn)) % 5]


def roadwork_wall(layer: Layer, scene: Scene, run: Run, rng: np.random.Generator) -> None:
    """Water-filled or concrete jersey barriers, barrier boards, mesh or panel fences, tape."""
    kind = pick(rng, ["plastic", "boards", "mesh", "tape", "panels", "concrete", "hoarding", "dark"], [5, 4, 3, 2, 2, 2, 1.5, 1.5])
    orange = pick(rng, CONE_ORANGE)
    if kind == "plastic":
        colours = pick(rng, [[orange, WHITE], [orange], [SHEET_RED, WHITE], [orange, orange, WHITE], [YELLOW, orange]])
        step, high = rng.uniform(1.2, 2.2), rng.uniform(0.7, 1.1)
        paint = _shades(rng, colours)
        _bands(layer, scene, run, 0.0, high, step, paint, cap=0.25)
        _bands(layer, scene, run, high * 0.42, high * 0.5, step, lambda i: tuple(0.72 * c for c in paint(i)))  # type: ignore[arg-type,return-value]
    elif kind == "concrete":
        paint = _shades(rng, [CONCRETE, CONCRETE, pick(rng, [orange, CONCRETE])])
        _bands(layer, scene, run, 0.0, rng.uniform(0.8, 1.1), 2.5, paint, cap=0.2)
        _posts(layer, scene, run, rng.uniform(3, 6), 1.25, 0.2, orange)
    elif kind == "hoarding":
        # plywood or sheet round a building site, taller than a person, often with a striped foot and lamps
        sheet = pick(rng, [(0.6, 0.47, 0.32), (0.14, 0.3, 0.2), (0.16, 0.26, 0.42), (0.75, 0.75, 0.73), (0.2, 0.2, 0.21)])
        high = rng.uniform(1.9, 2.6)
        _bands(layer, scene, run, 0.0, high, 1.22, _shades(rng, [sheet]))
        _posts(layer, scene, run, 2.44, high + 0.1, 0.09, jitter(rng, (0.5, 0.4, 0.28)))
        if rng.random() < 0.6:
            _bands(layer, scene, run, 0.5, 0.8, 0.5, _shades(rng, [pick(rng, [SHEET_RED, orange]), WHITE]))
    elif kind == "dark":
        # worn concrete or steel, with reflectors and a fence on top
        grey = jitter(rng, pick(rng, [(0.33, 0.32, 0.31), (0.42, 0.4, 0.37), (0.25, 0.26, 0.27)]))
        high = rng.uniform(0.75, 1.1)
        _bands(layer, scene, run, 0.0, high, rng.uniform(2.0, 4.0), _shades(rng, [grey]), cap=0.2)
        _bands(layer, scene, run, high * 0.6, high * 0.75, 1.5, lambda i: orange if i % 3 == 0 else grey)
        if rng.random() < 0.6:
            _posts(layer, scene, run, 2.4, high + 1.2, 0.06, SILVER)
            _bands(layer, scene, run, high, high + 1.1, 2.4, _shades(rng, [GREY]), cover=rng.uniform(0.2, 0.5))
    elif kind == "boards":
        red = SHEET_RED if rng.random() < 0.7 else orange
        _posts(layer, scene, run, 2.2, 1.05, 0.07, GREY)
        high = rng.uniform(0.9, 1.1)
        paint = _shades(rng, [red, WHITE])
        for top in [high] + ([0.45] if rng.random() < 0.4 else []):
            _bands(layer, scene, run, top - 0.25, top, rng.uniform(0.35, 0.7), paint)
    elif kind == "mesh":
        _bands(layer, scene, run, 0.05, rng.uniform(0.9, 1.2), 1.2, _shades(rng, [orange]), cover=rng.uniform(0.5, 0.85))
        _posts(layer, scene, run, 2.5, 1.25, 0.06, pick(rng, [GREY, (0.5, 0.4, 0.3)]))
    elif kind == "tape":
        _posts(layer, scene, run, rng.uniform(2.5, 4), 1.05, 0.12, orange)
        _bands(layer, scene, run, 0.82, 0.92, 0.4, _shades(rng, pick(rng, [[SHEET_RED, WHITE], [YELLOW, (0.1, 0.1, 0.1)]])))
    else:
        high = rng.uniform(1.8, 2.2)
        cloth = pick(rng, [GREY, (0.2, 0.38, 0.25), (0.2, 0.3, 0.5), WHITE])
        _bands(layer, scene, run, 0.1, high, 3.4, _shades(rng, [cloth]), cover=rng.uniform(0.25, 0.9))
        _posts(layer, scene, run, 3.4, high, 0.07, SILVER)
        _bands(layer, scene, run, 0.75, 0.98, 0.6, _shades(rng, [SHEET_RED, WHITE]))
        _posts(layer, scene, run, 3.4, 0.15, 0.5, orange)


def ordinary_wall(layer: Layer, scene: Scene, run: Run, rng: np.random.Generator) -> None:
    """Guard rails, hedges, masonry, concrete, railings, kerb planters."""
    kind = pick(rng, ["rail", "hedge", "masonry", "concrete", "railing", "fence", "painted"], [3, 2, 2, 3, 3, 2, 1.5])
    if kind == "rail":
        _posts(layer, scene, run, 2.5, 0.75, 0.1, GREY)
        steel = jitter(rng, (0.72, 0.73, 0.72), 0.08)
        _bands(layer, scene, run, 0.45, 0.76, 2.5, _shades(rng, [steel]))
        _bands(layer, scene, run, 0.58, 0.63, 2.5, _shades(rng, [(0.5, 0.5, 0.5)]))
    elif kind == "hedge":
        leaf = pick(rng, [(0.2, 0.33, 0.12), (0.28, 0.38, 0.16), (0.6, 0.35, 0.1)])
        _bands(layer, scene, run, 0.0, rng.uniform(0.6, 1.4), 0.4, lambda _: jitter(rng, leaf, 0.15), cap=0.5)
    elif kind == "masonry":
        stone = pick(rng, [(0.58, 0.3, 0.22), (0.6, 0.55, 0.48), (0.75, 0.4, 0.25), (0.85, 0.83, 0.78)])
        _bands(layer, scene, run, 0.0, rng.uniform(0.5, 1.3), 0.5, lambda _: jitter(rng, stone, 0.1), cap=0.2)
    elif kind == "concrete":
        _bands(layer, scene, run, 0.0, rng.uniform(0.7, 1.1), 2.5, _shades(rng, [CONCRETE]), cap=0.2)
    elif kind == "fence":
        board = pick(rng, [(0.45, 0.33, 0.22), (0.6, 0.5, 0.36), (0.3, 0.28, 0.26), WHITE, (0.2, 0.33, 0.22)])
        high = rng.uniform(1.2, 2.4)
        _bands(layer, scene, run, 0.05, high, rng.uniform(0.3, 1.8), _shades(rng, [board]))
        _posts(layer, scene, run, 2.0, high + 0.08, 0.1, jitter(rng, board, 0.15))
    elif kind == "painted":
        # kerbs painted against parking and walls with advertising: red, white and yellow without any work
        first = pick(rng, [SHEET_RED, YELLOW, (0.1, 0.1, 0.11), (0.12, 0.3, 0.62)])
        low = rng.random() < 0.6
        _bands(layer, scene, run, 0.0, 0.17 if low else rng.uniform(0.8, 1.6), rng.uniform(0.6, 3.0), _shades(rng, [first, WHITE]), cap=0.3)
    else:
        colour = pick(rng, [(0.12, 0.13, 0.13), SILVER, WHITE, (0.2, 0.33, 0.25), (0.6, 0.1, 0.1), ORANGE], [4, 3, 3, 2, 1, 1])
        high = rng.uniform(0.8, 1.2)
        _posts(layer, scene, run, rng.uniform(0.3, 0.8), high, 0.04, colour)
        for top in (high, 0.2):
            _bands(layer, scene, run, top - 0.06, top, 2.0, _shades(rng, [colour]))


def _patch(scene: Scene, rng: np.random.Generator, x: float, z: float, wide: float, long: float, rough: float) -> list[tuple[float, float]]:
    """An uneven outline on the road."""
    turns = np.linspace(0, 2 * np.pi, 17)[:-1]
    points = []
    for turn in turns:
        # a squarish outline: superellipse of power 4
        c, s = np.cos(turn), np.sin(turn)
        radius = (abs(c) ** 4 + abs(s) ** 4) ** -0.25 * (1 + rough * rng.normal())
        points.append(scene.project(x + c * radius * wide / 2, max(2.0, z + s * radius * long / 2)))
    return points


def _quad(scene: Scene, x: float, z: float, wide: float, long: float) -> list[tuple[float, float]]:
    near, far = max(2.0, z - long / 2), z + long / 2
    half = wide / 2
    return [scene.project(x - half, near), scene.project(x + half, near), scene.project(x + half, far), scene.project(x - half, far)]


def roadwork_ground(layer: Layer, scene: Scene, x: float, z: float, rng: np.random.Generator) -> None:
    """An excavation, earth, a milled or fresh strip, steel plates, yellow temporary lines."""
    kind = pick(rng, ["earth", "trench", "fresh", "plates", "lines"], [3, 2, 2, 1, 2])
    if kind == "earth":
        layer.poly(
            _patch(scene, rng, x, z, rng.uniform(2, 4.5), rng.uniform(3, 9), 0.08), jitter(rng, pick(rng, EARTH)), rng.uniform(0.6, 0.95)
        )
    elif kind == "trench":
        wide, long = rng.uniform(0.8, 2), rng.uniform(3, 9)
        layer.poly(_patch(scene, rng, x, z, wide * 1.8, long * 1.2, 0.06), jitter(rng, pick(rng, EARTH)), 0.7)
        layer.poly(_quad(scene, x, z, wide, long), (0.14, 0.12, 0.1), 0.95)
    elif kind == "fresh":
        layer.poly(_quad(scene, x, z, rng.uniform(1.5, 3.5), rng.uniform(5, 20)), jitter(rng, (0.13, 0.13, 0.14)), rng.uniform(0.6, 0.9))
    elif kind == "plates":
        for i in range(int(rng.integers(1, 4))):
            layer.poly(_quad(scene, x, z + 2.2 * i, 2.4, 2.0), jitter(rng, (0.34, 0.31, 0.3), 0.1), 0.95)
    else:
        for offset in (0.0, float(rng.choice([-1, 1])) * rng.uniform(2.6, 3.4)):
            layer.poly(_quad(scene, x + offset, z + 8, 0.14, 26), jitter(rng, pick(rng, [YELLOW, (0.98, 0.62, 0.1)])), 0.85)


def ordinary_ground(layer: Layer, scene: Scene, x: float, z: float, rng: np.random.Generator) -> None:
    """A manhole, an old patch, a puddle, leaves, a crossing, a centre line."""
    kind = pick(rng, ["manhole", "old", "puddle", "leaves", "crossing", "line"], [2, 2, 2, 2, 1, 2])
    if kind == "manhole":
        layer.poly(_patch(scene, rng, x, z, 0.8, 0.8, 0.0), (0.22, 0.21, 0.2), 0.9)
    elif kind == "old":
        layer.poly(
            _quad(scene, x, z, rng.uniform(0.8, 3), rng.uniform(1, 12)),
            jitter(rng, pick(rng, [(0.25, 0.25, 0.26), (0.5, 0.49, 0.47)])),
            0.5,
        )
    elif kind == "puddle":
        layer.poly(_patch(scene, rng, x, z, rng.uniform(1, 3), rng.uniform(1.5, 5), 0.07), jitter(rng, (0.62, 0.66, 0.7)), 0.4)
    elif kind == "leaves":
        for _ in range(30):
            spot = _patch(scene, rng, x + rng.normal(0, 1.2), max(3, z + rng.normal(0, 2)), 0.2, 0.25, 0.1)
            layer.poly(
                spot, jitter(rng, pick(rng, [(0.75, 0.45, 0.12), (0.6, 0.3, 0.1), (0.7, 0.6, 0.2), LIME, RED], [4, 3, 3, 0.3, 0.5])), 0.85
            )
    elif kind == "crossing":
        for i in range(-4, 5):
            layer.poly(_quad(scene, x + i * 1.0, z, 0.5, 3.2), WHITE, 0.8)
    else:
        layer.poly(_quad(scene, x, z + 8, 0.14, 26), jitter(rng, pick(rng, [WHITE, WHITE, YELLOW])), 0.8)
