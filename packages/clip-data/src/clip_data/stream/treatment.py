"""The picture's treatment: decode, resize and crop to uint8, as OpenCLIP's Pillow path does it to the pixel.

A treatment is plain data, the keys of OpenCLIP's `preprocess_cfg` plus `augment` and `image_mode`. Mean and std are
carried but not applied: pictures travel as uint8 and are normalised on the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from PIL import Image, ImageOps

from clip_core import MAX_PIXELS, ImageError, ImageMode
from clip_core.images import decoding, load_image
from clip_core.suggest import did_you_mean
from clip_data.errors import ClipDataError
from clip_data.stream.order import words

FORMATS = ("JPEG", "PNG", "WEBP")  # what shards hold; Pillow's other decoders never see a payload
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZE_MODES = ("shortest", "longest", "squash")
DEFAULT_AUGMENT = {"scale": (0.9, 1.0), "ratio": (3 / 4, 4 / 3), "hflip": 0.0}
DEFAULTS = {
    "mode": "RGB",
    "mean": None,
    "std": None,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
    "image_mode": "standard",
    "augment": None,
}
TRIES = 10  # of torchvision's RandomResizedCrop before it falls back to the centre


class CorruptSample(Exception):
    """A payload that is not a picture we decode; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random resized crop, then a horizontal flip."""

    scale: tuple[float, float]
    """range of the crop's share of the area"""
    ratio: tuple[float, float]
    """range of the crop's width / height"""
    hflip: float
    """probability of the flip"""


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """A validated treatment."""

    height: int
    width: int
    interpolation: str
    resize_mode: str
    fill_color: int
    image_mode: ImageMode
    """see clip_core.ImageMode"""
    augment: Augment | None

    def decode(self, payload: bytes, *key: object) -> np.ndarray:
        """The picture as uint8 [H, W, 3]; augmented by a generator keyed by `key` when the treatment says so.

        Raises CorruptSample for anything that does not decode.
        """
        try:
            image = load_image(payload, max_pixels=MAX_PIXELS, formats=FORMATS, image_mode=self.image_mode)
            with decoding("the image"):
                return np.asarray(self._train(image, key) if self.augment else self._evaluate(image))
        except ImageError as error:
            raise CorruptSample(str(error)) from error

    def _evaluate(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if self.resize_mode == "squash":
            return self._resize(image, self.width, self.height)
        if self.resize_mode == "longest":
            ratio = max(height / self.height, width / self.width)
            return self._pad(self._resize(image, round(width / ratio), round(height / ratio)))
        if self.height == self.width:
            short, long = sorted((width, height))
            other = int(self.height * long / short)
            width, height = (self.height, other) if width <= height else (other, self.height)
        else:
            ratio = min(height / self.height, width / self.width)
            width, height = round(width / ratio), round(height / ratio)
        return self._crop(self._resize(image, width, height))

    def _train(self, image: Image.Image, key: Sequence[object]) -> Image.Image:
        assert self.augment is not None
        draws = ((words(1 + 4 * TRIES, "augment", *key) >> np.uint64(11)) * 2.0**-53).tolist()  # uniform in [0, 1)
        box = crop_box(image.width, image.height, self.augment, draws[1:])
        image = self._resize(image.crop(box), self.width, self.height)
        return ImageOps.mirror(image) if draws[0] < self.augment.hflip else image

    def _resize(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """Resizes, then converts what is not RGB yet: in OpenCLIP's order, for image_mode openclip."""
        size = (max(1, width), max(1, height))
        if image.size != size:
            image = image.resize(size, INTERPOLATIONS[self.interpolation])
        return image if image.mode == "RGB" else image.convert("RGB")

    def _crop(self, image: Image.Image) -> Image.Image:
        left = round((image.width - self.width) / 2)
        top = round((image.height - self.height) / 2)
        return image.crop((left, top, left + self.width, top + self.height))

    def _pad(self, image: Image.Image) -> Image.Image:
        canvas = Image.new("RGB", (self.width, self.height), (self.fill_color,) * 3)
        canvas.paste(image, ((self.width - image.width) // 2, (self.height - image.height) // 2))
        return canvas


def crop_box(width: int, height: int, augment: Augment, draws: Sequence[float]) -> tuple[int, int, int, int]:
    """torchvision's random resized crop as (left, top, right, bottom), from 4 uniform draws for each of 10 tries."""
    low, high = math.log(augment.ratio[0]), math.log(augment.ratio[1])
    for start in range(0, 4 * TRIES, 4):
        area, aspect, down, right = draws[start : start + 4]
        target = width * height * (augment.scale[0] + (augment.scale[1] - augment.scale[0]) * area)
        ratio = math.exp(low + (high - low) * aspect)
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int((height - h + 1) * down), int((width - w + 1) * right)
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < augment.ratio[0]:
        h = round(width / augment.ratio[0])
    elif width / height > augment.ratio[1]:
        w = round(height * augment.ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def parse_treatment(data: Mapping[str, Any]) -> Treatment:
    """Validates a treatment dict. Raises ClipDataError that names the key, the value and what would do."""
    _known(data, {"size", *DEFAULTS}, "treatment")
    values = {**DEFAULTS, **data}
    size = values.get("size")
    if not isinstance(size, Sequence) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise ClipDataError(f"treatment: size = {size!r} must be [height, width] in pixels")
    _one_of("mode", values["mode"], ("RGB",))
    _one_of("interpolation", values["interpolation"], tuple(INTERPOLATIONS))
    _one_of("resize_mode", values["resize_mode"], RESIZE_MODES)
    _one_of("image_mode", values["image_mode"], get_args(ImageMode))
    for key in ("mean", "std"):
        value = values[key]
        if value is not None and not (isinstance(value, Sequence) and len(value) == 3 and all(map(_number, value))):
            raise ClipDataError(f"treatment: {key} = {value!r} must be three numbers")
    fill = values["fill_color"]
    if type(fill) is not int or not 0 <= fill <= 255:
        raise ClipDataError(f"treatment: fill_color = {fill!r} must be an integer from 0 to 255")
    return Treatment(
        height=size[0],
        width=size[1],
        interpolation=values["interpolation"],
        resize_mode=values["resize_mode"],
        fill_color=fill,
        image_mode=values["image_mode"],
        augment=_augment(values["augment"]),
    )


def _augment(data: Any) -> Augment | None:
    if data is None:
        return None
    if not isinstance(data, Mapping):
        raise ClipDataError(f"treatment: augment = {data!r} must be null or a table of {', '.join(DEFAULT_AUGMENT)}")
    _known(data, set(DEFAULT_AUGMENT), "treatment.augment")
    values = {**DEFAULT_AUGMENT, **data}
    for key, top in (("scale", 1.0), ("ratio", math.inf)):
        pair = values[key]
        fits = isinstance(pair, Sequence) and len(pair) == 2 and all(map(_number, pair))
        if not fits or not 0 < pair[0] <= pair[1] <= top:
            raise ClipDataError(f"treatment.augment: {key} = {pair!r} must be [low, high] with 0 < low ≤ high ≤ {top}")
    if not _number(values["hflip"]) or not 0 <= values["hflip"] <= 1:
        raise ClipDataError(f"treatment.augment: hflip = {values['hflip']!r} must be a probability")
    scale, ratio = ((float(values[key][0]), float(values[key][1])) for key in ("scale", "ratio"))
    return Augment(scale=scale, ratio=ratio, hflip=float(values["hflip"]))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(key: str, value: Any, valid: Sequence[str]) -> None:
    if value not in valid:
        raise ClipDataError(f"treatment: {key} = {value!r} must be one of {', '.join(valid)}")


def _known(data: Mapping[str, Any], valid: set[str], where: str) -> None:
    for key in data:
        if key not in valid:
            hint = did_you_mean(key, valid, f"valid keys: {', '.join(sorted(valid))}", cutoff=0.5)
            raise ClipDataError(f"{where}: unknown key {key!r}; {hint}")
