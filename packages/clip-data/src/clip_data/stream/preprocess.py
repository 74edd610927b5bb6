"""Preprocessing of images: decode, resize and crop to uint8, with the pixels of OpenCLIP's Pillow path.

It is described by plain data: the keys of OpenCLIP's `preprocess_cfg` plus `augment` and `image_mode`. Mean and std are
carried but not applied: images travel as uint8 and are normalised on the device.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from clip_core import MAX_PIXELS, ImageError, ImageMode
from clip_core.config import from_dict
from clip_core.geometry import CROP_TRIES, FILTERS, fit_image, random_crop
from clip_core.images import decoding, load_image
from clip_data.errors import ClipDataError
from clip_data.stream.order import words

FORMATS = ("JPEG", "PNG", "WEBP")  # the formats in shards; Pillow's other decoders are not used


class CorruptSample(Exception):
    """A payload that does not decode as an image; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random resized crop, then a horizontal flip."""

    scale: tuple[float, float] = (0.9, 1.0)
    """range of the crop's share of the area"""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """range of the crop's width / height"""
    hflip: float = 0.0
    """probability of the flip"""

    def __post_init__(self) -> None:
        for name, (low, high), top in (("scale", self.scale, 1.0), ("ratio", self.ratio, math.inf)):
            if not 0 < low <= high <= top:
                raise ClipDataError(f"augment.{name} = {[low, high]} must be [low, high] with 0 < low ≤ high ≤ {top}")
        if not 0 <= self.hflip <= 1:
            raise ClipDataError(f"augment.hflip = {self.hflip} must be a probability")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How images are preprocessed; the module describes it."""

    size: tuple[int, int]
    """height and width of the result, in pixels"""
    mode: Literal["RGB"] = "RGB"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: int = 0
    """of the padding of resize_mode longest, 0 to 255"""
    image_mode: ImageMode = "standard"
    """see clip_core.ImageMode"""
    augment: Augment | None = None

    def __post_init__(self) -> None:
        if min(self.size) <= 0:
            raise ClipDataError(f"size = {list(self.size)} must be [height, width] in pixels")
        if not 0 <= self.fill_color <= 255:
            raise ClipDataError(f"fill_color = {self.fill_color} must be an integer from 0 to 255")

    def decode(self, payload: bytes, *key: object) -> np.ndarray:
        """Returns the image as uint8 [H, W, 3]; with `augment`, random numbers are drawn by a generator keyed by `key`.

        Raises CorruptSample for a payload that does not decode.
        """
        try:
            image = load_image(payload, max_pixels=MAX_PIXELS, formats=FORMATS, image_mode=self.image_mode)
            with decoding("the image"):
                if self.augment:
                    return np.asarray(self._augmented(image, self.augment, key))
                fitted = fit_image(image, self.size, self.resize_mode, self.interpolation, self.fill_color)
                return np.asarray(fitted.convert("RGB"))
        except ImageError as error:
            raise CorruptSample(str(error)) from error

    def _augmented(self, image: Image.Image, augment: Augment, key: Sequence[object]) -> Image.Image:
        draws = ((words(1 + 4 * CROP_TRIES, "augment", *key) >> np.uint64(11)) * 2.0**-53).tolist()  # in [0, 1)
        box = crop_box(image.width, image.height, augment, draws[1:])
        image = image.crop(box).resize(self.size[::-1], FILTERS[self.interpolation]).convert("RGB")
        return ImageOps.mirror(image) if draws[0] < augment.hflip else image


def crop_box(width: int, height: int, augment: Augment, draws: Sequence[float]) -> tuple[int, int, int, int]:
    """Returns a random crop as (left, top, right, bottom), from 4 uniform draws for each of 10 tries."""
    low, high = math.log(augment.ratio[0]), math.log(augment.ratio[1])
    tries = iter(zip(*[iter(draws)] * 4, strict=True))
    places: Iterator[float] = iter(())

    def draw() -> tuple[float, float]:
        nonlocal places
        area, aspect, *rest = next(tries)
        places = iter(rest)
        share = augment.scale[0] + (augment.scale[1] - augment.scale[0]) * area
        return share, math.exp(low + (high - low) * aspect)

    return random_crop(width, height, augment.ratio, draw, lambda count: int(count * next(places)))


def parse_preprocess(data: Mapping[str, Any]) -> Preprocess:
    """Returns the checked form of a preprocess dict. Raises ConfigError that names the key and the valid values."""
    return from_dict(Preprocess, data, "preprocess")
