"""The picture's treatment: decode, resize and crop to uint8, as OpenCLIP's Pillow path does it to the pixel.

A treatment is plain data, the keys of OpenCLIP's `preprocess_cfg` plus `augment` and `image_mode`. Mean and std are
carried but not applied: pictures travel as uint8 and are normalised on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from PIL import Image, ImageOps

from clip_core import MAX_PIXELS, ImageError, ImageMode
from clip_core.geometry import CROP_TRIES, FILTERS, RESIZE_MODES, fit_image, random_crop
from clip_core.images import decoding, load_image
from clip_core.suggest import did_you_mean
from clip_data.errors import ClipDataError
from clip_data.stream.order import words

FORMATS = ("JPEG", "PNG", "WEBP")  # what shards hold; Pillow's other decoders never see a payload
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
        size = (self.height, self.width)
        return fit_image(image, size, self.resize_mode, self.interpolation, self.fill_color).convert("RGB")

    def _train(self, image: Image.Image, key: Sequence[object]) -> Image.Image:
        assert self.augment is not None
        draws = ((words(1 + 4 * CROP_TRIES, "augment", *key) >> np.uint64(11)) * 2.0**-53).tolist()  # in [0, 1)
        box = crop_box(image.width, image.height, self.augment, draws[1:])
        image = image.crop(box).resize((self.width, self.height), FILTERS[self.interpolation]).convert("RGB")
        return ImageOps.mirror(image) if draws[0] < self.augment.hflip else image


def crop_box(width: int, height: int, augment: Augment, draws: Sequence[float]) -> tuple[int, int, int, int]:
    """A random crop as (left, top, right, bottom), from 4 uniform draws for each of 10 tries."""
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


def parse_treatment(data: Mapping[str, Any]) -> Treatment:
    """Validates a treatment dict. Raises ClipDataError that names the key, the value and what would do."""
    _known(data, {"size", *DEFAULTS}, "treatment")
    values = {**DEFAULTS, **data}
    size = values.get("size")
    if not isinstance(size, Sequence) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise ClipDataError(f"treatment: size = {size!r} must be [height, width] in pixels")
    _one_of("mode", values["mode"], ("RGB",))
    _one_of("interpolation", values["interpolation"], tuple(FILTERS))
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
