"""People and vehicles. Both classes use the same silhouettes: what differs is the equipment, which is what makes roadwork."""

from __future__ import annotations

import math

import numpy as np

from .canvas import BLACK, GREY, WHITE, Canvas, Colour, Sprite, jitter, pick

ORANGE: Colour = (0.98, 0.42, 0.08)
AMBER: Colour = (1.0, 0.7, 0.1)
YELLOW: Colour = (0.96, 0.78, 0.08)
LIME: Colour = (0.8, 0.98, 0.16)
RED: Colour = (0.82, 0.09, 0.09)
SILVER: Colour = (0.84, 0.86, 0.86)
GLASS: Colour = (0.13, 0.16, 0.19)
PAINTS: tuple[Colour, ...] = (
    WHITE,
    (0.72, 0.73, 0.74),
    (0.35, 0.36, 0.38),
    (0.1, 0.1, 0.11),
    (0.12, 0.2, 0.42),
    (0.6, 0.08, 0.09),
    (0.16, 0.3, 0.2),
    (0.5, 0.42, 0.33),
)


def person(rng: np.random.Generator, pixels: float, light: float, worker: bool) -> Sprite:
    """A standing, walking or bending person 1.55-1.9 m tall; a worker wears a vest with reflective bands and often a helmet."""
    tall = rng.uniform(1.55, 1.9)
    canvas = Canvas(1.3, tall * 1.16, pixels * 1.16, light)
    skin = jitter(rng, pick(rng, [(0.85, 0.65, 0.52), (0.6, 0.42, 0.3), (0.36, 0.24, 0.17)]))
    plain: tuple[Colour, ...] = ((0.12, 0.13, 0.18), (0.25, 0.27, 0.33), (0.55, 0.5, 0.45), (0.1, 0.1, 0.1), (0.3, 0.22, 0.16))
    bright: tuple[Colour, ...] = (
        (0.7, 0.12, 0.12),
        (0.15, 0.3, 0.6),
        (0.88, 0.86, 0.82),
        (0.85, 0.5, 0.2),
        (0.3, 0.5, 0.3),
        (0.75, 0.65, 0.2),
    )
    legs = jitter(rng, pick(rng, plain))
    vest = jitter(rng, pick(rng, [ORANGE, LIME, (1.0, 0.3, 0.1)])) if worker else jitter(rng, pick(rng, plain + bright))
    full = worker and rng.random() < 0.35
    stride, lean = rng.uniform(0.03, 0.24), rng.choice([0.0, 0.0, 0.1, 0.3]) * rng.choice([-1, 1]) * (1.0 if worker else 0.4)
    hip, shoulder = tall * 0.5, tall * 0.82
    for side in (-1, 1):
        canvas.line(side * 0.07, hip, side * stride, 0.04, 0.15, vest if full else legs, turned=True)
        canvas.rect(side * stride + 0.03, 0, 0.2, 0.08, BLACK)
        if full:
            canvas.line(side * (stride * 0.75) - 0.08, 0.3, side * (stride * 0.75) + 0.08, 0.3, 0.05, SILVER, glow=0.5)
    top = [(-0.16, hip - 0.05), (0.16, hip - 0.05), (0.21 + lean, shoulder), (-0.21 + lean, shoulder)]
    canvas.poly(top, vest, turned=True)
    sleeve = vest if full or not worker else jitter(rng, pick(rng, plain + bright))
    reach = rng.uniform(-0.1, 0.3)
    for side in (-1, 1):
        hand = (lean + side * rng.uniform(0.22, 0.45), hip + reach * rng.uniform(0, 1))
        canvas.line(lean + side * 0.21, shoulder - 0.04, hand[0], hand[1], 0.1, sleeve, turned=True)
        canvas.disc(hand[0], hand[1], 0.05, skin)
    if worker:
        for share in (0.25, 0.6):
            y = hip + (shoulder - hip) * share
            canvas.line(lean * share - 0.18, y, lean * share + 0.18, y, 0.06, SILVER, glow=0.6)
        for side in (-1, 1):
            canvas.line(lean * 0.6 + side * 0.1, hip + (shoulder - hip) * 0.6, lean + side * 0.12, shoulder, 0.045, SILVER, glow=0.6)
    canvas.disc(lean * 1.25, shoulder + 0.13, 0.1, skin, 0.13, turned=True)
    if worker and rng.random() < 0.75:
        helmet = jitter(rng, pick(rng, [WHITE, YELLOW, ORANGE, LIME, (0.15, 0.35, 0.7)]))
        canvas.disc(lean * 1.25, shoulder + 0.2, 0.13, helmet, 0.09, turned=True)
        canvas.rect(lean * 1.25, shoulder + 0.17, 0.3, 0.03, helmet)
    else:
        canvas.disc(lean * 1.25, shoulder + 0.2, 0.11, jitter(rng, pick(rng, plain)), 0.07)
    tool = rng.random()
    if worker and tool < 0.2:
        canvas.line(0.4, 0.0, 0.46, 1.7, 0.035, GREY)
        canvas.regular(0.46, 1.55, 0.24, 8, RED if rng.random() < 0.5 else ORANGE, 22.5, glow=0.4)
        canvas.rect(0.46, 1.5, 0.3, 0.08, WHITE)
    elif worker and tool < 0.5:
        canvas.line(0.2 + lean, hip + 0.25, 0.55, 0.02, 0.04, (0.5, 0.38, 0.22))
    elif not worker and tool < 0.3:
        canvas.rect(0.32, hip - 0.25, 0.22, 0.28, jitter(rng, pick(rng, plain + bright)))
    return canvas.finish(rng, 0.3 if worker else 0.1)


def wheel(canvas: Canvas, x: float, radius: float) -> None:
    """A wheel standing on the ground at `x` m."""
    canvas.disc(x, radius, radius, BLACK)
    canvas.disc(x, radius, radius * 0.55, (0.55, 0.56, 0.57))
    canvas.disc(x, radius, radius * 0.2, (0.2, 0.2, 0.2))


def _beacon(canvas: Canvas, x: float, y: float) -> None:
    canvas.rect(x, y, 0.22, 0.16, AMBER, turned=True, glow=1.0)
    canvas.rect(x, y - 0.02, 0.26, 0.04, BLACK)


def car(rng: np.random.Generator, pixels: float, light: float, colour: Colour | None = None, beacon: bool = False) -> Sprite:
    """A passenger car, from behind or from the side."""
    paint = jitter(rng, colour if colour is not None else pick(rng, PAINTS))
    tall = rng.uniform(1.4, 1.8)
    if rng.random() < 0.6:
        wide = rng.uniform(1.7, 1.9)
        canvas = Canvas(wide * 1.06, tall + 0.25, pixels * (tall + 0.25) / tall, light, 0.0)
        belt = tall * 0.6
        for side in (-1, 1):
            canvas.rect(side * wide * 0.4, 0, 0.22, 0.4, BLACK)
        lower = [(-wide / 2, 0.28), (wide / 2, 0.28), (wide / 2 - 0.03, belt), (-wide / 2 + 0.03, belt)]
        canvas.poly(lower, paint, turned=True, fade=0.25)
        canvas.poly([(-wide / 2 + 0.05, belt), (wide / 2 - 0.05, belt), (wide * 0.36, tall), (-wide * 0.36, tall)], paint, turned=True)
        canvas.poly(
            [(-wide * 0.41, belt + 0.03), (wide * 0.41, belt + 0.03), (wide * 0.33, tall - 0.1), (-wide * 0.33, tall - 0.1)],
            GLASS,
            fade=-0.5,
        )
        for side in (-1, 1):
            lamp = RED if rng.random() < 0.9 else WHITE
            canvas.rect(side * wide * 0.42, belt - 0.26, 0.2, 0.2, lamp, glow=0.7)
        canvas.rect(0, 0.5, 0.5, 0.12, WHITE, glow=0.3)
        canvas.rect(0, 0.28, wide * 0.9, 0.16, (0.15, 0.15, 0.16))
    else:
        long = rng.uniform(3.9, 4.7)
        canvas = Canvas(long * 1.02, tall + 0.25, pixels * (tall + 0.25) / tall, light, 0.0)
        belt, half = tall * 0.58, long / 2
        canvas.poly(
            [(-half, 0.3), (half, 0.3), (half, belt * 0.85), (half * 0.62, belt), (-half * 0.9, belt * 1.02), (-half, belt * 0.7)],
            paint,
            fade=0.35,
        )
        canvas.poly([(-half * 0.8, belt), (half * 0.55, belt), (half * 0.22, tall), (-half * 0.5, tall)], paint, fade=0.1)
        canvas.poly(
            [(-half * 0.68, belt + 0.02), (half * 0.44, belt + 0.02), (half * 0.18, tall - 0.09), (-half * 0.46, tall - 0.09)],
            GLASS,
            fade=-0.5,
        )
        canvas.rect(-half * 0.1, belt, 0.07, tall - belt - 0.05, paint)
        for x in (-half * 0.62, half * 0.62):
            wheel(canvas, x, 0.32)
        canvas.rect(half * 0.96, belt * 0.66, 0.15, 0.12, WHITE, glow=0.5)
        canvas.rect(-half * 0.96, belt * 0.72, 0.12, 0.14, RED, glow=0.5)
    if beacon:
        _beacon(canvas, 0, tall)
    return canvas.finish(rng, 0.25)


def truck(rng: np.random.Generator, pixels: float, light: float, colour: Colour | None = None, work: bool = False) -> Sprite:
    """A box van, lorry, bus or dump truck. With `work`: striped rear boards, beacons or an arrow panel."""
    paint = jitter(rng, colour if colour is not None else pick(rng, PAINTS))
    tall = rng.uniform(2.3, 3.3)
    if rng.random() < 0.6:
        wide = rng.uniform(2.1, 2.5)
        canvas = Canvas(wide * 1.08, tall + 0.6, pixels * (tall + 0.6) / tall, light, 0.0)
        for side in (-1, 1):
            canvas.rect(side * wide * 0.36, 0, 0.4, 0.7, BLACK)
        canvas.rect(0, 0.55, wide, tall - 0.55, paint, fade=0.2)
        canvas.rect(0, 0.42, wide * 0.95, 0.16, (0.13, 0.13, 0.14))
        if work:
            stripe = pick(rng, [(RED, WHITE), (ORANGE, WHITE), (RED, YELLOW), (BLACK, YELLOW)])
            high = rng.uniform(0.35, 0.6) * tall
            for side in (-1, 1):
                angle = 45.0 * side
                canvas.rect(
                    side * wide * 0.25, 0.62, wide * 0.47, high, stripe[1], stripes=(stripe[0], angle, rng.uniform(0.22, 0.4)), glow=0.35
                )
            if rng.random() < 0.4:
                canvas.rect(0, tall * 0.66, wide * 0.7, tall * 0.26, BLACK)
                _arrow(canvas, 0, tall * 0.79, wide * 0.6, tall * 0.2)
            for side in (-1, 1):
                _beacon(canvas, side * wide * 0.35, tall)
        elif rng.random() < 0.4:
            canvas.rect(0, tall * 0.55, wide * 0.82, tall * 0.34, GLASS, fade=-0.4)
        elif rng.random() < 0.6:
            canvas.rect(0, tall * 0.5, wide * rng.uniform(0.3, 0.8), tall * 0.18, jitter(rng, pick(rng, PAINTS)))
        for side in (-1, 1):
            canvas.rect(side * wide * 0.44, 0.6, 0.16, 0.2, RED, glow=0.7)
    else:
        long = rng.uniform(5.0, 7.5)
        canvas = Canvas(long * 1.02, tall + 0.35, pixels * (tall + 0.35) / tall, light, 0.0)
        half = long / 2
        cab = half - 1.5
        canvas.rect(0, 0.45, long * 0.96, 0.22, (0.14, 0.14, 0.15))
        bed = jitter(rng, paint if rng.random() < 0.5 else pick(rng, PAINTS))
        canvas.poly([(-half, 0.65), (cab - 0.15, 0.65), (cab - 0.15, tall), (-half, tall * rng.uniform(0.75, 1.0))], bed, fade=0.25)
        canvas.poly([(cab, 0.5), (half, 0.5), (half, tall * 0.55), (half - 0.3, tall * 0.85), (cab, tall * 0.85)], paint, fade=0.2)
        canvas.poly(
            [(cab + 0.5, tall * 0.52), (half - 0.12, tall * 0.52), (half - 0.36, tall * 0.8), (cab + 0.5, tall * 0.8)], GLASS, fade=-0.4
        )
        if work:
            canvas.rect((cab - half) / 2, 0.7, long * 0.6, 0.16, WHITE, stripes=(RED, 45.0, 0.4), glow=0.3)
            _beacon(canvas, cab + 0.4, tall * 0.86)
        for x in (-half * 0.72, -half * 0.42, half * 0.68):
            wheel(canvas, x, 0.45)
    return canvas.finish(rng, 0.7 if work else 0.3)


def _arrow(canvas: Canvas, x: float, y: float, wide: float, high: float) -> None:
    """Amber lamps of an arrow panel."""
    for i in range(6):
        canvas.disc(x - wide * 0.4 + wide * 0.13 * i, y, wide * 0.045, AMBER, glow=1.0)
    for i in range(1, 3):
        for side in (-1, 1):
            canvas.disc(x + wide * 0.28 - wide * 0.1 * i, y + side * high * 0.2 * i, wide * 0.045, AMBER, glow=1.0)


def machine(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """An excavator, loader or roller, from the side."""
    paint = jitter(
        rng, pick(rng, [YELLOW, (0.95, 0.62, 0.06), ORANGE, (0.2, 0.45, 0.25), (0.85, 0.85, 0.8), (0.75, 0.12, 0.1)], [5, 3, 2, 1, 1, 1])
    )
    dark = (0.16, 0.15, 0.14)
    kind = pick(rng, ["excavator", "loader", "roller"], [5, 3, 2])
    if kind == "excavator":
        canvas = Canvas(6.6, 4.0, pixels, light, 0.0)
        canvas.poly([(-2.6, 0.1), (-2.8, 0.4), (-2.6, 0.75), (0.3, 0.75), (0.5, 0.4), (0.3, 0.1)], dark)
        for i in range(6):
            canvas.disc(-2.4 + 0.5 * i, 0.33, 0.17, (0.34, 0.32, 0.3))
        canvas.poly([(-2.9, 0.85), (0.3, 0.85), (0.3, 1.5), (-0.6, 1.75), (-2.9, 1.75)], paint, fade=0.3)
        canvas.poly([(-0.9, 1.4), (0.2, 1.4), (0.05, 2.75), (-0.9, 2.8)], paint)
        canvas.poly([(-0.75, 1.65), (0.05, 1.65), (-0.06, 2.6), (-0.75, 2.65)], GLASS)
        elbow = (rng.uniform(1.1, 1.7), rng.uniform(3.0, 3.8))
        wrist = (rng.uniform(2.0, 2.9), rng.uniform(0.7, 2.2))
        canvas.line(0.1, 1.3, elbow[0], elbow[1], 0.38, paint, fade=0.2)
        canvas.line(elbow[0], elbow[1], wrist[0], wrist[1], 0.28, paint, fade=0.2)
        canvas.line(0.5, 1.6, elbow[0] - 0.1, elbow[1] - 0.6, 0.1, SILVER)
        bucket = [(0.2, 0.1), (0.35, -0.5), (-0.2, -0.75), (-0.5, -0.4), (-0.3, 0.1)]
        canvas.poly([(wrist[0] + x, max(0.0, wrist[1] + y)) for x, y in bucket], dark)
    elif kind == "loader":
        canvas = Canvas(6.2, 3.1, pixels, light, 0.0)
        canvas.poly([(-2.6, 0.9), (0.6, 0.9), (0.6, 1.6), (-1.1, 1.9), (-2.6, 1.8)], paint, fade=0.3)
        canvas.poly([(-0.9, 1.5), (0.4, 1.5), (0.3, 2.9), (-0.8, 2.9)], paint)
        canvas.poly([(-0.7, 1.75), (0.25, 1.75), (0.18, 2.7), (-0.65, 2.7)], GLASS)
        lift = rng.uniform(0.3, 1.5)
        canvas.line(0.4, 1.4, 2.1, lift, 0.26, paint)
        canvas.poly([(1.9, lift - 0.3), (2.9, lift - 0.3), (2.5, lift + 0.7), (1.95, lift + 0.6)], dark)
        wheel(canvas, -1.6, 0.72)
        wheel(canvas, 0.8, 0.66)
        _beacon(canvas, -0.3, 2.9)
    else:
        canvas = Canvas(4.4, 2.9, pixels, light, 0.0)
        canvas.disc(-1.4, 0.62, 0.62, (0.45, 0.45, 0.46), turned=True)
        canvas.disc(-1.4, 0.62, 0.2, dark)
        canvas.disc(1.3, 0.62, 0.62, BLACK if rng.random() < 0.5 else (0.45, 0.45, 0.46), turned=True)
        canvas.poly([(-1.9, 0.8), (1.9, 0.8), (1.9, 1.5), (0.4, 1.6), (-1.9, 1.35)], paint, fade=0.3)
        for x in (-0.5, 0.7):
            canvas.line(x, 1.4, x, 2.6, 0.09, dark)
        canvas.rect(0.1, 2.55, 1.7, 0.14, paint)
        _beacon(canvas, 0.1, 2.68)
    return canvas.finish(rng, 1.0)


def arrow_board(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A trailer with an amber arrow panel, or a matrix sign with a line of text."""
    tall = rng.uniform(2.4, 3.2)
    canvas = Canvas(2.6, tall + 0.1, pixels, light, 0.0)
    body = jitter(rng, pick(rng, [ORANGE, ORANGE, YELLOW, (0.75, 0.76, 0.77)]))
    canvas.rect(0, 0.4, 1.9, 0.3, body, fade=0.2)
    for side in (-1, 1):
        wheel(canvas, side * 0.8, 0.3)
        canvas.line(side * 0.5, 0.6, side * 0.5, tall - 0.6, 0.09, body)
    canvas.rect(0, tall - 1.25, 2.4, 1.25, body)
    canvas.rect(0, tall - 1.2, 2.3, 1.15, BLACK)
    if rng.random() < 0.6:
        _arrow(canvas, 0, tall - 0.62, 2.2 * float(rng.choice([-1, 1])), 1.1)
    else:
        for line in range(3):
            count = int(rng.integers(4, 8))
            for i in range(count):
                if rng.random() < 0.85:
                    canvas.rect(-0.95 + 1.9 * (i + 0.5) / count, tall - 0.42 - 0.34 * line, 0.17, 0.2, AMBER, glow=1.0)
    return canvas.finish(rng, 0.5)


def stride_of(count: int, spacing: float) -> list[float]:
    """Offsets of `count` things `spacing` metres apart, about 0."""
    return [spacing * (i - (count - 1) / 2) for i in range(count)]


def bearing(rng: np.random.Generator) -> float:
    """How narrow a board looks that is turned up to 55 degrees away."""
    return math.cos(math.radians(float(rng.uniform(0, 55))))
