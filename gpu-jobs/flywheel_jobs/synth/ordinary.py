"""Objects of any street, chosen to be mistaken for roadwork: ordinary signs, orange vehicles, bins, posts, awnings, people.

Negatives get these through the very steps by which positives get theirs.
"""

from __future__ import annotations

import numpy as np

from .canvas import BLACK, GREY, WHITE, Canvas, Colour, Sprite, jitter, pick
from .figures import ORANGE, PAINTS, RED, SILVER, YELLOW, car, person, truck, wheel
from .roadwork import Maker, _text

BLUE: Colour = (0.07, 0.25, 0.6)
GREEN: Colour = (0.06, 0.4, 0.22)
WARM: tuple[Colour, ...] = (ORANGE, YELLOW, (0.9, 0.25, 0.1), (0.95, 0.6, 0.2), RED)


def sign(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A permanent sign on a post: limit, stop, priority, warning, direction, parking, street name."""
    size = rng.uniform(0.6, 0.95)
    low = rng.uniform(1.6, 2.3) if rng.random() < 0.85 else rng.uniform(0.5, 1.2)
    canvas = Canvas(size * 2.4, low + size * 1.5, pixels, light, 0.02)
    top = low + size * 0.75
    canvas.rect(0, 0, 0.08, low + size * 1.2, jitter(rng, GREY))
    kind = pick(
        rng, ["limit", "stop", "priority", "warning", "diamond", "blue", "board", "no-entry", "chevron"], [4, 2, 2, 3, 3, 3, 3, 1, 1]
    )
    if kind == "limit":
        canvas.disc(0, top, size * 0.5, RED, glow=0.4)
        canvas.disc(0, top, size * 0.38, WHITE, glow=0.4)
        _text(canvas, rng, 0, top, size * 0.45, size * 0.5, BLACK, 1)
    elif kind == "stop":
        canvas.regular(0, top, size * 0.52, 8, WHITE, 22.5, glow=0.4)
        canvas.regular(0, top, size * 0.48, 8, RED, 22.5, glow=0.4)
        _text(canvas, rng, 0, top, size * 0.7, size * 0.4, WHITE, 1)
    elif kind == "priority":
        canvas.regular(0, top, size * 0.55, 4, WHITE, glow=0.4)
        canvas.regular(0, top, size * 0.4, 4, YELLOW, glow=0.4)
    elif kind == "warning":
        canvas.regular(0, top, size * 0.62, 3, RED, glow=0.4)
        canvas.regular(0, top, size * 0.43, 3, WHITE, glow=0.4)
        mark = pick(rng, ["bar", "bend", "cross"])
        if mark == "bar":
            canvas.rect(0, top - 0.05 * size, 0.08 * size, 0.28 * size, BLACK)
            canvas.disc(0, top - 0.12 * size, 0.05 * size, BLACK)
        elif mark == "bend":
            canvas.line(-0.08 * size, top - 0.15 * size, 0.08 * size, top, 0.08 * size, BLACK)
            canvas.line(0.08 * size, top, -0.02 * size, top + 0.18 * size, 0.08 * size, BLACK)
        else:
            canvas.line(-0.14 * size, top - 0.14 * size, 0.14 * size, top + 0.14 * size, 0.07 * size, BLACK)
            canvas.line(0.14 * size, top - 0.14 * size, -0.14 * size, top + 0.14 * size, 0.07 * size, BLACK)
    elif kind == "diamond":
        canvas.regular(0, top, size * 0.66, 4, BLACK)
        canvas.regular(0, top, size * 0.62, 4, jitter(rng, pick(rng, [YELLOW, (0.85, 0.95, 0.2)])), glow=0.4)
        canvas.line(0, top - 0.3 * size, rng.uniform(-0.2, 0.2) * size, top + 0.25 * size, 0.1 * size, BLACK)
    elif kind == "blue":
        if rng.random() < 0.5:
            canvas.disc(0, top, size * 0.5, BLUE, glow=0.35)
        else:
            canvas.rect(0, top - size * 0.5, size, size, BLUE, glow=0.35)
        canvas.line(-0.2 * size, top, 0.25 * size, top, 0.12 * size, WHITE, glow=0.4)
    elif kind == "board":
        paint = pick(rng, [BLUE, GREEN, WHITE, YELLOW, (0.45, 0.25, 0.12)])
        canvas.rect(0, top - size * 0.4, size * 2.3, size * rng.uniform(0.5, 1.1), paint, glow=0.35)
        _text(canvas, rng, 0, top, size * 1.9, size * 0.5, BLACK if paint in (WHITE, YELLOW) else WHITE, int(rng.integers(1, 3)))
    elif kind == "no-entry":
        canvas.disc(0, top, size * 0.5, RED, glow=0.4)
        canvas.rect(0, top - 0.08 * size, size * 0.7, 0.16 * size, WHITE, glow=0.4)
    else:
        other = pick(rng, [BLACK, BLUE, RED], [4, 2, 1])
        canvas.rect(0, top - size * 0.35, size * 1.2, size * 0.7, pick(rng, [WHITE, YELLOW]), glow=0.4)
        canvas.line(-0.3 * size, top - 0.3 * size, 0.2 * size, top, 0.2 * size, other)
        canvas.line(-0.3 * size, top + 0.3 * size, 0.2 * size, top, 0.2 * size, other)
    if rng.random() < 0.3:
        canvas.rect(0, low - 0.3, size * 0.8, 0.3, WHITE, glow=0.4)
        _text(canvas, rng, 0, low - 0.15, size * 0.6, 0.22, BLACK, 1)
    return canvas.finish(rng, 0.2)


def bin_(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A wheeled bin, litter bin, letter box or utility cabinet; orange ones too."""
    tall = rng.uniform(0.8, 1.35)
    wide = tall * rng.uniform(0.45, 0.7)
    paint = jitter(rng, pick(rng, [(0.1, 0.28, 0.16), (0.12, 0.13, 0.15), (0.1, 0.2, 0.42), *WARM, (0.35, 0.36, 0.36), (0.4, 0.3, 0.2)]))
    canvas = Canvas(wide * 1.3, tall, pixels, light, 0.03)
    canvas.poly(
        [(-wide * 0.42, 0), (wide * 0.42, 0), (wide * 0.5, tall * 0.88), (-wide * 0.5, tall * 0.88)],
        paint,
        turned=rng.random() < 0.5,
        fade=0.3,
    )
    lid = paint if rng.random() < 0.5 else jitter(rng, pick(rng, [*WARM, BLUE, BLACK]))
    canvas.poly([(-wide * 0.55, tall * 0.86), (wide * 0.55, tall * 0.86), (wide * 0.5, tall), (-wide * 0.5, tall)], lid)
    if rng.random() < 0.5:
        canvas.rect(0, tall * rng.uniform(0.4, 0.6), wide * 0.5, tall * 0.16, jitter(rng, WHITE))
    for side in (-1, 1):
        canvas.disc(side * wide * 0.4, 0.07, 0.08, BLACK)
    return canvas.finish(rng, 0.5)


def post(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A bollard, delineator post or parking meter of about cone height."""
    tall, wide = rng.uniform(0.7, 1.25), rng.uniform(0.09, 0.22)
    canvas = Canvas(0.5, tall, pixels, light, 0.03)
    paint = jitter(rng, pick(rng, [GREY, BLACK, WHITE, (0.3, 0.32, 0.3), (0.45, 0.33, 0.22), YELLOW, GREEN], [4, 4, 4, 2, 2, 1, 1]))
    canvas.rect(0, 0, wide, tall * 0.96, paint, turned=True)
    canvas.disc(0, tall * 0.95, wide / 2, paint, wide * 0.3)
    mark = rng.random()
    if mark < 0.35:
        canvas.rect(0, tall * 0.72, wide, tall * 0.14, BLACK if paint[0] > 0.6 else WHITE, turned=True, glow=0.3)
        canvas.rect(0, tall * 0.75, wide * 0.5, tall * 0.07, pick(rng, [ORANGE, WHITE, RED]), glow=0.5)
    elif mark < 0.5:
        canvas.disc(0, tall * 0.86, wide * 0.8, (0.3, 0.31, 0.32), wide * 0.9)
    return canvas.finish(rng, 0.4)


def hydrant(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A fire hydrant of 0.6-0.9 m."""
    tall = rng.uniform(0.6, 0.9)
    canvas = Canvas(0.6, tall, pixels, light, 0.03)
    paint = jitter(rng, pick(rng, [RED, YELLOW, (0.75, 0.76, 0.77), ORANGE, (0.15, 0.3, 0.6)], [4, 3, 2, 1, 1]))
    canvas.rect(0, 0, 0.34, 0.08, paint)
    canvas.rect(0, 0.05, 0.22, tall * 0.72, paint, turned=True)
    canvas.disc(0, tall * 0.78, 0.15, jitter(rng, paint, 0.15), tall * 0.2, turned=True)
    canvas.rect(0, tall * 0.45, 0.42, 0.12, paint, turned=True)
    return canvas.finish(rng, 0.5)


def lamp_post(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A lamp post, traffic light or utility pole."""
    tall = rng.uniform(3.2, 6.5)
    canvas = Canvas(2.4, tall, pixels, light, 0.01)
    paint = jitter(rng, pick(rng, [GREY, BLACK, (0.4, 0.3, 0.22), (0.2, 0.3, 0.25)]))
    canvas.poly([(-0.09, 0), (0.09, 0), (0.05, tall), (-0.05, tall)], paint, turned=True)
    if rng.random() < 0.5:
        canvas.rect(0.22, tall * 0.6, 0.32, 0.95, BLACK)
        lit = int(rng.integers(0, 3))
        for i, colour in enumerate(((0.1, 0.8, 0.4), (1.0, 0.7, 0.1), (0.95, 0.1, 0.1))):
            on = i == lit
            canvas.disc(0.22, tall * 0.6 + 0.17 + 0.3 * i, 0.11, colour if on else (0.2, 0.2, 0.2), glow=1.0 if on else 0.0)
    else:
        canvas.line(0, tall - 0.05, 1.0, tall - 0.1, 0.08, paint)
        canvas.rect(0.95, tall - 0.2, 0.4, 0.1, (0.9, 0.88, 0.8), glow=0.6)
    return canvas.finish(rng, 0.3)


def awning(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A shop front's awning, parasol or market stall, often warm or striped."""
    tall, wide = rng.uniform(2.3, 2.9), rng.uniform(2.0, 4.5)
    canvas = Canvas(wide * 1.05, tall, pixels, light, 0.02)
    paint = jitter(rng, pick(rng, [*WARM, GREEN, BLUE, (0.5, 0.12, 0.16), WHITE]))
    stripes = (jitter(rng, WHITE), 0.0, rng.uniform(0.3, 0.7)) if rng.random() < 0.4 else None
    if rng.random() < 0.5:
        canvas.poly([(-wide / 2, tall * 0.72), (wide / 2, tall * 0.72), (wide * 0.44, tall), (-wide * 0.44, tall)], paint, stripes=stripes)
        for side in (-1, 1):
            canvas.rect(side * wide * 0.46, 0, 0.07, tall * 0.74, jitter(rng, GREY))
        canvas.rect(0, tall * 0.3, wide * 0.8, tall * 0.1, (0.4, 0.3, 0.2))
        for _ in range(12):
            canvas.disc(rng.uniform(-0.38, 0.38) * wide, tall * 0.42, 0.12, jitter(rng, pick(rng, [*WARM, GREEN])))
    else:
        canvas.poly([(-wide / 2, tall * 0.76), (0, tall), (wide / 2, tall * 0.76)], paint, stripes=stripes)
        canvas.rect(0, 0, 0.07, tall * 0.8, jitter(rng, GREY))
        canvas.disc(0, 0.04, 0.35, BLACK, 0.05)
    return canvas.finish(rng, 0.2)


def plant(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A young tree, shrub or planter, in leaf, bloom or autumn colours."""
    tall = rng.uniform(0.9, 3.0)
    wide = tall * rng.uniform(0.5, 0.9)
    canvas = Canvas(wide * 1.1, tall, pixels, light, 0.02)
    leaf = jitter(
        rng, pick(rng, [(0.2, 0.34, 0.12), (0.3, 0.4, 0.16), (0.75, 0.45, 0.1), (0.7, 0.25, 0.1), (0.6, 0.55, 0.15)], [4, 3, 2, 1, 1]), 0.1
    )
    if rng.random() < 0.5:
        canvas.rect(0, 0, 0.09, tall * 0.5, (0.3, 0.23, 0.17))
        middle = tall * 0.65
    else:
        canvas.rect(0, 0, wide * 0.7, tall * 0.3, jitter(rng, pick(rng, [GREY, (0.55, 0.3, 0.2), BLACK])), fade=0.3)
        middle = tall * 0.55
    for _ in range(45):
        x, y = rng.normal(0, wide * 0.17), middle + rng.normal(0, tall * 0.14)
        x, y = float(np.clip(x, -wide * 0.45, wide * 0.45)), float(np.clip(y, tall * 0.25, tall * 0.93))
        canvas.disc(x, y, wide * rng.uniform(0.06, 0.13), jitter(rng, leaf, 0.22))
    return canvas.finish(rng, 0.0)


def bench(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A bench, bicycle rack, advertising stand or low railing."""
    tall, wide = rng.uniform(0.8, 1.15), rng.uniform(1.0, 2.2)
    canvas = Canvas(wide * 1.05, tall, pixels, light, 0.03)
    paint = jitter(rng, pick(rng, [(0.42, 0.28, 0.16), GREY, BLACK, GREEN, (0.3, 0.3, 0.32), WHITE]))
    if rng.random() < 0.5:
        for share in (0.45, 0.7, 0.9):
            canvas.rect(0, tall * share, wide, tall * 0.1, paint)
        for side in (-1, 1):
            canvas.rect(side * wide * 0.4, 0, 0.08, tall * 0.9, BLACK)
    elif rng.random() < 0.5:
        canvas.rect(0, tall * 0.88, wide, 0.06, paint)
        for i in range(8):
            canvas.rect(-wide / 2 + wide * (i + 0.5) / 8, 0, 0.04, tall * 0.9, paint)
    else:
        canvas.rect(0, 0.05, wide * 0.5, tall * 0.95, BLACK)
        canvas.rect(0, 0.1, wide * 0.42, tall * 0.82, jitter(rng, pick(rng, [WHITE, *WARM, BLUE])))
        _text(canvas, rng, 0, tall * 0.5, wide * 0.36, tall * 0.6, jitter(rng, pick(rng, [BLACK, WHITE])), 3)
    return canvas.finish(rng, 0.3)


def passer(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A passer-by."""
    return person(rng, pixels, light, worker=False)


def any_car(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A car, at times orange, yellow or red."""
    return car(rng, pixels, light, pick(rng, WARM) if rng.random() < 0.45 else None)


def any_truck(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A van, bus or lorry, at times orange or yellow."""
    return truck(rng, pixels, light, pick(rng, WARM) if rng.random() < 0.5 else pick(rng, PAINTS))


def shelter(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A bus shelter, kiosk, pergola or gantry: a frame of posts and beams as large as a scaffold, with nobody building."""
    tall, wide = rng.uniform(2.4, 4.2), rng.uniform(2.5, 6.0)
    canvas = Canvas(wide * 1.06, tall, pixels * tall / 3.0, light, 0.01)
    frame = jitter(rng, pick(rng, [SILVER, GREY, BLACK, (0.3, 0.24, 0.18), GREEN, (0.7, 0.7, 0.68)]))
    kind = pick(rng, ["shelter", "kiosk", "pergola"], [4, 2, 2])
    if kind == "kiosk":
        canvas.rect(0, 0, wide * 0.9, tall - 0.3, jitter(rng, pick(rng, [*WARM, GREEN, BLUE, WHITE, (0.4, 0.3, 0.22)])), fade=0.25)
        canvas.rect(0, tall * 0.4, wide * 0.6, tall * 0.32, (0.15, 0.16, 0.18))
        canvas.rect(0, tall * 0.74, wide * 0.8, tall * 0.16, jitter(rng, pick(rng, [*WARM, WHITE, BLUE])))
        canvas.rect(0, tall - 0.3, wide, 0.28, frame)
        return canvas.finish(rng, 0.3)
    for i in range(int(rng.integers(3, 6))):
        canvas.rect(-wide * 0.46 + wide * 0.92 * i / 4, 0, 0.09, tall - 0.1, frame)
    if kind == "shelter":
        canvas.rect(0, 0.4, wide * 0.85, tall * 0.5, (0.42, 0.48, 0.5), fade=-0.3)
        canvas.rect(-wide * 0.3, 0.45, wide * 0.22, tall * 0.55, jitter(rng, pick(rng, [*WARM, WHITE, BLUE])), glow=0.2)
        canvas.rect(0, 0.4, wide * 0.5, 0.08, frame)
    else:
        for level in (0.35, 0.7):
            canvas.rect(0, tall * level, wide, 0.07, frame)
    canvas.rect(0, tall - 0.22, wide, 0.2, frame, fade=0.3)
    return canvas.finish(rng, 0.3)


def billboard(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """An advertisement on legs, an information panel or a large lit shop sign, with patches of any colour."""
    tall, wide = rng.uniform(2.2, 4.0), rng.uniform(1.2, 4.0)
    canvas = Canvas(wide * 1.05, tall, pixels * tall / 3.0, light, 0.01)
    for side in (-1, 1):
        canvas.rect(side * wide * 0.35, 0, 0.12, tall * 0.5, jitter(rng, GREY))
    low = tall * rng.uniform(0.2, 0.45)
    canvas.rect(0, low, wide, tall - low, BLACK)
    canvas.rect(0, low + 0.08, wide - 0.16, tall - low - 0.16, jitter(rng, pick(rng, [*PAINTS, *WARM, BLUE, GREEN])), glow=0.2)
    for _ in range(int(rng.integers(2, 6))):
        x, y = rng.uniform(-0.3, 0.3) * wide, rng.uniform(low + 0.2, tall - 0.5)
        paint = jitter(rng, pick(rng, [*PAINTS, *WARM, BLUE, WHITE]))
        if rng.random() < 0.5:
            canvas.rect(x, y, wide * rng.uniform(0.1, 0.35), rng.uniform(0.1, 0.35), paint)
        else:
            canvas.disc(x, y, wide * rng.uniform(0.05, 0.16), paint)
    return canvas.finish(rng, 0.2)


def container(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """Bottle banks, a refuse container, a parked trailer or a stack of crates before a shop."""
    tall, wide = rng.uniform(1.2, 2.0), rng.uniform(1.2, 3.6)
    canvas = Canvas(wide * 1.08, tall * 1.05, pixels * tall / 1.6, light, 0.02)
    kind = pick(rng, ["bank", "container", "crates"], [3, 3, 2])
    if kind == "bank":
        count = int(rng.integers(1, 4))
        for i in range(count):
            x = -wide / 2 + wide * (i + 0.5) / count
            paint = jitter(rng, pick(rng, [GREEN, WHITE, (0.35, 0.2, 0.1), BLUE, *WARM]))
            canvas.rect(x, 0.05, wide / count * 0.85, tall * 0.75, paint, turned=True, fade=0.2)
            canvas.disc(x, tall * 0.8, wide / count * 0.42, paint, tall * 0.18, turned=True)
            canvas.disc(x, tall * 0.66, 0.12, BLACK)
    elif kind == "container":
        paint = jitter(rng, pick(rng, [(0.1, 0.28, 0.16), GREY, BLUE, (0.2, 0.2, 0.2), *WARM]))
        canvas.poly([(-wide * 0.45, 0.15), (wide * 0.45, 0.15), (wide * 0.5, tall * 0.9), (-wide * 0.5, tall * 0.9)], paint, fade=0.3)
        canvas.rect(0, tall * 0.88, wide, tall * 0.12, jitter(rng, BLACK))
        for side in (-1, 1):
            canvas.disc(side * wide * 0.36, 0.1, 0.1, BLACK)
    else:
        for r in range(4):
            for c in range(4):
                if rng.random() < 0.85:
                    paint = jitter(rng, pick(rng, [*WARM, GREEN, (0.6, 0.5, 0.35), BLUE]))
                    canvas.rect(-wide * 0.4 + wide * 0.27 * c, tall * 0.24 * r, wide * 0.25, tall * 0.21, paint, fade=0.3)
    return canvas.finish(rng, 0.5)


def bus(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A bus, tram, camper or removal lorry from the side, at times orange, yellow or green."""
    tall, long = rng.uniform(2.6, 3.3), rng.uniform(6.0, 9.0)
    canvas = Canvas(long * 1.02, tall, pixels * tall / 3.1, light, 0.0)
    paint = jitter(rng, pick(rng, [*PAINTS, *WARM, GREEN, BLUE]))
    canvas.rect(0, 0.35, long, tall - 0.4, paint, fade=0.25)
    if rng.random() < 0.7:
        canvas.rect(0, tall * 0.5, long * 0.94, tall * 0.28, (0.13, 0.16, 0.19), fade=-0.4)
        for i in range(6):
            canvas.rect(-long * 0.4 + long * 0.16 * i, tall * 0.5, 0.08, tall * 0.28, paint)
    else:
        canvas.rect(0, tall * 0.45, long * rng.uniform(0.3, 0.7), tall * 0.25, jitter(rng, pick(rng, [*PAINTS, *WARM])))
    canvas.rect(0, 0.35, long, 0.14, jitter(rng, pick(rng, [BLACK, WHITE, *WARM])))
    for x in (-long * 0.32, long * 0.34):
        wheel(canvas, x, 0.45)
    return canvas.finish(rng, 0.3)


POSTS: tuple[Maker, ...] = (post, hydrant, bin_, plant)
"""what may stand in rows"""
BARRIERS: tuple[Maker, ...] = (bench, plant, bin_, container)
SIGNS: tuple[Maker, ...] = (sign, lamp_post, billboard)
LOOSE: tuple[Maker, ...] = (*POSTS, *BARRIERS, sign, billboard)
"""what stands about singly"""
BIG: tuple[Maker, ...] = (any_car, any_truck, awning, shelter, container, bus)

HEIGHT: dict[Maker, float] = {
    sign: 2.8,
    bin_: 1.1,
    post: 1.0,
    hydrant: 0.75,
    lamp_post: 5.0,
    awning: 2.6,
    plant: 1.9,
    bench: 1.0,
    passer: 1.9,
    any_car: 1.8,
    any_truck: 3.1,
    shelter: 3.0,
    billboard: 3.0,
    container: 1.6,
    bus: 3.1,
}
"""usual height in metres"""
