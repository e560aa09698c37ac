"""Encoded images as pictures, and what is said of those that are none."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from .errors import CorruptImage

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""what Pillow raises for bytes that are no whole image: SyntaxError for a broken PNG"""


def why_unreadable(error: Exception) -> str:
    """In words; Pillow's own for a format it does not know name only an address in memory."""
    return "no image format is recognised" if isinstance(error, UnidentifiedImageError) else str(error)


def decode(data: bytes, digest: str) -> Image.Image:
    """An RGB picture. Raises CorruptImage naming the image."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.convert("RGB")
    except UNREADABLE as error:
        raise CorruptImage(
            f"object {digest} is no readable image: {why_unreadable(error)}. Take its row out of the manifest and start again."
        ) from error
