"""Small images for tests, in any format and mode."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from PIL import Image


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB image with soft structure, different for each seed."""
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


def exif_orientation(kind: int, value: bytes, count: int = 1) -> bytes:
    """An EXIF block with nothing but an orientation, of any TIFF type: 3 is SHORT, 5 RATIONAL, 2 ASCII, 12 DOUBLE."""
    head = b"Exif\0\0MM\0*" + struct.pack(">IHHHI", 8, 1, 0x0112, kind, count)
    short = len(value) <= 4
    return head + (value.ljust(4, b"\0") if short else struct.pack(">I", 26)) + bytes(4) + (b"" if short else value)


def decode(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def near(image: Image.Image, place: tuple[int, int], colour: tuple[int, int, int], tolerance: int = 12) -> bool:
    """Whether the pixel at (x, y) has about this colour."""
    return all(abs(found - wanted) <= tolerance for found, wanted in zip(image.getpixel(place), colour, strict=True))
