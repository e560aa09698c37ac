"""The provider `weather`: the same street in rain, fog, glare, dusk, at night or under a grey sky. What it shows does not change."""

from __future__ import annotations

import cv2
import numpy as np

from .camera import finish
from .canvas import Floats, Pixels, pick
from .scene import Scene, read_scene

KINDS = ("rain", "fog", "glare", "night", "dusk", "overcast")


def weather(image: Pixels, kind: str, rng: np.random.Generator) -> Pixels:
    """The photograph (h x w x 3, RGB) in another weather, one of KINDS. Raises ValueError for an unknown kind."""
    scene = read_scene(image, rng)
    values = image.astype(np.float32)
    makers = {"rain": _rain, "fog": _fog, "glare": _glare, "night": _night, "dusk": _dusk, "overcast": _overcast}
    if kind not in makers:
        raise ValueError(f"unknown weather {kind!r}; known: {', '.join(KINDS)}")
    return finish(makers[kind](values, scene, rng), rng, restyle=False)


def _depth(scene: Scene) -> Floats:
    """Metres to what is seen, by row alone: the road below the horizon, far things above it and beside the road."""
    rows = np.arange(scene.height, dtype=np.float32)[:, None]
    ground = scene.focal * 1.4 / np.maximum(rows - scene.horizon, 1.5)
    above = np.clip(60 + (scene.horizon - rows) * 1.5, 40, 300)
    depth = np.where(rows > scene.horizon + 1.5, np.minimum(ground, 150), above)
    smooth = cv2.GaussianBlur(depth.astype(np.float32), (1, 2 * (scene.height // 20) + 1), scene.height / 40)
    return np.broadcast_to(smooth.reshape(-1, 1), (scene.height, scene.width)).astype(np.float32)


def _clouds(scene: Scene, rng: np.random.Generator, strength: float) -> Floats:
    """Smooth unevenness, mean 1."""
    field = cv2.resize(rng.normal(1, strength, (5, 7)).astype(np.float32), (scene.width, scene.height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(field, np.float32)[:, :, None]


def _mute(values: Floats, amount: float) -> Floats:
    grey = values.mean(axis=2, keepdims=True)
    return np.asarray(grey + (values - grey) * amount, np.float32)


def _fog(values: Floats, scene: Scene, rng: np.random.Generator) -> Floats:
    """Koschmieder's law: contrast falls exponentially with distance, towards the colour of the air."""
    air = np.full(3, rng.uniform(150, 215), np.float32) * np.array((0.98, 1.0, 1.02), np.float32)
    reach = rng.uniform(35, 120)
    seen = np.exp(-_depth(scene) / reach)[:, :, None] * _clouds(scene, rng, 0.06)
    seen = np.clip(seen, 0.08, 1)
    return np.asarray(_mute(values, 0.8) * seen + air * (1 - seen), np.float32)


def _rain(values: Floats, scene: Scene, rng: np.random.Generator) -> Floats:
    """Grey light, a wet road that mirrors what stands above it, streaks, at times drops on the glass."""
    out = _fog(_mute(values, 0.75) * rng.uniform(0.6, 0.85), scene, rng) * 0.55 + _mute(values, 0.75) * rng.uniform(0.3, 0.42)
    line = int(scene.horizon)
    depth = scene.height - line
    up = np.clip(line - np.arange(depth), 0, scene.height - 1)
    mirror = cv2.GaussianBlur(out[up], (0, 0), sigmaX=1.5, sigmaY=6)
    wet = cv2.GaussianBlur(scene.road[line:].astype(np.float32), (0, 0), 3)[:, :, None] * rng.uniform(0.15, 0.4)
    wet = wet * np.clip(np.arange(depth, dtype=np.float32) / (0.08 * scene.height), 0, 1)[:, None, None]
    out[line:] = out[line:] * (1 - wet) + mirror * wet
    streaks = np.zeros((scene.height, scene.width), np.float32)
    slant = rng.normal(0, 0.15)
    for _ in range(int(rng.integers(80, 350))):
        x, y, length = rng.uniform(0, scene.width), rng.uniform(-20, scene.height), rng.uniform(6, 28) * scene.height / 300
        start, end = (int(x * 8), int(y * 8)), (int((x + slant * length) * 8), int((y + length) * 8))
        cv2.line(streaks, start, end, float(rng.uniform(8, 40)), 1, cv2.LINE_AA, 3)
    out = out + cv2.GaussianBlur(streaks, (0, 0), 0.6)[:, :, None]
    if rng.random() < 0.4:
        out = _drops(out, scene, rng)
    return np.asarray(out, np.float32)


def _drops(values: Floats, scene: Scene, rng: np.random.Generator) -> Floats:
    """Drops on the windscreen: small discs through which the street is seen blurred and brighter."""
    mask = np.zeros((scene.height, scene.width), np.float32)
    for _ in range(int(rng.integers(10, 45))):
        centre = (int(rng.uniform(0, scene.width)), int(rng.uniform(0, scene.height)))
        cv2.circle(mask, centre, int(rng.integers(1, 5)), 1.0, -1, cv2.LINE_AA)
    cover = cv2.GaussianBlur(mask, (0, 0), 0.8)[:, :, None]
    soft = cv2.GaussianBlur(np.clip(values, 0, 255), (0, 0), 5) * 1.12
    return np.asarray(values * (1 - 0.75 * cover) + soft * 0.75 * cover, np.float32)


def _glare(values: Floats, scene: Scene, rng: np.random.Generator) -> Floats:
    """A low sun in or beside the picture: veil, bloom, and a dark foreground."""
    x, y = rng.uniform(0.1, 0.9) * scene.width, rng.uniform(0.0, 0.9) * scene.horizon
    columns, rows = np.meshgrid(np.arange(scene.width, dtype=np.float32), np.arange(scene.height, dtype=np.float32))
    distance = np.hypot(columns - x, rows - y) / scene.height
    bloom = rng.uniform(140, 260) * np.exp(-((distance / rng.uniform(0.12, 0.3)) ** 1.2)) + rng.uniform(30, 80) * np.exp(-distance / 0.6)
    tint = np.array((1.0, rng.uniform(0.86, 0.97), rng.uniform(0.65, 0.9)), np.float32)
    base = _mute(values, rng.uniform(0.7, 0.95)) * rng.uniform(0.55, 0.95)
    return np.asarray(base + bloom[:, :, None] * tint, np.float32)


def _night(values: Floats, scene: Scene, rng: np.random.Generator) -> Floats:
    """Little light from above, headlights on the road and what stands near, shining sheeting and lamps, sensor noise."""
    lit = np.clip(values, 0, 255) / 255
    rows = np.arange(scene.height, dtype=np.float32)[:, None]
    sky = np.clip((scene.horizon - rows) / max(scene.horizon, 1), 0, 1)[:, :, None]
    ambient = rng.uniform(0.2, 0.38)
    columns = np.arange(scene.width, dtype=np.float32)[None, :]
    reach = np.exp(-(((columns - scene.width * rng.uniform(0.42, 0.58)) / (scene.width * rng.uniform(0.28, 0.5))) ** 2))
    fall = np.exp(-(((rows - scene.horizon - 0.12 * scene.height) / (scene.height * rng.uniform(0.2, 0.4))) ** 2))
    lamps = (reach * fall)[:, :, None] * rng.uniform(0.5, 0.95)
    bright = lit ** np.float32(1.3)
    warm = np.array((1.08, 1.0, 0.84), np.float32)
    out = bright * (ambient + lamps * warm) * (1 - 0.88 * sky)
    # saturated red and orange, and white plates, are what sheeting and lamps look like by day
    colourful = np.clip((lit.max(axis=2) - lit.min(axis=2) - 0.35) * 2.5, 0, 1) * np.clip(lit[:, :, 0] - lit[:, :, 2], 0, 1)
    colourful *= (rows > scene.horizon * 0.5).astype(np.float32)
    out = out + (colourful * rng.uniform(0.2, 0.6))[:, :, None] * lit
    for _ in range(int(rng.integers(0, 7))):
        spot = np.zeros((scene.height, scene.width), np.float32)
        centre = (int(rng.uniform(0, scene.width)), int(rng.uniform(0.3, 1.05) * scene.horizon))
        cv2.circle(spot, centre, int(rng.integers(1, 4)), 1.0, -1, cv2.LINE_AA)
        halo = spot + 9 * cv2.GaussianBlur(spot, (0, 0), float(rng.uniform(3, 9)))
        out = out + np.clip(halo, 0, 1)[:, :, None] * np.array(pick(rng, [(1, 0.8, 0.5), (1, 0.95, 0.85), (1, 0.25, 0.15)]), np.float32)
    noise = rng.standard_normal(out.shape, dtype=np.float32) * rng.uniform(2, 7)
    return np.asarray(np.clip(out, 0, 1) * 255 + noise, np.float32)


def _dusk(values: Floats, scene: Scene, rng: np.random.Generator) -> Floats:
    """Half the light, blue above and warm towards the horizon."""
    rows = np.arange(scene.height, dtype=np.float32)[:, None, None] / scene.height
    low = np.exp(-(((rows - scene.horizon / scene.height) / 0.22) ** 2))
    blue, warm = np.array((0.72, 0.82, 1.08), np.float32), np.array((1.15, 0.88, 0.7), np.float32)
    tint = blue * (1 - 0.7 * low) + warm * 0.7 * low
    return np.asarray(_mute(values, 0.85) * tint * rng.uniform(0.4, 0.68), np.float32)


def _overcast(values: Floats, scene: Scene, rng: np.random.Generator) -> Floats:
    """Flat cold light: shadows lifted, sky grey, colours muted."""
    lit = np.clip(values, 0, 255) / 255
    lifted = np.asarray(1 - (1 - lit) ** 1.25, np.float32)
    rows = np.arange(scene.height, dtype=np.float32)[:, None]
    sky = np.clip((scene.horizon - rows) / max(scene.horizon, 1), 0, 1)
    open_sky = (cv2.GaussianBlur((lit[:, :, 2] > 0.62).astype(np.float32), (0, 0), 2) * sky)[:, :, None] * 0.75
    cloud = rng.uniform(0.68, 0.82) * _clouds(scene, rng, 0.05)
    out = _mute(lifted, rng.uniform(0.5, 0.75)) * np.array((0.95, 0.99, 1.03), np.float32)
    return np.asarray((out * (1 - open_sky) + cloud * open_sky) * 255 * rng.uniform(0.78, 0.95), np.float32)
