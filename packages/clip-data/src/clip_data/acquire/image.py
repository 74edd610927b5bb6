"""From the bytes of a stranger's picture to the bytes that are stored: checked by its header, upright, opaque, resized.

Pillow's own pixel limit is replaced by ours, which counts before anything is decoded and can be set per dataset.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from clip_data.acquire.codes import Code, Rejected
from clip_data.acquire.config import AcquireConfig
from clip_data.acquire.geometry import Geometry, plan_geometry
from clip_data.acquire.sniff import FORMATS, sniff, webp_size

PILLOW = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
STORED_AS = {"jpeg": "jpg", "png": "png", "webp": "webp"}
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
CONVERTIBLE = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")
WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
# Area averaging. Against exact averages of grainy photos this filter has 40 to 49 dB PSNR; Pillow's BOX, which gives a
# source pixel wholly to one target pixel, has 30 to 40, at the same cost.
DOWN, UP = Image.Resampling.HAMMING, Image.Resampling.LANCZOS
# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as this many pixels remain for one, in each direction. With
# 1 it would be faster, at 22 to 34 dB.
DRAFT_MARGIN = 2
# A progressive JPEG goes over all its pixels once per scan, and bytes are cheap: 20 MB hold a million empty scans.
# Real ones have 10 scans or so.
MAX_SCAN_PIXELS = 16  # times max_pixels


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture ready to be stored, or the code that says why not with as much as was known by then."""

    code: Code | None = None
    data: bytes | None = None
    """encoded picture; None when rejected"""
    extension: str | None = None
    """jpg, png or webp"""
    width: int | None = None
    """stored width in pixels"""
    height: int | None = None
    original_format: str | None = None
    original_width: int | None = None
    """width of the upright original: as it is seen, not as it lies in the file"""
    original_height: int | None = None
    exif_orientation: int | None = None
    """1 to 8; 1 where the file does not say"""


@contextmanager
def own_pixel_limit() -> Iterator[None]:
    """Switches off Pillow's limit, a setting of the whole process that warns or refuses regardless of `max_pixels`."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def treat(body: bytes, config: AcquireConfig) -> Picture:
    """Decodes, turns upright, resizes and encodes a fetched body. The same bytes and config give the same bytes."""
    facts: dict[str, Any] = {}
    try:
        data, extension, size = _treat(body, config, facts)
    except Rejected as rejected:
        return Picture(code=rejected.code, **facts)
    return Picture(data=data, extension=extension, width=size[0], height=size[1], **facts)


def _treat(body: bytes, config: AcquireConfig, facts: dict[str, Any]) -> tuple[bytes, str, tuple[int, int]]:
    kind = sniff(body)
    if kind is None:
        raise Rejected(Code.NOT_AN_IMAGE)
    if kind not in FORMATS:
        raise Rejected(Code.FORMAT_NOT_ALLOWED)
    facts["original_format"] = kind
    image, orientation = _open(body, kind, config.max_pixels)
    # Pillow turns a TIFF by itself while it is decoded, and gives its size accordingly from the start.
    turn = 1 if kind == "tiff" else orientation
    width, height = image.size[::-1] if turn >= 5 else image.size
    facts.update(original_width=width, original_height=height, exif_orientation=orientation)
    if min(width, height) < config.min_image_size:
        raise Rejected(Code.TOO_SMALL)
    if config.max_aspect_ratio and max(width, height) > config.max_aspect_ratio * min(width, height):
        raise Rejected(Code.ASPECT_RATIO)
    geometry = plan_geometry(width, height, config)
    _decode(image, geometry, turn)
    if config.skip_reencode and not geometry.changes and orientation == 1 and _storable(image, kind, config):
        return body, config.encode_format, (width, height)
    upright = _opaque(image) if turn == 1 else _opaque(image).transpose(TRANSPOSE[turn])
    stored = _resized(upright, geometry, (width, height))
    return _encode(stored, config), config.encode_format, stored.size


def _open(body: bytes, kind: str, max_pixels: int) -> tuple[Image.Image, int]:
    """The image, not decoded yet, and its EXIF orientation."""
    if kind == "webp":  # its decoder makes room for the whole canvas on opening
        canvas = webp_size(body)
        if canvas is not None and canvas[0] * canvas[1] > max_pixels:
            raise Rejected(Code.PIXEL_CAP)
    with _decoder():
        image = Image.open(io.BytesIO(body), formats=(kind.upper(),))
        pixels = image.size[0] * image.size[1]
        scans = body.count(b"\xff\xda") if kind == "jpeg" and image.info.get("progressive") else 1
        if pixels > max_pixels or scans * pixels > MAX_SCAN_PIXELS * max_pixels:
            raise Rejected(Code.PIXEL_CAP)
        if pixels == 0:
            raise Rejected(Code.DECODE_ERROR)
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return image, orientation if orientation in TRANSPOSE else 1


def _decode(image: Image.Image, geometry: Geometry, turn: int) -> None:
    """Decodes the first frame, a JPEG that is to shrink at a fraction of its size."""
    with _decoder():
        if not geometry.enlarges:
            left, top, right, bottom = geometry.box
            across, down = geometry.size[0] / (right - left), geometry.size[1] / (bottom - top)
            if turn >= 5:
                across, down = down, across
            wanted = across * image.width * DRAFT_MARGIN, down * image.height * DRAFT_MARGIN
            image.draft(None, (max(1, int(wanted[0])), max(1, int(wanted[1]))))
        image.load()


@contextmanager
def _decoder() -> Iterator[None]:
    """Around calls into decoders only: on hostile bytes they raise whatever they like."""
    try:
        yield
    except Rejected:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, where own_pixel_limit() is not in force
        raise Rejected(Code.PIXEL_CAP) from error
    except Exception as error:
        raise Rejected(Code.DECODE_ERROR) from error


def _storable(image: Image.Image, kind: str, config: AcquireConfig) -> bool:
    return (
        STORED_AS.get(kind) == config.encode_format
        and image.mode in ("L", "RGB")
        and "transparency" not in image.info
        and not getattr(image, "is_animated", False)
    )


def _opaque(image: Image.Image) -> Image.Image:
    """The same picture in RGB, on white where it is transparent."""
    with _decoder():
        if image.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        if image.mode in WITH_ALPHA or (image.mode in CONVERTIBLE and "transparency" in image.info):
            layer = image.convert("RGBA")
            canvas = Image.new("RGB", image.size, "white")
            canvas.paste(layer, mask=layer.getchannel("A"))
            return canvas
        if image.mode not in CONVERTIBLE:
            raise Rejected(Code.PIXEL_FORMAT)
        return image.convert("RGB")


def _resized(image: Image.Image, geometry: Geometry, size: tuple[int, int]) -> Image.Image:
    """Applies the geometry, which speaks of the upright original of `size`; `image` may be a smaller draft of it."""
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
