"""Objects that stand on a street only where it is being worked on: cones, drums, beacons, barriers, temporary signs, lamps.

American, European and mixed sets; each object varies in size, paint, wear and turn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .canvas import BLACK, GREY, WHITE, Canvas, Colour, Sprite, jitter, pick
from .figures import AMBER, LIME, ORANGE, RED, SILVER, YELLOW, arrow_board, machine, person, truck
from .works import light_tower, low_loader, scaffold, skip, stack

CONE_ORANGE: tuple[Colour, ...] = ((0.99, 0.36, 0.08), (0.98, 0.45, 0.12), (0.93, 0.28, 0.1), (1.0, 0.5, 0.22))
SHEET_RED: Colour = (0.83, 0.1, 0.1)
SIGN_ORANGE: Colour = (1.0, 0.48, 0.05)

Maker = Callable[[np.random.Generator, float, float], Sprite]
"""(rng, height in pixels, light -1..1) -> sprite"""


def cone(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A traffic cone of 0.45-1.0 m: orange, sometimes red or lime, with no, one or two white collars."""
    tall = rng.uniform(0.55, 1.0)
    paint = jitter(rng, pick(rng, [*CONE_ORANGE, LIME, (0.85, 0.12, 0.1)], [4, 3, 3, 2, 1, 1]))
    wide = tall * rng.uniform(0.46, 0.62)
    canvas = Canvas(wide * 1.1, tall, pixels, light, 0.05)
    base = BLACK if rng.random() < 0.6 else paint
    canvas.poly([(-wide / 2, -0.02), (wide / 2, -0.02), (wide * 0.44, tall * 0.07), (-wide * 0.44, tall * 0.07)], base, turned=True)
    foot, tip = wide * rng.uniform(0.33, 0.4), wide * rng.uniform(0.06, 0.1)

    def half(share: float) -> float:
        return foot + (tip - foot) * share

    def band(low: float, high: float, colour: Colour, glow: float = 0.0) -> None:
        points = [(-half(low), tall * low), (half(low), tall * low), (half(high), tall * high), (-half(high), tall * high)]
        canvas.poly(points, colour, turned=True, glow=glow)

    band(0.05, 1.0, paint)
    collars = pick(rng, [0, 1, 2], [1.5, 3, 4])
    white = jitter(rng, WHITE, 0.04)
    if collars >= 1:
        low = rng.uniform(0.52, 0.62)
        band(low, low + rng.uniform(0.14, 0.22), white, 0.45)
    if collars == 2:
        low = rng.uniform(0.27, 0.33)
        band(low, low + rng.uniform(0.09, 0.14), white, 0.45)
    return canvas.finish(rng, 0.6)


def tube(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A slim channelizer of 0.9-1.2 m with white bands on a rubber foot."""
    tall, wide = rng.uniform(0.9, 1.2), rng.uniform(0.1, 0.24)
    paint = jitter(rng, pick(rng, CONE_ORANGE))
    canvas = Canvas(0.55, tall, pixels, light, 0.04)
    canvas.disc(0, 0.03, 0.26, BLACK, 0.05)
    top = wide * rng.uniform(0.55, 1.0)
    canvas.poly([(-wide / 2, 0.03), (wide / 2, 0.03), (top / 2, tall), (-top / 2, tall)], paint, turned=True)
    for i in range(int(rng.integers(1, 4))):
        y = tall * (0.82 - 0.2 * i)
        share = 1 - (1 - top / wide) * (y / tall)
        canvas.rect(0, y, wide * share, tall * 0.1, WHITE, turned=True, glow=0.45)
    return canvas.finish(rng, 0.5)


def drum(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A plastic drum of about 1 m with alternating bands, at times with a lamp."""
    tall, wide = rng.uniform(0.9, 1.1), rng.uniform(0.5, 0.62)
    lamp = rng.random() < 0.25
    canvas = Canvas(wide * 1.25, tall + (0.3 if lamp else 0.02), pixels, light, 0.05)
    paint = jitter(rng, pick(rng, CONE_ORANGE))
    canvas.disc(0, 0.05, wide * 0.6, BLACK, 0.07)
    canvas.poly([(-wide / 2, 0.05), (wide / 2, 0.05), (wide * 0.42, tall), (-wide * 0.42, tall)], paint, turned=True)
    bands = int(rng.integers(2, 4))
    for i in range(bands):
        low = 0.16 + i * 0.75 / bands
        width = wide * (1 - 0.16 * low)
        canvas.rect(0, tall * low, width, tall * 0.42 / bands, WHITE, turned=True, glow=0.45)
        canvas.rect(0, tall * low - 0.02, width * 1.02, 0.025, (0.5, 0.24, 0.1), turned=True)
    canvas.rect(0, tall - 0.05, wide * 0.5, 0.05, BLACK)
    if lamp:
        canvas.rect(0, tall, 0.16, 0.08, BLACK)
        canvas.disc(0, tall + 0.17, 0.1, AMBER, glow=1.0)
    return canvas.finish(rng, 0.6)


def beacon_board(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A tall narrow striped board on a foot: European red and white, or an American panel in orange and white."""
    tall, wide = rng.uniform(0.95, 1.35), rng.uniform(0.22, 0.34)
    lamp = rng.random() < 0.35
    canvas = Canvas(0.75, tall + (0.3 if lamp else 0.0), pixels, light, 0.04)
    paint = jitter(rng, SHEET_RED if rng.random() < 0.6 else pick(rng, CONE_ORANGE), 0.05)
    canvas.rect(0, -0.02, 0.7, 0.12, BLACK if rng.random() < 0.7 else GREY)
    canvas.rect(0, 0.1, 0.07, 0.2, GREY)
    low = rng.uniform(0.12, 0.3)
    angle = rng.choice([-1, 1]) * rng.uniform(40, 50)
    canvas.rect(0, low, wide, tall - low, jitter(rng, WHITE, 0.03), stripes=(paint, angle, rng.uniform(0.24, 0.4)), glow=0.45)
    if lamp:
        canvas.rect(0, tall, 0.12, 0.08, BLACK)
        canvas.disc(0, tall + 0.18, 0.1, AMBER if rng.random() < 0.8 else RED, glow=1.0)
    return canvas.finish(rng, 0.4)


def barricade(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """One to three striped boards between posts (American types I to III), or a European barrier board with lamps."""
    european = rng.random() < 0.45
    boards = 1 if european else int(rng.integers(1, 4))
    tall = (1.0, 1.0, 1.1, 1.6)[boards] * rng.uniform(0.9, 1.1)
    wide = rng.uniform(1.2, 2.6) if boards != 1 or european else rng.uniform(0.7, 1.3)
    lamps = rng.random() < 0.4
    canvas = Canvas(wide * 1.05, tall + (0.3 if lamps else 0.02), pixels, light, 0.04)
    frame = pick(rng, [WHITE, GREY, (0.55, 0.45, 0.3), ORANGE])
    for side in (-1, 1):
        x = side * wide * rng.uniform(0.34, 0.44)
        canvas.rect(x, 0, 0.07, tall * 0.98, frame)
        canvas.rect(x, -0.02, 0.5 if not european else 0.35, 0.07, BLACK if european else frame)
    paint = jitter(rng, SHEET_RED if european or rng.random() < 0.2 else pick(rng, CONE_ORANGE), 0.05)
    angle = 0.0 if european and rng.random() < 0.7 else float(rng.choice([-1, 1])) * 45.0
    height = rng.uniform(0.2, 0.3)
    for i in range(boards):
        y = tall - height - i * (tall - 0.35) / max(1, boards)
        canvas.rect(0, y, wide, height, jitter(rng, WHITE, 0.03), stripes=(paint, angle, rng.uniform(0.3, 0.6)), glow=0.45)
    if lamps:
        for x in [-wide * 0.4, wide * 0.4] if european else [wide * 0.4 * float(rng.choice([-1, 1]))]:
            canvas.disc(x, tall + 0.14, 0.12, RED if european and rng.random() < 0.6 else AMBER, glow=1.0)
    return canvas.finish(rng, 0.5)


def frame_barrier(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A folding A-frame, plastic pedestrian barrier or fence panel with a striped top."""
    tall, wide = rng.uniform(0.9, 1.2), rng.uniform(1.0, 2.2)
    canvas = Canvas(wide * 1.05, tall, pixels, light, 0.04)
    paint = jitter(rng, pick(rng, [*CONE_ORANGE, SHEET_RED, YELLOW]))
    bars = int(rng.integers(3, 10))
    for i in range(bars):
        canvas.rect(-wide / 2 + wide * (i + 0.5) / bars, 0.12, 0.05, tall - 0.2, paint)
    canvas.rect(0, 0.1, wide, 0.1, paint)
    stripe = (jitter(rng, WHITE, 0.03), float(rng.choice([0, 45, -45])), rng.uniform(0.3, 0.6))
    canvas.rect(0, tall - 0.28, wide, 0.26, paint, stripes=stripe, glow=0.35)
    for side in (-1, 1):
        canvas.rect(side * wide * 0.46, 0, 0.07, tall, paint)
        canvas.rect(side * wide * 0.44, -0.02, 0.4, 0.07, BLACK)
    return canvas.finish(rng, 0.5)


def _text(canvas: Canvas, rng: np.random.Generator, x: float, y: float, wide: float, high: float, colour: Colour, lines: int) -> None:
    """Lines of letter-like marks: nobody reads them at this distance."""
    for line in range(lines):
        step = high / lines
        row = y + high / 2 - step * (line + 0.82)
        count = int(rng.integers(4, 9))
        span = wide * rng.uniform(0.7, 1.0)
        for i in range(count):
            if rng.random() < 0.9:
                canvas.rect(x - span / 2 + span * (i + 0.5) / count, row, span / count * 0.62, step * 0.6, colour)


def _digger(canvas: Canvas, x: float, y: float, size: float, colour: Colour) -> None:
    """The man at work: head, bent body, shovel, heap."""
    canvas.disc(x + 0.02 * size, y + 0.3 * size, 0.1 * size, colour)
    canvas.line(x - 0.02 * size, y + 0.2 * size, x - 0.14 * size, y - 0.08 * size, 0.16 * size, colour)
    canvas.line(x - 0.12 * size, y - 0.05 * size, x - 0.28 * size, y - 0.38 * size, 0.1 * size, colour)
    canvas.line(x - 0.12 * size, y - 0.05 * size, x + 0.02 * size, y - 0.38 * size, 0.1 * size, colour)
    canvas.line(x, y + 0.15 * size, x + 0.26 * size, y - 0.3 * size, 0.06 * size, colour)
    canvas.poly([(x + 0.12 * size, y - 0.4 * size), (x + 0.45 * size, y - 0.4 * size), (x + 0.3 * size, y - 0.2 * size)], colour)


def sign(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A temporary sign: orange diamond or plate, or the red triangle with a man at work, low on a stand or on a post."""
    kind = pick(rng, ["diamond", "plate", "triangle", "combined"], [4, 2, 3, 1.5])
    size = rng.uniform(0.75, 1.25)
    low = rng.uniform(0.3, 1.3) if rng.random() < 0.7 else rng.uniform(1.5, 2.2)
    plate_high = size * (1.45 if kind in ("diamond", "combined") else 0.95)
    tall = low + plate_high
    canvas = Canvas(max(1.5, size * 1.6), tall + 0.35, pixels, light, 0.03)
    middle = low + plate_high / 2
    post = jitter(rng, GREY)
    if rng.random() < 0.5:
        canvas.rect(0, 0, 0.08, tall - 0.1, post)
        canvas.rect(0, -0.02, 0.6, 0.1, BLACK)
    else:
        for side in (-1, 1):
            canvas.line(side * 0.45, 0, side * 0.05, low + 0.2, 0.06, post)
        canvas.rect(0, low * 0.5, 0.06, low * 0.7, post)
    orange = jitter(rng, SIGN_ORANGE, 0.05)
    if kind == "diamond":
        canvas.regular(0, middle, size * 0.72, 4, BLACK, glow=0.2)
        canvas.regular(0, middle, size * 0.68, 4, orange, glow=0.45)
        if rng.random() < 0.5:
            _digger(canvas, 0, middle, size * 0.75, BLACK)
        else:
            _text(canvas, rng, 0, middle, size * 0.72, size * 0.6, BLACK, int(rng.integers(2, 4)))
        if rng.random() < 0.3:
            for side in (-1, 1):
                canvas.rect(side * 0.25, tall - 0.05, 0.26, 0.26, pick(rng, CONE_ORANGE))
    elif kind == "plate":
        wide = size * rng.uniform(0.9, 1.6)
        canvas.rect(0, low, wide, size * 0.8, orange, glow=0.45)
        _text(canvas, rng, 0, low + size * 0.4, wide * 0.85, size * 0.62, BLACK, int(rng.integers(1, 4)))
        if rng.random() < 0.3:
            canvas.line(-wide * 0.3, low + size * 0.2, wide * 0.3, low + size * 0.2, 0.1, BLACK)
    else:
        if kind == "combined":
            canvas.disc(0, low + size * 0.25, size * 0.34, SHEET_RED, glow=0.4)
            canvas.disc(0, low + size * 0.25, size * 0.26, pick(rng, [WHITE, YELLOW]), glow=0.4)
            _text(canvas, rng, 0, low + size * 0.25, size * 0.3, size * 0.3, BLACK, 1)
        y = tall - size * 0.56
        inner = pick(rng, [WHITE, YELLOW], [3, 1])
        canvas.regular(0, y, size * 0.62, 3, SHEET_RED, glow=0.45)
        canvas.regular(0, y, size * 0.43, 3, inner, glow=0.45)
        _digger(canvas, 0, y - size * 0.02, size * 0.42, BLACK)
    if rng.random() < 0.2:
        canvas.disc(0, tall + 0.15, 0.12, AMBER, glow=1.0)
    return canvas.finish(rng, 0.35)


def keep_right(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A blue passing-side disc above a red and white beacon board, as at the head of a closed lane."""
    canvas = Canvas(0.9, 2.1, pixels, light, 0.03)
    canvas.rect(0, -0.02, 0.8, 0.14, BLACK)
    canvas.rect(0, 0.1, 0.07, 1.9, SILVER)
    canvas.rect(0, 0.25, 0.3, 1.0, WHITE, stripes=(jitter(rng, SHEET_RED), float(rng.choice([-45, 45])), 0.35), glow=0.45)
    canvas.disc(0, 1.68, 0.36, (0.08, 0.27, 0.6), glow=0.35)
    canvas.line(-0.15, 1.84, 0.15, 1.54, 0.08, WHITE, glow=0.45)
    canvas.poly([(0.2, 1.47), (0.02, 1.5), (0.17, 1.66)], WHITE, glow=0.45)
    return canvas.finish(rng, 0.35)


def heap(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A heap of earth, gravel or broken asphalt."""
    tall, wide = rng.uniform(0.5, 1.5), rng.uniform(2.0, 4.5)
    canvas = Canvas(wide, tall * 1.1, pixels, light, 0.06)
    earth = jitter(rng, pick(rng, [(0.45, 0.33, 0.23), (0.52, 0.47, 0.4), (0.3, 0.28, 0.27), (0.58, 0.3, 0.16)]), 0.1)
    count = 14
    ridge = [
        (-wide / 2 + wide * i / count, max(0.0, tall * np.sin(np.pi * i / count) ** 0.8 * rng.uniform(0.72, 1.05)))
        for i in range(count + 1)
    ]
    canvas.poly([*[(float(x), float(y)) for x, y in ridge], (wide / 2, -0.03), (-wide / 2, -0.03)], earth, fade=0.35)
    for _ in range(40):
        x, y = rng.uniform(-wide * 0.42, wide * 0.42), rng.uniform(0.0, tall * 0.6)
        if y < tall * (1 - abs(2 * x / wide)):
            canvas.disc(x, y, rng.uniform(0.02, 0.09), jitter(rng, earth, 0.25), rng.uniform(0.02, 0.05))
    return canvas.finish(rng, 0.0)


def crew(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A worker."""
    return person(rng, pixels, light, worker=True)


def work_truck(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A works vehicle with stripes and beacons."""
    return truck(rng, pixels, light, pick(rng, [ORANGE, YELLOW, WHITE, (0.2, 0.4, 0.25), (0.7, 0.1, 0.1)], [4, 2, 4, 1, 1]), work=True)


POSTS: tuple[Maker, ...] = (cone, tube, drum, beacon_board)
"""what stands in rows"""
BARRIERS: tuple[Maker, ...] = (barricade, frame_barrier)
LOOSE: tuple[Maker, ...] = (*POSTS, *BARRIERS, heap, stack)
"""what stands or lies about singly"""
SIGNS: tuple[Maker, ...] = (sign, keep_right)
BIG: tuple[Maker, ...] = (machine, work_truck, arrow_board, scaffold, low_loader, skip, light_tower)

HEIGHT: dict[Maker, float] = {
    cone: 0.75,
    tube: 1.05,
    drum: 1.05,
    beacon_board: 1.2,
    barricade: 1.15,
    frame_barrier: 1.05,
    sign: 2.0,
    keep_right: 2.1,
    heap: 1.0,
    crew: 1.9,
    machine: 3.3,
    work_truck: 3.0,
    arrow_board: 2.9,
    scaffold: 4.5,
    low_loader: 3.3,
    skip: 2.2,
    light_tower: 4.0,
    stack: 1.0,
}
"""usual height in metres"""
