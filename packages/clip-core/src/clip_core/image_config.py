"""Options of clip_core.images, free of Pillow."""

from typing import Literal

MAX_PIXELS = 64_000_000
"""Default limit of an image, checked before decoding: above nearly all cameras' images, and 192 MB in RGB."""
ImageMode = Literal["standard", "openclip"]
"""How an image becomes RGB. standard: turned as its EXIF orientation says, 16-bit and float values scaled to 8 bits,
transparent parts white. openclip: Pillow's `convert("RGB")` after resizing, as OpenCLIP does it."""
