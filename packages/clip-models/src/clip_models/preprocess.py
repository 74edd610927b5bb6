"""PreprocessConfig applied: Pillow picture → float tensor, pixel for pixel what OpenCLIP's image_transform gives.

As there, a picture is resized in its own mode and becomes RGB afterwards. Two things differ: `interpolation` is
honoured in training and for inputs that are not square, where OpenCLIP always takes bicubic; and a side that would
round to nothing keeps one pixel, where OpenCLIP fails.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from clip_models.errors import ClipModelsError
from clip_models.specs import PreprocessConfig

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class EvalTransform:
    """Deterministic: Pillow picture of any mode → float32 [3, H, W], normalised."""

    config: PreprocessConfig

    def __call__(self, image: Image.Image) -> Tensor:
        _require_picture(image)
        config = self.config
        target_h, target_w = config.size
        image = image.resize(_resized_size(image.width, image.height, config), _FILTERS[config.interpolation])
        if config.resize_mode != "squash":
            fill = config.fill_color if config.resize_mode == "longest" else 0
            image = _center_crop_or_pad(image, target_w, target_h, fill)
        return _to_tensor(image, config)


@dataclass(frozen=True)
class TrainTransform:
    """A random crop, resized: Pillow picture of any mode → float32 [3, H, W], normalised.

    Draws from torch's global generator in the order of torchvision's RandomResizedCrop, so that the same seed gives
    the same crops as OpenCLIP.
    """

    config: PreprocessConfig
    scale: tuple[float, float]
    ratio: tuple[float, float]
    hflip: float

    def __call__(self, image: Image.Image) -> Tensor:
        _require_picture(image)
        left, top, width, height = self._draw_crop(image.width, image.height)
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((self.config.size[1], self.config.size[0]), _FILTERS[self.config.interpolation])
        if self.hflip > 0 and torch.rand(1).item() < self.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return _to_tensor(image, self.config)

    def _draw_crop(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, width, height) within a picture of width × height."""
        low, high = torch.log(torch.tensor(self.ratio)).tolist()
        for _ in range(10):
            area = width * height * torch.empty(1).uniform_(*self.scale).item()
            ratio = torch.exp(torch.empty(1).uniform_(low, high)).item()
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(torch.randint(0, height - h + 1, (1,)).item())
                left = int(torch.randint(0, width - w + 1, (1,)).item())
                return left, top, w, h
        # Nothing fitted: the picture is far from the ratios. Take the largest centred crop that is within them.
        w, h = width, height
        if width / height < self.ratio[0]:
            h = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            w = round(height * self.ratio[1])
        return (width - w) // 2, (height - h) // 2, w, h


def preprocess_eval(config: PreprocessConfig) -> EvalTransform:
    """The callable that evaluation applies to each picture."""
    return EvalTransform(config)


def preprocess_train(
    config: PreprocessConfig,
    scale: tuple[float, float] = (0.9, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.0,
) -> TrainTransform:
    """The callable that training applies to each picture.

    `scale`: bounds of the crop's share of the area. `ratio`: bounds of its width over its height. `hflip`:
    probability of mirroring.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ClipModelsError(f"scale {scale} must be two shares of the area, 0 < low <= high <= 1")
    if not 0 < ratio[0] <= ratio[1]:
        raise ClipModelsError(f"ratio {ratio} must be two positive numbers, low <= high")
    if not 0 <= hflip <= 1:
        raise ClipModelsError(f"hflip {hflip} must be a probability")
    return TrainTransform(config, scale, ratio, hflip)


def _require_picture(image: object) -> None:
    if not isinstance(image, Image.Image):
        raise ClipModelsError(f"preprocessing takes a Pillow image, not {type(image).__name__}")


def _resized_size(width: int, height: int, config: PreprocessConfig) -> tuple[int, int]:
    """(width, height) to resize to, before cropping or padding."""
    target_h, target_w = config.size
    if config.resize_mode == "squash":
        return target_w, target_h
    if config.resize_mode == "shortest" and target_h == target_w:
        # Rounds down, as torchvision's Resize; the other cases round to nearest, as OpenCLIP's own.
        long = int(target_w * max(width, height) / min(width, height))
        return (target_w, long) if width <= height else (long, target_h)
    pick = min if config.resize_mode == "shortest" else max
    ratio = pick(height / target_h, width / target_w)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _center_crop_or_pad(image: Image.Image, width: int, height: int, fill: int) -> Image.Image:
    missing_w, missing_h = max(0, width - image.width), max(0, height - image.height)
    if missing_w or missing_h:
        border = (missing_w // 2, missing_h // 2, (missing_w + 1) // 2, (missing_h + 1) // 2)
        bands = len(image.getbands())
        image = ImageOps.expand(image, border, fill if bands == 1 else (fill,) * bands)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _to_tensor(image: Image.Image, config: PreprocessConfig) -> Tensor:
    pixels_HWC = torch.from_numpy(np.array(image.convert(config.mode)))
    scaled = pixels_HWC.permute(2, 0, 1).contiguous().float().div_(255)
    mean, std = torch.tensor(config.mean).view(3, 1, 1), torch.tensor(config.std).view(3, 1, 1)
    return scaled.sub_(mean).div_(std)
