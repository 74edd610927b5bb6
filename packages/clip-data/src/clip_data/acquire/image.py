"""Turns a fetched body into the stored bytes: checked by its header, upright, opaque, resized.

Pillow's own pixel limit is replaced by `max_pixels`, which is checked before decoding.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image

from clip_core import ImageError
from clip_core.images import decoding, open_image, read_orientation, upright_rgb, upright_size
from clip_data.acquire.codes import Code, Rejected
from clip_data.acquire.config import AcquireConfig
from clip_data.acquire.geometry import Geometry, plan_geometry
from clip_data.acquire.sniff import FORMATS, sniff

PILLOW = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
STORED_AS = {"jpeg": "jpg", "png": "png", "webp": "webp"}
CODES = {"too_large": Code.PIXEL_CAP, "undecodable": Code.DECODE_ERROR, "pixel_format": Code.PIXEL_FORMAT}
# Area averaging. Compared with exact averages of grainy photos this filter has 40 to 49 dB PSNR; Pillow's BOX, which
# assigns each source pixel to one target pixel, has 30 to 40, at the same cost.
DOWN, UP = Image.Resampling.HAMMING, Image.Resampling.LANCZOS
# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if at least this many pixels remain per target pixel, in each
# direction. With 1 it would be faster, at 22 to 34 dB.
DRAFT_MARGIN = 2


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """An image to store; or the code of its rejection, with the facts known by then."""

    code: Code | None = None
    data: bytes | None = None
    """encoded image; None if rejected"""
    extension: str | None = None
    """jpg, png or webp"""
    width: int | None = None
    """stored width in pixels"""
    height: int | None = None
    original_format: str | None = None
    original_width: int | None = None
    """width of the upright original"""
    original_height: int | None = None
    exif_orientation: int | None = None
    """1 to 8; 1 if the file has none"""


@contextmanager
def own_pixel_limit() -> Iterator[None]:
    """Disables Pillow's pixel limit, a global of the process, in the block."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def prepare_image(body: bytes, config: AcquireConfig) -> PreparedImage:
    """Decodes, turns upright, resizes and encodes a fetched body. The same bytes and config give the same bytes."""
    facts: dict[str, Any] = {}
    try:
        data, extension, size = _prepare(body, config, facts)
    except Rejected as rejected:
        return PreparedImage(code=rejected.code, **facts)
    except ImageError as error:
        return PreparedImage(code=CODES[error.code], **facts)
    except MemoryError:  # on damaged bytes a decoder may ask for any amount
        return PreparedImage(code=Code.DECODE_ERROR, **facts)
    return PreparedImage(data=data, extension=extension, width=size[0], height=size[1], **facts)


def _prepare(body: bytes, config: AcquireConfig, facts: dict[str, Any]) -> tuple[bytes, str, tuple[int, int]]:
    kind = sniff(body)
    if kind is None:
        raise Rejected(Code.NOT_AN_IMAGE)
    if kind not in FORMATS:
        raise Rejected(Code.FORMAT_NOT_ALLOWED)
    facts["original_format"] = kind
    image = open_image(io.BytesIO(body), max_pixels=config.max_pixels, formats=(kind.upper(),))
    orientation = read_orientation(image)
    width, height = upright_size(image, orientation)
    facts.update(original_width=width, original_height=height, exif_orientation=orientation)
    if min(width, height) < config.min_image_size:
        raise Rejected(Code.TOO_SMALL)
    if config.max_aspect_ratio and max(width, height) > config.max_aspect_ratio * min(width, height):
        raise Rejected(Code.ASPECT_RATIO)
    geometry = plan_geometry(width, height, config)
    _decode(image, geometry, turned=orientation >= 5)
    if config.skip_reencode and not geometry.changes and orientation == 1 and _storable(image, kind, config):
        return body, config.encode_format, (width, height)
    stored = _resized(upright_rgb(image), geometry, (width, height))
    return _encode(stored, config), config.encode_format, stored.size


def _decode(image: Image.Image, geometry: Geometry, turned: bool) -> None:
    """Decodes the first frame; of a JPEG that will shrink, at a fraction of its size."""
    with decoding("the image"):
        if not geometry.enlarges:
            left, top, right, bottom = geometry.box
            across, down = geometry.size[0] / (right - left), geometry.size[1] / (bottom - top)
            if turned:
                across, down = down, across
            wanted = across * image.width * DRAFT_MARGIN, down * image.height * DRAFT_MARGIN
            image.draft(None, (max(1, int(wanted[0])), max(1, int(wanted[1]))))
        image.load()


def _storable(image: Image.Image, kind: str, config: AcquireConfig) -> bool:
    return (
        STORED_AS.get(kind) == config.encode_format
        and image.mode in ("L", "RGB")
        and "transparency" not in image.info
        and not getattr(image, "is_animated", False)
    )


def _resized(image: Image.Image, geometry: Geometry, size: tuple[int, int]) -> Image.Image:
    """Applies the geometry of an upright original of `size`; `image` may be a smaller draft of it."""
    if geometry.changes:
        x, y = image.width / size[0], image.height / size[1]
        left, top, right, bottom = geometry.box
        image = image.resize(
            geometry.size, UP if geometry.enlarges else DOWN, (left * x, top * y, right * x, bottom * y)
        )
    if geometry.canvas == image.size:
        return image
    canvas = Image.new("RGB", geometry.canvas, "white")
    canvas.paste(image, ((canvas.width - image.width) // 2, (canvas.height - image.height) // 2))
    return canvas


def _encode(image: Image.Image, config: AcquireConfig) -> bytes:
    image.info = {}  # Pillow would write its comment, profile and resolution
    buffer = io.BytesIO()
    option = "compress_level" if config.encode_format == "png" else "quality"
    image.save(buffer, PILLOW[config.encode_format], **{option: config.encode_quality})
    return buffer.getvalue()
