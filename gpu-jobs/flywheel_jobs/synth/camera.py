"""The camera that takes a finished picture: the same for both classes, and another one every time.

A data set's own camera nearly tells its label; what differs by camera must therefore vary within each class.
"""

from __future__ import annotations

import cv2
import numpy as np

from .canvas import Floats, Pixels

STYLE_SHARE = 0.5
"""how many pictures are given the look of another camera"""


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
    """Tone curve, exposure, contrast, white balance, saturation and sky glare of some other camera on some other day."""
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
