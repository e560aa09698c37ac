"""The provider `composite`: drawn objects on the road of a photograph, with its light, its scale and its camera.

Both classes go through the same moves (rows, single objects, barriers, walls, vehicles, people, ground) in the same places,
the same blending, light, noise and JPEG; only what the objects are differs. So no trace of the editing tells the label.
Equal photograph and seed with the other intent give the *twin*: the same view, lens, light, places and camera, so that within
a pair nothing but the objects tells the classes apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from . import ordinary, roadwork
from .camera import finish
from .canvas import Pixels, Sprite, pick
from .figures import bearing
from .ground import Layer, Run, ordinary_ground, ordinary_wall, roadwork_ground, roadwork_wall
from .painting import MIN_SPRITE, Picture, lay, paste
from .roadwork import Maker
from .scene import Scene, read_scene

VIEW_SHARE = 0.5
"""how many pictures are made from a part of their photograph"""
NARROWEST = 0.6
"""smallest such part, as a share of width and height"""
ZOOM = 0.2
"""mean of the logarithm of the lens: objects stand larger than a dashboard camera's own"""
NEAREST, FARTHEST = 4.0, 28.0
"""metres between which most objects stand"""
MOVES_MADE = (0.0, 2.0, 4.0, 3.0, 2.0)
"""weights of one to five moves a picture"""
SPARE = 4
"""further tries to keep the promise that something large enough is in the picture"""
MIN_MAIN = 30.0
"""the object that makes the label is at least this tall, pixels on a picture 300 tall"""


@dataclass(frozen=True)
class Kit:
    """What one class has to put into each move."""

    posts: tuple[Maker, ...]
    barriers: tuple[Maker, ...]
    signs: tuple[Maker, ...]
    big: tuple[Maker, ...]
    people: Maker
    heights: dict[Maker, float]
    wall: Callable[[Layer, Scene, Run, np.random.Generator], None]
    ground: Callable[[Layer, Scene, float, float, np.random.Generator], None]
    loose: tuple[Maker, ...]


ROADWORK = Kit(
    roadwork.POSTS,
    roadwork.BARRIERS,
    roadwork.SIGNS,
    roadwork.BIG,
    roadwork.crew,
    roadwork.HEIGHT,
    roadwork_wall,
    roadwork_ground,
    roadwork.LOOSE,
)
ORDINARY = Kit(
    ordinary.POSTS,
    ordinary.BARRIERS,
    ordinary.SIGNS,
    ordinary.BIG,
    ordinary.passer,
    ordinary.HEIGHT,
    ordinary_wall,
    ordinary_ground,
    ordinary.LOOSE,
)
MOVES = ("row", "loose", "barrier", "sign", "wall", "big", "people", "ground")
WEIGHTS = (5.0, 3.0, 2.5, 3.0, 2.5, 2.0, 2.0, 1.0)
TELLING = 6
"""the first six moves each make roadwork by themselves; people and ground only go with them"""


def composite(image: Pixels, intent: int, rng: np.random.Generator) -> Pixels:
    """A photograph (h x w x 3, RGB) with roadwork put in (`intent` 1) or with things of an ordinary street (`intent` 0).

    Give a negative intent only to photographs known to show no roadwork: nothing is taken away. The same image, intent and
    generator state give the same pixels; the other intent gives the twin.
    """
    # the picture is planned and finished from one number each, so that what is drawn in between cannot move the twins apart
    plan, camera = (np.random.default_rng(int(seed)) for seed in rng.integers(0, 2**63, 2))
    if plan.random() < 0.5:
        image = np.ascontiguousarray(image[:, ::-1])
    if plan.random() < VIEW_SHARE:
        image = another_view(image, plan)
    scene = read_scene(image, plan)
    picture = open_picture(scene, image, plan)
    compose(picture, intent)
    return finish(picture.values, camera)


def another_view(image: Pixels, rng: np.random.Generator) -> Pixels:
    """The same street through a longer lens turned a little aside: a part of the picture, enlarged to its size."""
    height, width = image.shape[:2]
    share = rng.uniform(NARROWEST, 1.0)
    high, wide = max(2, round(height * share)), max(2, round(width * share))
    # the horizon stays near the middle, where the reading of the scene looks for it
    top = round((height - high) * rng.uniform(0.3, 0.7))
    left = round((width - wide) * rng.uniform(0, 1))
    part = np.ascontiguousarray(image[top : top + high, left : left + wide])
    return np.asarray(cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def compose(picture: Picture, intent: int) -> None:
    """Plans and paints the objects of a class into an opened picture; ordinary things in both, what tells the class beside."""
    plan = picture.rng
    kit = ROADWORK if intent == 1 else ORDINARY
    count = int(pick(plan, [1, 2, 3, 4, 5], MOVES_MADE))
    names = [str(pick(plan, MOVES[:TELLING], WEIGHTS[:TELLING]))] + [str(pick(plan, MOVES, WEIGHTS)) for _ in range(count - 1)]
    shared = [str(pick(plan, MOVES, WEIGHTS)) for _ in range(int(pick(plan, [0, 1, 2], [5, 3, 1])))]
    seeds = plan.integers(0, 2**63, (len(names) + len(shared) + SPARE, 2))
    moves = [(kit, name) for name in names] + [(ORDINARY, name) for name in shared]
    for (chosen, name), pair in zip(moves, seeds, strict=False):
        _move(picture, chosen, name, pair)
    picture.flush()
    # the promise of the label (or, for a negative, the same size of edit): something large enough in the middle square
    for pair in seeds[len(moves) :]:
        if picture.drawn >= MIN_MAIN * picture.scene.height / 300:
            break
        _move(picture, kit, "loose", pair)
        picture.flush()


def open_picture(scene: Scene, image: Pixels, rng: np.random.Generator) -> Picture:
    side = float(rng.choice([-1, 1]))
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (scene.width // 8, scene.height // 8), interpolation=cv2.INTER_AREA)
    small_road = cv2.resize(scene.road.astype(np.uint8), (scene.width // 8, scene.height // 8), interpolation=cv2.INTER_NEAREST) > 0
    middle = float(np.median(grey[small_road])) if small_road.any() else float(np.median(grey))
    spot = np.clip(cv2.blur(grey.astype(np.float32), (3, 3)) / max(middle, 8.0), 0.55, 1.25)
    return Picture(
        scene=scene,
        values=image.astype(np.float32),
        rng=rng,
        art=np.random.default_rng(int(rng.integers(0, 2**63))),
        light=side * rng.uniform(0.2, 1.0),
        shadow=(-side * rng.uniform(0.2, 1.4), rng.uniform(-0.12, 0.25)),
        zoom=float(np.exp(rng.normal(ZOOM, 0.22))),
        asphalt=spot.astype(np.float32),
    )


def _move(picture: Picture, kit: Kit, name: str, seeds: NDArray[np.int64]) -> None:
    """One move of a class, planned into the picture's queue. `seeds`: of the places and of the look."""
    picture.rng, picture.art = np.random.default_rng(int(seeds[0])), np.random.default_rng(int(seeds[1]))
    rng, art, scene = picture.rng, picture.art, picture.scene
    if name == "row":
        _row(picture, kit)
    elif name == "loose":
        maker = pick(art, kit.loose)
        for _ in range(int(rng.integers(1, 4))):
            column, row = _spot(picture, "road" if rng.random() < 0.65 else "edge")
            _stand(picture, kit, maker, column, row)
            if rng.random() < 0.4:
                maker = pick(art, kit.loose)
    elif name == "barrier":
        column, row = _spot(picture, "road" if rng.random() < 0.7 else "edge")
        maker = pick(art, kit.barriers)
        step = rng.uniform(1.4, 2.6) * scene.scale(row) * picture.zoom
        for i in range(int(rng.integers(1, 5))):
            _stand(picture, kit, maker, column + i * step, row + rng.normal(0, 1.0), fixed=i > 0)
    elif name == "sign":
        for _ in range(int(rng.integers(1, 3))):
            column, row = _spot(picture, "edge" if rng.random() < 0.7 else "road")
            _stand(picture, kit, kit.signs[0] if art.random() < 0.8 else pick(art, kit.signs), column, row)
    elif name == "wall":
        _wall(picture, kit)
    elif name == "big":
        column, row = _spot(picture, "road" if rng.random() < 0.5 else "edge", farthest=26.0, nearest=9.0)
        _stand(picture, kit, pick(art, kit.big), column, row)
    elif name == "people":
        column, row = _spot(picture, "edge" if rng.random() < 0.6 else "road")
        for _ in range(int(rng.integers(1, 4))):
            _stand(picture, kit, kit.people, column, row)
            column += rng.normal(0, 1.2) * scene.scale(row)
            row += rng.normal(0, 2.5)
    else:
        column, row = _spot(picture, "road")
        x, z = scene.ground(column, row)
        seed, grain = int(art.integers(0, 2**31)), int(rng.integers(0, 2**31))
        picture.queue.append(
            (0.0, lambda: lay(picture, lambda layer: kit.ground(layer, scene, x, z, np.random.default_rng(seed)), grain, flat=True))
        )


def _spot(picture: Picture, zone: str, farthest: float = FARTHEST, nearest: float = NEAREST) -> tuple[float, float]:
    """A place to stand: on the road, or beside it. Distances are drawn evenly in log scale, metres."""
    scene, rng = picture.scene, picture.rng
    limit = scene.height * 0.93
    for _ in range(14):
        z = float(np.exp(rng.uniform(np.log(nearest), np.log(farthest))))
        row = scene.project(0, z)[1]
        if row > limit or row < scene.horizon + 3:
            continue
        line = np.flatnonzero(scene.road[int(row)])
        if len(line) < 6:
            continue
        left, right = float(line[0]), float(line[-1])
        if zone == "road":
            column = float(line[int(rng.integers(0, len(line)))])
        else:
            out = abs(rng.normal(0.3, 1.2)) * scene.scale(row)
            column = left - out if rng.random() < 0.5 else right + out
        # most of what matters stands in the middle square that the challenge crop always keeps
        inside = abs(column - scene.width / 2) < scene.height * 0.48
        if (inside or rng.random() < 0.25) and 2 < column < scene.width - 2:
            return column, row
    places = np.argwhere(scene.road[: int(limit), :])
    if len(places):
        row, column = places[int(rng.integers(0, len(places)))]
        return float(column), float(row)
    return scene.width / 2, scene.horizon + (scene.height - scene.horizon) * rng.uniform(0.3, 0.6)


def _row(picture: Picture, kit: Kit) -> None:
    """A line or taper of equal things along the road."""
    rng, scene = picture.rng, picture.scene
    maker = pick(picture.art, kit.posts)
    column, row = _spot(picture, "road" if rng.random() < 0.7 else "edge", farthest=16.0)
    x, z = scene.ground(column, row)
    spacing, count = rng.uniform(1.5, 6.0), int(rng.integers(3, 12))
    taper = rng.normal(0, 0.09) if rng.random() < 0.7 else rng.normal(0, 0.5)
    sprite: Sprite | None = None
    flip = bool(rng.random() < 0.5)
    for i in range(count):
        px, py = scene.project(x + taper * spacing * i + rng.normal(0, 0.1), z + spacing * i)
        if not 0 <= px < scene.width or py < scene.horizon + 2.5:
            continue
        if i and not scene.on_road(px, py) and rng.random() < 0.5:
            continue
        if sprite is None:
            sprite = maker(picture.art, max(8.0, kit.heights[maker] * scene.scale(py) * picture.zoom), picture.light)
        _plan(picture, sprite, px, py, 1.0, flip)


def _wall(picture: Picture, kit: Kit) -> None:
    rng, scene = picture.rng, picture.scene
    column, row = _spot(picture, "edge" if rng.random() < 0.6 else "road", farthest=14.0)
    x, z = scene.ground(column, row)
    run = Run(x, z, x + rng.normal(0, 1.0), z + rng.uniform(6, 40))
    if rng.random() < 0.25:
        # across the road rather than along it
        run = Run(x - rng.uniform(1, 4), z + 2, x + rng.uniform(1, 4), z + rng.uniform(2.5, 5))
    seed, grain = int(picture.art.integers(0, 2**31)), int(rng.integers(0, 2**31))
    far = scene.project(run.x0, run.z0)
    picture.queue.append(
        (far[1], lambda: lay(picture, lambda layer: kit.wall(layer, scene, run, np.random.default_rng(seed)), grain, flat=False))
    )


def _stand(picture: Picture, kit: Kit, maker: Maker, column: float, row: float, fixed: bool = False) -> None:
    """Plans one object standing at an image point."""
    rng = picture.rng
    ppm = picture.scene.scale(row) * picture.zoom
    pixels = kit.heights[maker] * ppm
    if pixels < MIN_SPRITE or pixels > picture.scene.height * 1.2:
        return
    sprite = maker(picture.art, pixels, picture.light)
    flat = maker in kit.barriers or maker in kit.signs
    turn, flip = bearing(rng), bool(rng.random() < 0.3)
    _plan(picture, sprite, column, row, turn if flat and not fixed else 1.0, flip and maker not in kit.signs)


def _plan(picture: Picture, sprite: Sprite, column: float, row: float, squeeze: float, flip: bool) -> None:
    seed = int(picture.rng.integers(0, 2**31))
    picture.queue.append((row, lambda: paste(picture, sprite, column, row, squeeze, flip, np.random.default_rng(seed))))
