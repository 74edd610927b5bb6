"""Opens untrusted images, the same way for every package: checks the header, decodes the first frame, makes it RGB."""

from __future__ import annotations

import errno
import io
import os
import stat
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image

from clip_core.errors import ClipError, ImageError
from clip_core.image_config import MAX_PIXELS, ImageMode

TABLES = tomllib.loads(Path(__file__).with_name("images.toml").read_text("utf-8"))
FORMATS = tuple(TABLES["formats"])
TRANSPOSE = {int(value): Image.Transpose[turn] for value, turn in TABLES["orientations"].items()}


def load_image(
    source: str | os.PathLike[str] | bytes | IO[bytes],
    *,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
    image_mode: ImageMode = "standard",
    name: str = "",
) -> Image.Image:
    """Returns the image in RGB, upright and opaque; with `image_mode` openclip as Pillow decodes it, in its own mode.

    `source`: a path, the bytes of a file, or an open seekable file, called `name` in messages. Raises ImageError.
    """
    with ExitStack() as stack:
        if isinstance(source, str | os.PathLike):
            name = name or os.fspath(source)
            try:
                if not stat.S_ISREG(os.stat(source).st_mode):  # opening a pipe may take forever
                    raise OSError(errno.EINVAL, "it is not a regular file")
                source = stack.enter_context(open(source, "rb"))
            except (OSError, ValueError) as error:  # a ValueError: a path with a null byte
                reason = getattr(error, "strerror", None) or error
                raise ImageError(f"{name} cannot be read: {reason}; check the path", "missing") from error
        file, name = io.BytesIO(source) if isinstance(source, bytes) else source, name or "the image"
        image = open_image(file, max_pixels=max_pixels, formats=formats, name=name)
        with decoding(name):
            image.load()
        return image if image_mode == "openclip" else upright_rgb(image, name)


def open_image(
    file: IO[bytes], *, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS, name: str = "the image"
) -> Image.Image:
    """Reads the header of a seekable file. Raises ImageError: too_large, undecodable.

    The image is not decoded yet: the caller may reject it by its size, or call `draft`.
    """
    head = file.read(30)
    file.seek(0)
    if "WEBP" in formats:  # its decoder allocates the whole canvas when it opens a file
        _check_pixels(webp_size(head), max_pixels, name)
    with decoding(name):
        Image.init()
        image = Image.open(file, formats=[form for form in formats if form in Image.OPEN])  # it fails on unknown ones
        _check_pixels(image.size, max_pixels, name)
        if image.format == "JPEG" and image.info.get("progressive"):
            place, scans, last = file.tell(), 0, b""
            file.seek(0)
            while block := file.read(1 << 20):
                scans += (last + block).count(b"\xff\xda")
                last = block[-1:]  # a marker may lie across two blocks
            file.seek(place)
            if scans * image.width * image.height > TABLES["max_scan_pixels"] * max_pixels:
                raise ImageError(f"{name} has {scans:,} scans of {image.width} × {image.height} pixels", "too_large")
    return image


def read_orientation(image: Image.Image) -> int:
    """Returns the EXIF (or XMP) orientation, 1 to 8; 1 where it is absent or damaged.

    In a PNG it may follow the pixels, which are decoded for it. Raises ImageError if that fails.
    """
    if image.format == "PNG" and "exif" not in image.info:
        with decoding("the image"):
            image.load()
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
    except Exception:  # parsers of metadata raise nearly anything on damaged bytes, and the pixels may be fine
        return 1
    return value if type(value) is int and value in TRANSPOSE else 1


def upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """Returns the width and height that `upright_rgb` will give an image that is not decoded yet."""
    # Pillow itself turns a TIFF while it decodes it, and announces the final size if the TIFF's own tag says so.
    announced = image.format == "TIFF" and image.tag_v2.get(ExifTags.Base.Orientation) == orientation  # type: ignore[attr-defined]
    return (image.height, image.width) if orientation >= 5 and not announced else image.size


def upright_rgb(image: Image.Image, name: str = "the image") -> Image.Image:
    """Returns an image of any mode as opaque RGB, turned as its orientation says. Raises ImageError.

    Transparent parts become white. 16-bit values lose their low byte. Values of 32 bits and floats are taken as 0–1
    (floats only), 0–255 or 0–65535, whichever range holds all of them; others are an error (pixel_format).
    """
    with decoding(name):
        image.load()
        turn = TRANSPOSE.get(read_orientation(image))
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            rgb = Image.fromarray(_to_8_bits(image, name)).convert("RGB")
        elif image.mode not in TABLES["modes"]:
            raise ImageError(f"{name} is of mode {image.mode}, which has no defined form in RGB", "pixel_format")
        elif image.has_transparency_data:
            layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
            rgb = Image.new("RGB", image.size, "white")
            rgb.paste(layer, mask=layer.getchannel("A"))
        else:
            rgb = image if image.mode == "RGB" else image.convert("RGB")
        if turn is not None:
            rgb = rgb.transpose(turn)
        if rgb is not image:
            rgb.info = {}  # it would still ask for a turn
        return rgb


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turns the errors of decoders into an ImageError."""
    try:
        yield
    except (ClipError, MemoryError):
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, which guards images within images too
        raise ImageError(f"{name} is refused: {error}", "too_large") from error
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "it is of no known format" if unknown else str(error).partition("\n")[0] or type(error).__name__
        raise ImageError(f"{name} does not decode as an image: {reason}", "undecodable") from error


def _to_8_bits(image: Image.Image, name: str) -> np.ndarray:
    """Returns uint8 [H, W] from a mode with one wide channel."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        if image.format == "TIFF" and image.tag_v2.get(TABLES["tiff_photometric"]) == 0:  # type: ignore[attr-defined]
            values = ~values  # white is 0, which Pillow handles in 8 bits only
        grey = (values >> 8).astype(np.uint8)
        if "transparency" in image.info:
            grey[values == image.info["transparency"]] = 255
        return grey
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):  # also where a value is not a number
        found = f"{name} holds values from {low:g} to {high:g}"
        raise ImageError(f"{found}; only 0 to 1, 255 or 65535 have a defined 8-bit form", "pixel_format")
    if high > 255:
        return (values / 256).astype(np.uint8)
    rounded: np.ndarray = np.rint(values * 255 if image.mode == "F" and high <= 1 else values)
    return rounded.astype(np.uint8)


def _check_pixels(size: tuple[int, int] | None, max_pixels: int, name: str) -> None:
    width, height = size or (0, 0)
    if width * height > max_pixels:
        raise ImageError(f"{name} has {width} × {height} pixels; images over {max_pixels:,} are refused", "too_large")


def webp_size(head: bytes) -> tuple[int, int] | None:
    """Returns (width, height) of a WebP file's canvas by its first 30 bytes; None for damage or another format."""
    chunk, data = head[12:16], head[20:30]
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(data) < 10:
        return None
    if chunk == b"VP8X":
        return int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1
    if chunk == b"VP8L" and data[0] == 0x2F:
        bits = int.from_bytes(data[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 " and data[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF
    return None
