"""Opening pictures that others made."""

import functools
import io
import os
from typing import IO

from PIL import Image, ImageOps

from clip_models.errors import ClipModelsError, first_line

MAX_PIXELS = 89_478_485  # Pillow's own line between large and suspicious: 256 MB in RGB
# Formats that hold pictures and are decoded in this process; Pillow has others that start programs (EPS) or guess.
_FORMATS = (
    "AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "PSD", "QOI",
    "SGI", "TGA", "TIFF", "WEBP",
)  # fmt: skip


class PictureError(ClipModelsError):
    """A picture that cannot be used. `code` is its reason in a word: missing, too_large or undecodable."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def load_image(
    source: str | os.PathLike[str] | bytes | IO[bytes],
    *,
    max_pixels: int = MAX_PIXELS,
    upright: bool = False,
    name: str = "",
) -> Image.Image:
    """The decoded picture, in its own mode; of an animation the first frame.

    `source`: a path, the bytes of a file, or an open file. `upright` turns it as its EXIF orientation says, which
    OpenCLIP does not do. `name` stands for it in messages. Raises ClipModelsError, naming the file, when it is not
    there, has more than `max_pixels` pixels, is cut off, or is no picture; nothing is decoded before the size is known.
    """
    name = name or (os.fspath(source) if isinstance(source, str | os.PathLike) else "the picture")
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(file, formats=_formats()) as image:
            if image.width * image.height > max_pixels:
                raise PictureError(
                    f"{name} has {image.width} × {image.height} pixels; pictures over {max_pixels:,} are refused",
                    "too_large",
                )
            image.load()
            return ImageOps.exif_transpose(image) if upright else image
    except PictureError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise PictureError(f"{name} cannot be read: {error.strerror}; check the path", "missing") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} is refused: {error}", "too_large") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on bytes made by strangers
        reason = "it is of no known format" if isinstance(error, Image.UnidentifiedImageError) else first_line(error)
        raise PictureError(f"{name} does not decode as a picture: {reason}", "undecodable") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of _FORMATS that this Pillow was built with; Image.open fails on others."""
    Image.init()
    return tuple(form for form in _FORMATS if form in Image.OPEN)
