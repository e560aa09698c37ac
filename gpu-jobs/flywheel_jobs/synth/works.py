"""Larger and darker things of a building site on the street: scaffolding, hoardings, skips, stacks, lamp towers, low loaders.

What a street under work shows beside cones: much of it is grey, green or brown, so that colour alone does not tell roadwork.
"""

from __future__ import annotations

import numpy as np

from .canvas import BLACK, GREY, WHITE, Canvas, Colour, Sprite, jitter, pick
from .figures import AMBER, GLASS, ORANGE, RED, SILVER, YELLOW, wheel

WOOD: tuple[Colour, ...] = ((0.62, 0.48, 0.32), (0.5, 0.38, 0.26), (0.72, 0.6, 0.42))
SITE_PAINTS: tuple[Colour, ...] = (
    YELLOW,
    ORANGE,
    (0.95, 0.62, 0.06),
    (0.12, 0.36, 0.2),
    (0.1, 0.42, 0.3),
    (0.8, 0.8, 0.77),
    (0.7, 0.1, 0.1),
    (0.16, 0.28, 0.5),
)


def scaffold(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """Two or three storeys of tubes and planks, often behind a net, or a sidewalk shed: a dark deck on posts."""
    shed = rng.random() < 0.4
    storeys = 1 if shed else int(rng.integers(2, 4))
    step, wide = rng.uniform(1.8, 2.3), rng.uniform(3.0, 6.5)
    tall = storeys * step + (1.1 if shed else 0.6)
    canvas = Canvas(wide * 1.05, tall, pixels * tall / 4.5, light, 0.01)
    tube = jitter(rng, pick(rng, [SILVER, GREY, (0.25, 0.24, 0.23), (0.45, 0.22, 0.12), (0.1, 0.3, 0.2)], [3, 3, 3, 1, 1]))
    plank = jitter(rng, pick(rng, WOOD))
    net = jitter(rng, pick(rng, [(0.12, 0.24, 0.17), (0.1, 0.1, 0.11), (0.3, 0.32, 0.34), (0.16, 0.26, 0.42), ORANGE], [4, 3, 2, 2, 1]))
    netted = rng.random() < 0.45
    if not shed and netted:
        for level in range(storeys):
            if rng.random() < 0.75:
                canvas.rect(
                    0, level * step + rng.uniform(0.0, 0.9), wide * rng.uniform(0.75, 1.0), step * rng.uniform(0.5, 0.95), net, fade=0.3
                )
    bays = max(2, round(wide / rng.uniform(1.2, 2.2)))
    for i in range(bays + 1):
        x = -wide / 2 + wide * i / bays
        canvas.rect(x, 0, 0.07, tall - 0.05, tube)
        canvas.rect(x, 0, 0.22, 0.05, plank)
    for level in range(1, storeys + 1):
        canvas.rect(0, level * step, wide, 0.1, plank)
        for rail in (0.5, 1.0):
            if level * step + rail < tall:
                canvas.rect(0, level * step + rail, wide, 0.05, tube)
    for i in range(bays):
        if rng.random() < 0.6:
            x = -wide / 2 + wide * i / bays
            rise = step * (1 if rng.random() < 0.5 else -1)
            low = 0.1 if rise > 0 else step
            canvas.line(x, low, x + wide / bays, low + rise * 0.95, 0.05, tube)
    if shed:
        board = jitter(rng, pick(rng, [(0.1, 0.24, 0.16), (0.12, 0.2, 0.34), (0.16, 0.15, 0.15), plank]))
        canvas.rect(0, step, wide, 1.05, board, fade=0.25)
        canvas.rect(0, step - 0.16, wide, 0.2, (0.12, 0.11, 0.11))
    if rng.random() < 0.3:
        canvas.rect(rng.uniform(-0.3, 0.3) * wide, step * 0.4, 1.0, 0.7, pick(rng, [WHITE, YELLOW, ORANGE]))
    return canvas.finish(rng, 0.6)


def light_tower(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A trailer with a mast and four work lamps, or a balloon lamp on a tripod."""
    tall = rng.uniform(3.2, 5.5)
    canvas = Canvas(2.6, tall, pixels * tall / 4.0, light, 0.01)
    if rng.random() < 0.7:
        body = jitter(rng, pick(rng, SITE_PAINTS))
        canvas.rect(0, 0.45, 1.9, 0.75, body, fade=0.3)
        canvas.rect(0.3, 0.6, 0.7, 0.3, BLACK)
        for side in (-1, 1):
            wheel(canvas, side * 0.55, 0.32)
            canvas.line(side * 0.6, 0.5, side * 1.2, 0.02, 0.06, GREY)
        canvas.rect(0, 1.1, 0.14, tall - 1.6, jitter(rng, SILVER))
        canvas.rect(0, tall - 0.62, 1.7, 0.07, GREY)
        for i in range(4):
            canvas.rect(-0.7 + 0.47 * i, tall - 0.52, 0.4, 0.36, BLACK)
            canvas.rect(-0.7 + 0.47 * i, tall - 0.49, 0.33, 0.3, (1.0, 0.98, 0.9), glow=1.0)
    else:
        for side in (-1, 0, 1):
            canvas.line(0, tall * 0.45, side * 0.8, 0.02, 0.05, GREY)
        canvas.rect(0, tall * 0.4, 0.08, tall * 0.45, GREY)
        canvas.disc(0, tall - 0.55, 0.75, (0.98, 0.97, 0.9), 0.42, turned=True, glow=0.9)
    return canvas.finish(rng, 0.4)


def stack(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """Material: pipes, kerbstones on pallets, big bags, a cable reel, formwork, a pallet of bricks."""
    kind = pick(rng, ["pipes", "pallet", "bags", "reel", "boards"], [3, 3, 2, 2, 2])
    tall, wide = rng.uniform(0.8, 1.5), rng.uniform(1.2, 2.8)
    canvas = Canvas(wide * 1.1, tall * 1.08, pixels * tall, light, 0.03)
    if kind == "pipes":
        radius = tall / rng.uniform(3.0, 6.0)
        paint = jitter(rng, pick(rng, [(0.75, 0.32, 0.14), (0.12, 0.12, 0.13), (0.62, 0.6, 0.57), (0.14, 0.34, 0.6), (0.14, 0.4, 0.25)]))
        y, left = radius, -wide / 2
        while y + radius <= tall and left < -radius:
            x = left + radius
            while x + radius <= -left:
                canvas.disc(x, y, radius, jitter(rng, paint, 0.1))
                canvas.disc(x, y, radius * 0.72, (0.1, 0.09, 0.09))
                x += 2 * radius
            y += 1.75 * radius
            left += radius
    elif kind == "pallet":
        canvas.rect(0, 0, wide * 0.9, 0.14, jitter(rng, WOOD[1]))
        stone = jitter(rng, pick(rng, [(0.64, 0.62, 0.58), (0.6, 0.32, 0.22), (0.8, 0.78, 0.72)]))
        rows, columns = int(rng.integers(3, 7)), int(rng.integers(3, 8))
        for r in range(rows):
            for c in range(columns):
                canvas.rect(
                    -wide * 0.42 + wide * 0.84 * (c + 0.5) / columns,
                    0.15 + (tall - 0.2) * r / rows,
                    wide * 0.8 / columns,
                    (tall - 0.2) / rows * 0.9,
                    jitter(rng, stone, 0.08),
                )
    elif kind == "bags":
        count = int(rng.integers(1, 4))
        for i in range(count):
            x = (i - (count - 1) / 2) * min(0.9, wide * 0.3)
            white = jitter(rng, pick(rng, [(0.86, 0.85, 0.8), (0.7, 0.68, 0.62)]))
            canvas.poly([(x - 0.42, 0), (x + 0.42, 0), (x + 0.47, tall * 0.8), (x - 0.47, tall * 0.8)], white, turned=True, fade=0.35)
            canvas.disc(x, tall * 0.8, 0.45, jitter(rng, WOOD[0]), tall * 0.14)
    elif kind == "reel":
        paint = jitter(rng, pick(rng, [*WOOD, (0.3, 0.32, 0.33)]))
        canvas.rect(0, 0.1, wide * 0.5, tall * 0.75, jitter(rng, pick(rng, [BLACK, ORANGE, (0.5, 0.1, 0.5)])), turned=True)
        for side in (-1, 1):
            canvas.disc(side * wide * 0.28, tall * 0.48, tall * 0.2, paint, tall * 0.48)
            canvas.disc(side * wide * 0.28, tall * 0.48, tall * 0.05, BLACK, tall * 0.1)
    else:
        for i in range(int(rng.integers(4, 9))):
            canvas.rect(
                rng.normal(0, 0.05),
                0.1 + i * tall * 0.1,
                wide * rng.uniform(0.8, 1.0),
                tall * 0.085,
                jitter(rng, pick(rng, [*WOOD, YELLOW])),
            )
    return canvas.finish(rng, 0.8)


def skip(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A skip of rubble, a site hut, a compressor or a portable toilet."""
    kind = pick(rng, ["skip", "toilet", "hut", "compressor"], [4, 2, 2, 2])
    paint = jitter(rng, pick(rng, SITE_PAINTS))
    if kind == "skip":
        wide, tall = rng.uniform(2.6, 4.2), rng.uniform(1.2, 1.8)
        canvas = Canvas(wide * 1.05, tall * 1.25, pixels * tall * 1.25 / 2.2, light, 0.02)
        for _ in range(14):
            x, size = rng.uniform(-0.4, 0.4) * wide, rng.uniform(0.1, 0.3)
            canvas.regular(x, tall * 0.98, size, 5, jitter(rng, pick(rng, [*WOOD, GREY, (0.6, 0.32, 0.22)]), 0.15), turn=rng.uniform(0, 90))
        canvas.poly([(-wide * 0.34, 0), (wide * 0.34, 0), (wide * 0.5, tall), (-wide * 0.5, tall)], paint, fade=0.35)
        for i in range(4):
            canvas.line(-wide * 0.3 + wide * 0.2 * i, 0.05, -wide * 0.36 + wide * 0.24 * i, tall * 0.95, 0.08, jitter(rng, paint, 0.15))
        if rng.random() < 0.6:
            for side in (-1, 1):
                canvas.rect(side * wide * 0.4, tall * 0.7, wide * 0.13, tall * 0.2, WHITE, stripes=(RED, 45.0 * side, 0.22), glow=0.4)
    elif kind == "compressor":
        canvas = Canvas(2.8, 1.6, pixels * 1.6 / 2.2, light, 0.02)
        canvas.poly([(-1.1, 0.4), (1.1, 0.4), (1.1, 1.2), (0.8, 1.5), (-0.9, 1.5), (-1.1, 1.2)], paint, fade=0.3)
        for i in range(5):
            canvas.rect(-0.6 + 0.12 * i, 0.6, 0.05, 0.5, BLACK)
        wheel(canvas, 0.1, 0.32)
        canvas.line(1.0, 0.5, 1.38, 0.1, 0.07, GREY)
    else:
        wide, tall = (1.15, 2.25) if kind == "toilet" else (rng.uniform(3.0, 5.0), 2.5)
        canvas = Canvas(wide * 1.08, tall, pixels * tall / 2.2, light, 0.01)
        canvas.rect(0, 0.1, wide, tall - 0.25, paint, fade=0.25)
        canvas.rect(0, tall - 0.18, wide * 1.04, 0.15, jitter(rng, WHITE))
        canvas.rect(-wide * 0.2, 0.15, min(0.85, wide * 0.7), tall * 0.78, jitter(rng, paint, 0.12))
        if kind == "hut":
            canvas.rect(wide * 0.22, tall * 0.45, wide * 0.3, tall * 0.3, GLASS)
    return canvas.finish(rng, 0.8)


def low_loader(rng: np.random.Generator, pixels: float, light: float) -> Sprite:
    """A flat lorry with a machine, a crane arm or a ramp on it, or a tipper with a raised bed."""
    tall, long = rng.uniform(2.7, 3.6), rng.uniform(6.0, 8.5)
    canvas = Canvas(long * 1.03, tall + 0.4, pixels * (tall + 0.4) / 3.3, light, 0.0)
    half = long / 2
    cab = half - 1.6
    paint, load = jitter(rng, pick(rng, [*SITE_PAINTS, WHITE, WHITE])), jitter(rng, pick(rng, SITE_PAINTS))
    canvas.rect(-0.5, 0.6, long * 0.8, 0.22, (0.15, 0.15, 0.16))
    canvas.poly([(cab, 0.45), (half, 0.45), (half, tall * 0.5), (half - 0.25, tall * 0.8), (cab, tall * 0.8)], paint, fade=0.25)
    canvas.poly(
        [(cab + 0.4, tall * 0.5), (half - 0.12, tall * 0.5), (half - 0.32, tall * 0.76), (cab + 0.4, tall * 0.76)], GLASS, fade=-0.4
    )
    kind = pick(rng, ["machine", "tipper", "crane", "ramp"])
    if kind == "machine":
        base = 0.85
        canvas.poly([(-half * 0.7, base), (half * 0.1, base), (half * 0.05, base + 0.4), (-half * 0.65, base + 0.4)], BLACK)
        canvas.rect(-half * 0.35, base + 0.4, half * 0.7, 0.7, load, fade=0.3)
        canvas.rect(-half * 0.45, base + 1.0, half * 0.28, min(1.0, tall - base - 0.9), load)
        canvas.rect(-half * 0.45, base + 1.1, half * 0.2, min(0.7, tall - base - 1.1), GLASS)
        canvas.line(-half * 0.1, base + 0.8, half * 0.25, tall, 0.22, load)
        canvas.line(half * 0.25, tall, half * 0.45, base + 0.5, 0.18, load)
    elif kind == "tipper":
        rise = rng.uniform(0.0, 0.8)
        canvas.poly([(-half, 0.8), (cab - 0.2, 0.8 + rise), (cab - 0.2, tall * 0.75 + rise), (-half, tall * 0.62)], load, fade=0.3)
        for i in range(5):
            x = -half + (cab + half) * (i + 0.5) / 5
            canvas.rect(x, 0.9 + rise * (i + 0.5) / 5, 0.1, tall * 0.5, jitter(rng, load, 0.15))
    elif kind == "crane":
        canvas.rect(-half * 0.3, 0.8, long * 0.55, 0.5, load, fade=0.2)
        top = (rng.uniform(-0.2, 0.4) * half, tall)
        canvas.line(cab - 0.4, 0.9, top[0], top[1], 0.2, load)
        canvas.line(top[0], top[1], -half * 0.6, tall * 0.7, 0.15, load)
    else:
        canvas.line(-half * 0.95, 0.1, -half * 0.2, 0.95, 0.2, load)
        canvas.line(-half * 0.95, 0.1, -half * 0.9, 1.6, 0.16, load)
        canvas.rect(-half * 0.1, 0.8, half * 0.8, 1.1, load, fade=0.3)
    canvas.rect((cab - half) / 2, 0.66, long * 0.55, 0.13, WHITE, stripes=(RED, 45.0, 0.4), glow=0.3)
    if rng.random() < 0.7:
        canvas.rect(cab + 0.5, tall * 0.8, 0.3, 0.16, AMBER, glow=1.0)
    for x in (-half * 0.75, -half * 0.48, half * 0.72):
        wheel(canvas, x, 0.45)
    return canvas.finish(rng, 0.9)
