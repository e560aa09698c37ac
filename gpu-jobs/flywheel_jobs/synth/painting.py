"""How planned things are painted into a photograph: in the light, blur, grain and haze of the place where they stand, with their
shadow, and hidden by what stands before them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from .canvas import Floats, Sprite
from .ground import Layer
from .scene import Scene

MIN_SPRITE = 4.0
"""smaller objects are left out, pixels of height"""


@dataclass
class Picture:
    """A picture in the making."""

    scene: Scene
    values: Floats
    """h x w x 3, 0..255"""
    rng: np.random.Generator
    """settles where things stand and how they are seen: alike in both twins"""
    art: np.random.Generator
    """settles what the things look like: the two classes draw different things"""
    light: float
    """side of the sun, -1 left to 1 right"""
    shadow: tuple[float, float]
    """where a shadow's tip falls for each metre of height: metres right, and up the picture"""
    zoom: float
    """how much larger than usual everything is (a longer lens)"""
    asphalt: Floats
    """lightness of the ground relative to its middle, small and blurred: shade and sun on the spot"""
    drawn: float = 0.0
    """height in pixels of the tallest object so far that lies well inside the middle square"""
    queue: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def flush(self) -> None:
        """Paints what was planned, from far to near."""
        for _, paint in sorted(self.queue, key=lambda entry: entry[0]):
            paint()
        self.queue.clear()


def paste(picture: Picture, sprite: Sprite, column: float, row: float, squeeze: float, flip: bool, rng: np.random.Generator) -> None:
    """Shadow, then the object, in the light of the spot."""
    scene = picture.scene
    ppm = scene.scale(row) * picture.zoom
    small = sprite.at(ppm, squeeze, flip)
    high, wide = small.alpha.shape
    if high < MIN_SPRITE or high > scene.height * 1.6 or wide > scene.width * 1.6:
        return
    pad = 3
    paint = cv2.copyMakeBorder(np.dstack([small.rgb, small.alpha]), pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))
    glow = np.pad(small.glow, pad)
    if scene.blur > 0.35:
        paint = cv2.GaussianBlur(paint, (0, 0), scene.blur)
    left = round(column - wide / 2) - pad
    top = round(row - high + sprite.foot * ppm) - pad
    _shade(picture, small.alpha, column, row)
    hidden = _behind(scene, column, row, paint.shape[:2], left, top, rng)
    area = _clip(left, top, paint.shape[1], paint.shape[0], scene)
    if area is None:
        return
    target, source = area
    alpha = paint[source][:, :, 3] * (hidden[source] if hidden is not None else 1.0)
    colour = paint[source][:, :, :3] * (hidden[source][:, :, None] if hidden is not None else 1.0)
    distance = scene.ground(column, row)[1]
    lit = light_up(scene, colour, alpha, glow[source], distance, _local(picture, column, row))
    grain = rng.standard_normal(alpha.shape, dtype=np.float32)[:, :, None] * scene.noise
    patch = picture.values[target]
    picture.values[target] = patch * (1 - alpha[:, :, None]) + lit + grain * alpha[:, :, None]
    inside = max(
        0.0, min(column + wide / 2, scene.width / 2 + scene.height / 2) - max(column - wide / 2, scene.width / 2 - scene.height / 2)
    )
    if inside > 0.6 * wide and alpha.size and float(alpha.sum()) > 0.5 * float(small.alpha.sum()):
        picture.drawn = max(picture.drawn, float(high))


def light_up(scene: Scene, colour: Floats, alpha: Floats, glow: Floats, distance: float, local: float) -> Floats:
    """Premultiplied display colour 0..255 of premultiplied paint in the light of the scene, with haze and lamps."""
    grey = colour.mean(axis=2, keepdims=True)
    toned = grey + (colour - grey) * scene.chroma
    lit = scene.black * alpha[:, :, None] + toned * (scene.white * local - scene.black)
    # sheeting throws headlights back at night; lamps shine at any time
    shine = (glow * scene.dark * 0.9 + np.clip(glow - 0.6, 0, 1) * (0.35 + scene.dark))[:, :, None]
    lit = lit + shine * np.maximum(0, 255 * toned - lit)
    fog = 1 - np.exp(-distance / 260.0)
    return np.asarray(lit * (1 - fog) + scene.haze * fog * alpha[:, :, None], np.float32)


def _local(picture: Picture, column: float, row: float) -> float:
    """How light the ground is where the object stands, against the whole road: in shade or in the sun."""
    rows, columns = picture.asphalt.shape
    r, c = min(rows - 1, max(0, int(row) // 8)), min(columns - 1, max(0, int(column) // 8))
    return float(0.35 + 0.65 * picture.asphalt[r, c]) if picture.scene.on_road(column, row) else 1.0


def _shade(picture: Picture, alpha: Floats, column: float, row: float) -> None:
    """A contact shadow under the object, and in the sun a cast shadow on the ground."""
    scene = picture.scene
    high, wide = alpha.shape
    foot = alpha[-max(2, high // 8) :].max(axis=0)
    half = max(2.0, 0.55 * float(foot.sum()))
    left, top = int(column - half * 2), int(row - half * 0.8)
    area = _clip(left, top, int(half * 4) + 1, int(half * 1.6) + 2, scene)
    if area is not None:
        target, source = area
        y = (np.arange(source[0].start, source[0].stop, dtype=np.float32) + top - row)[:, None] / max(1.2, half * 0.3)
        x = (np.arange(source[1].start, source[1].stop, dtype=np.float32) + left - column)[None, :] / (half * 1.05)
        picture.values[target] *= (1 - 0.55 * np.exp(-(x**4 + y * y)))[:, :, None]
    if scene.sun < 0.3 or scene.dark > 0.5 or high < 8 or high > scene.height * 0.5:
        return
    # a shadow is the silhouette laid down: up the object becomes sideways and a little up or down the picture
    side, rise = picture.shadow
    reach_x, reach_y = side * high, rise * high
    box_left, box_right = min(0.0, reach_x), max(0.0, reach_x)
    box_top, box_bottom = min(0.0, -reach_y) - 2, max(0.0, -reach_y) + 2
    width, height = int(box_right - box_left + wide) + 2, int(box_bottom - box_top) + 2
    matrix = np.array([[1, -side, side * high - box_left], [0, rise, -reach_y - box_top]], np.float32)
    dark = cv2.warpAffine(alpha, matrix, (width, height), flags=cv2.INTER_LINEAR)
    dark = cv2.GaussianBlur(dark, (0, 0), 0.8 + high * 0.012)
    area = _clip(round(column - wide / 2 + box_left), round(row + box_top), width, height, scene)
    if area is not None:
        target, source = area
        picture.values[target] *= (1 - min(0.62, 0.25 + 0.5 * scene.sun) * dark[source])[:, :, None]


def _behind(
    scene: Scene, column: float, row: float, shape: tuple[int, int], left: int, top: int, rng: np.random.Generator
) -> Floats | None:
    """What stays visible of an object that stands behind something: the foot is off the road, but road lies in front of it."""
    if scene.on_road(column, row) or rng.random() < 0.5:
        return None
    c, r = min(scene.width - 1, max(0, round(column))), round(row)
    reach = round(row + 1.1 * scene.scale(row))
    below = np.flatnonzero(scene.road[max(0, r) : min(scene.height, reach), c])
    if below.size == 0:
        return None
    foot = r + int(below[0])
    cover_top = foot - rng.uniform(0.3, 1.1) * scene.scale(foot)
    visible = np.ones(shape, np.float32)
    rows = np.clip(np.arange(shape[0]) + top, 0, scene.height - 1)
    columns = np.clip(np.arange(shape[1]) + left, 0, scene.width - 1)
    blocked = ~scene.road[np.ix_(rows, columns)] & (rows[:, None] > cover_top) & (rows[:, None] <= foot)
    if blocked.mean() > 0.6:
        return None
    visible[blocked] = 0.0
    return np.asarray(cv2.GaussianBlur(visible, (0, 0), 0.8), np.float32)


def lay(picture: Picture, draw: Callable[[Layer], None], grain_seed: int, flat: bool) -> None:
    """Blends a wall or a patch of ground; what lies flat stays on the road and keeps its texture."""
    scene, rng = picture.scene, np.random.default_rng(grain_seed)
    layer = Layer.empty(scene)
    draw(layer)
    filled = np.flatnonzero(layer.paint[:, :, 3].max(axis=1))
    if filled.size == 0:
        return
    top, bottom = int(filled[0]), int(filled[-1]) + 1
    colour, alpha = Layer(np.ascontiguousarray(layer.paint[top:bottom])).floats()
    if flat:
        near: Floats = np.asarray(cv2.dilate(scene.road[top:bottom].astype(np.uint8), np.ones((5, 5), np.uint8)), np.float32)
        near = np.asarray(cv2.GaussianBlur(near, (0, 0), 1.2), np.float32)
        colour, alpha = colour * near[:, :, None], alpha * near
    soft = max(0.3, scene.blur)
    colour = np.asarray(cv2.GaussianBlur(colour, (0, 0), soft), np.float32)
    alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), soft), np.float32)
    patch = picture.values[top:bottom]
    texture = rng.normal(0, 0.05, (max(2, (bottom - top) // 6), scene.width // 6)).astype(np.float32)
    uneven = 1 + cv2.resize(texture, (scene.width, bottom - top), interpolation=cv2.INTER_CUBIC)
    lit = light_up(scene, colour * uneven[:, :, None], alpha, np.zeros_like(alpha), 12.0, 1.0)
    if flat:
        # keep shade and grain of the ground under the paint
        grey = patch.mean(axis=2)
        relief = np.clip(grey / np.maximum(cv2.blur(grey, (15, 9)), 8), 0.6, 1.4)
        lit = lit * relief[:, :, None]
    else:
        shadow = cv2.GaussianBlur(np.roll(alpha, 2, axis=0), (0, 0), 2.5)
        patch = patch * (1 - 0.35 * shadow * (alpha < 0.5))[:, :, None]
        c0 = int(scene.width / 2 - scene.height / 2)
        middle = alpha[:, max(0, c0) : c0 + scene.height]
        tall = (middle > 0.4).sum(axis=0)
        if (tall > 6).sum() > 20:
            picture.drawn = max(picture.drawn, float(np.percentile(tall[tall > 6], 80)))
    grain = rng.standard_normal(alpha.shape, dtype=np.float32) * scene.noise * alpha
    picture.values[top:bottom] = patch * (1 - alpha[:, :, None]) + lit + grain[:, :, None]


def _clip(left: int, top: int, width: int, height: int, scene: Scene) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """The part of a box that lies in the picture: (slices of the picture, slices of the box)."""
    x0, y0, x1, y1 = max(0, left), max(0, top), min(scene.width, left + width), min(scene.height, top + height)
    if x1 <= x0 or y1 <= y0:
        return None
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
