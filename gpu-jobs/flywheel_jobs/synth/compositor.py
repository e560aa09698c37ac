"""The provider `composite`: drawn objects on the road of a photograph, with its light, its scale and its camera.

Both classes go through the same moves (rows, single objects, barriers, walls, vehicles, people, ground) in the same places,
the same blending, light, noise and JPEG; only what the objects are differs. So no trace of the editing tells the label.
Equal photograph and seed with the other intent give the *twin*: the same view, lens, light, places and camera, so that within
a pair nothing but the objects tells the classes apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from . import ordinary, roadwork
from .canvas import Floats, Sprite, pick
from .figures import bearing
from .ground import Layer, Run, ordinary_ground, ordinary_wall, roadwork_ground, roadwork_wall
from .roadwork import Maker
from .scene import Scene, read_scene

Pixels = NDArray[np.uint8]
MIN_SPRITE = 4.0
"""smaller objects are left out, pixels of height"""
STYLE_SHARE = 0.5
"""how many pictures are given the look of another camera"""
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


def finish(values: Floats, rng: np.random.Generator, restyle: bool = True) -> Pixels:
    """Another camera, the same for both classes: exposure, tone curve, white balance, softness, noise, JPEG."""
    out: Floats = np.clip(values, 0, 255).astype(np.float32) / np.float32(255)
    if restyle and rng.random() < STYLE_SHARE:
        out = _restyle(out, rng)
    if rng.random() < 0.3:
        out = np.asarray(cv2.GaussianBlur(out, (0, 0), float(rng.uniform(0.4, 1.1))), np.float32)
    sigma = rng.uniform(0.2, 1.0) + (rng.exponential(2.0) if rng.random() < 0.5 else 0.0)
    noise = rng.standard_normal(out.shape[:2], dtype=np.float32)[:, :, None] * np.float32(sigma)
    pixels = np.clip(out * np.float32(255) + noise + np.float32(0.5), 0, 255).astype(np.uint8)
    return jpeg(pixels, int(rng.integers(55, 96)))


def _restyle(values: Floats, rng: np.random.Generator) -> Floats:
    """Tone curve, exposure, contrast, white balance, saturation and sky glare of some other camera on some other day.

    A data set's camera nearly tells its label; what differs by camera must therefore vary within each class.
    """
    levels = np.linspace(0, 1, 256, dtype=np.float32)
    curve = levels ** np.float32(rng.uniform(0.75, 1.35))
    steep = rng.uniform(0.8, 1.3)
    curve = (curve - 0.5) * steep + 0.5 + rng.normal(0, 0.04)
    gains = np.exp(rng.normal(0, 0.04, 3)).astype(np.float32)
    table = np.clip(curve[None, :] * gains[:, None], 0, 1)
    index = (values * np.float32(255)).astype(np.uint8)
    out = np.dstack([table[i][index[:, :, i]] for i in range(3)])
    grey = out @ np.array((0.3, 0.59, 0.11), np.float32)
    saturation = np.float32(rng.uniform(0.6, 1.3))
    out = grey[:, :, None] + (out - grey[:, :, None]) * saturation
    return np.asarray(np.clip(out, 0, 1), np.float32)


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    """Once through JPEG and back."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    back = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return np.asarray(cv2.cvtColor(back, cv2.COLOR_BGR2RGB), np.uint8)


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
            (0.0, lambda: _lay(picture, lambda layer: kit.ground(layer, scene, x, z, np.random.default_rng(seed)), grain, flat=True))
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
        (far[1], lambda: _lay(picture, lambda layer: kit.wall(layer, scene, run, np.random.default_rng(seed)), grain, flat=False))
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
    picture.queue.append((row, lambda: _paste(picture, sprite, column, row, squeeze, flip, np.random.default_rng(seed))))


def _paste(picture: Picture, sprite: Sprite, column: float, row: float, squeeze: float, flip: bool, rng: np.random.Generator) -> None:
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


def _lay(picture: Picture, draw: Callable[[Layer], None], grain_seed: int, flat: bool) -> None:
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
