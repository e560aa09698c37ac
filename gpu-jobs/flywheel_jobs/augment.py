"""Training augmentation, drawn anew each time an image is seen: the field's photometric and weather recipe, and the
validator's own challenge augmentation. Both are shares of the views, by configuration; the recipe comes first.

albumentations 2.0 (MIT; its successor is not) makes the weather. Everything follows from the generator that is handed in.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

ENOUGH = 2
"""pictures are first brought to this many times the network's size: weather on twelve megapixels costs and shows nothing"""


@dataclass
class Augment:
    """`AugmentationOptions` of the contract, for a network of `size` pixels. Called with a picture and a generator."""

    options: dict[str, Any]
    size: int

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        """A new view; its centre square is still to be cut and resized."""
        from .features import augmented

        draws = rng.random(3)
        if draws[0] < float(self.options["recipe"]):
            picture = self._by_recipe(picture, rng)
        if draws[1] < float(self.options["challenge"]):
            picture = augmented(picture, rng)
        if draws[2] < float(self.options["flip"]):
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return picture

    def _by_recipe(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        short = min(picture.size)
        if short > ENOUGH * self.size:
            share = ENOUGH * self.size / short
            picture = picture.resize((round(picture.width * share), round(picture.height * share)), Image.Resampling.BILINEAR)
        # same shape, smaller: the centre square that follows stays a square
        side = float(np.sqrt(rng.uniform(float(self.options["cropScale"]), 1.0)))
        width, height = max(1, round(picture.width * side)), max(1, round(picture.height * side))
        left, top = int(rng.integers(0, picture.width - width + 1)), int(rng.integers(0, picture.height - height + 1))
        picture = picture.crop((left, top, left + width, top + height))
        self._recipe.set_random_seed(int(rng.integers(0, 2**31)))
        return Image.fromarray(self._recipe(image=np.asarray(picture.convert("RGB")))["image"])

    @cached_property
    def _recipe(self) -> Any:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks the network for a newer one
        import albumentations as A
        import cv2

        cv2.setNumThreads(0)
        o = self.options
        brightness, contrast, saturation = map(float, o["jitter"])
        haze = [
            # about the picture's mean: contrast about black would make night of fog
            A.ColorJitter(brightness=(1.0, 1.2), contrast=(0.5, 0.7), saturation=(0.7, 1.0), hue=(0, 0), p=1),
            A.RandomFog(fog_coef_range=(0.1, 0.3), alpha_coef=0.06, p=1),
        ]
        return A.Compose(
            [
                A.Rotate(limit=float(o["rotate"]), border_mode=cv2.BORDER_REFLECT_101, p=1),
                A.ColorJitter(
                    brightness=(max(0, 1 - brightness), 1 + brightness),
                    contrast=(max(0, 1 - contrast), 1 + contrast),
                    saturation=(max(0, 1 - saturation), 1 + saturation),
                    hue=(0, 0),
                    p=1,
                ),
                A.ToGray(p=float(o["grayscale"])),
                A.GaussianBlur(blur_limit=(3, 7), p=float(o["blur"])),
                A.Sequential(haze, p=float(o["fog"])),
                A.RandomRain(brightness_coefficient=0.85, blur_value=3, p=float(o["rain"])),
                A.RandomSunFlare(flare_roi=(0, 0, 1, 0.4), src_radius=self.size // 2, p=float(o["sun"])),
            ]
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self.options, "size": self.size}
