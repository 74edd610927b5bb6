"""What the other packages share. Importing this module does not import Pillow."""

from importlib import import_module
from typing import TYPE_CHECKING, Literal

from clip_core.errors import ClipError, ImageError

if TYPE_CHECKING:
    from clip_core.images import load_image, open_image, read_orientation, upright_rgb, upright_size

MAX_PIXELS = 64_000_000
"""Default limit of an image, checked before decoding: the photos of nearly all cameras, and 192 MB in RGB."""
ImageMode = Literal["standard", "openclip"]
"""How an image becomes RGB. standard: turned as its EXIF orientation says, 16-bit and float values scaled to 8 bits,
transparent parts white. openclip: Pillow's `convert("RGB")` after resizing, as OpenCLIP does it."""

__all__ = [
    "MAX_PIXELS",
    "ClipError",
    "ImageError",
    "ImageMode",
    "load_image",
    "open_image",
    "read_orientation",
    "upright_rgb",
    "upright_size",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.images"), name)
