"""Small pictures for tests, in any format and mode."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB picture with soft structure, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def corners(width: int, height: int) -> Image.Image:
    """Red, green, blue and white quarters: top left, top right, bottom left, bottom right."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("lime", (width // 2, 0, width, height // 2))
    image.paste("blue", (0, height // 2, width // 2, height))
    image.paste("white", (width // 2, height // 2, width, height))
    return image


def encode(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decode(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def near(image: Image.Image, place: tuple[int, int], colour: tuple[int, int, int], tolerance: int = 12) -> bool:
    """Whether the pixel at (x, y) has about this colour."""
    return all(abs(found - wanted) <= tolerance for found, wanted in zip(image.getpixel(place), colour, strict=True))
