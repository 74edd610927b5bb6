"""PreprocessConfig applied: Pillow image → float tensor, pixel for pixel as OpenCLIP's image_transform.

That is so for plain RGB and grey images. Others (16 bits, floats, transparency, palettes, CMYK, an EXIF orientation)
first become upright, opaque RGB; with `image_mode="openclip"` they are resized in their own mode and converted
afterwards, as in OpenCLIP. Four more things differ, where OpenCLIP ignores an option or fails: `interpolation` also
counts in training and for inputs that are not square; all fields of an AugmentationConfig are applied; `use_timm` gives
RGB for all images; and a side that would round to nothing keeps one pixel.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clip_core import ImageMode
from clip_core.geometry import FILTERS, fit_image
from clip_core.images import decoding, upright_rgb
from clip_models.errors import ClipModelsError
from clip_models.preprocess.image_augmentation import (
    draw_crop,
    draw_crop_as_timm,
    erase_rectangles,
    jitter_colors,
    turn_gray,
)
from clip_models.specs.augmentation import AugmentationConfig
from clip_models.specs.preprocess import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, PreprocessConfig, ResizeMode
from clip_models.specs.values import require_choice

_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class EvalTransform:
    """Deterministic: Pillow image of any mode → float32 [3, H, W], normalised."""

    config: PreprocessConfig
    image_mode: ImageMode = "standard"
    """see clip_core.ImageMode"""

    def __post_init__(self) -> None:
        require_choice("image_mode", self.image_mode, get_args(ImageMode))

    def __call__(self, image: Image.Image) -> Tensor:
        return normalise(torch.from_numpy(self.pixels(image)), self.config)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Returns the image before it is normalised, uint8 [H, W, 3]. Raises ImageError if it cannot become RGB."""
        config = self.config
        image = _prepare(image, self.image_mode)
        with decoding("the image"):
            image = fit_image(image, config.size, config.resize_mode, config.interpolation, config.fill_color)
            return np.array(image.convert(config.mode))


@dataclass(frozen=True)
class TrainTransform:
    """A random crop, resized, and the other augmentations: Pillow image → float32 [3, H, W], normalised.

    Draws from the global generators of torch and of Python's `random` in OpenCLIP's order: equal seeds give equal
    tensors.
    """

    config: PreprocessConfig
    augmentation: AugmentationConfig
    image_mode: ImageMode = "standard"
    """see clip_core.ImageMode"""

    def __post_init__(self) -> None:
        require_choice("image_mode", self.image_mode, get_args(ImageMode))

    def __call__(self, image: Image.Image) -> Tensor:
        image = _prepare(image, self.image_mode)
        config, chance = self.config, self.augmentation
        draw = draw_crop_as_timm if chance.use_timm else draw_crop
        image = image.crop(draw(image.width, image.height, chance.scale, chance.ratio or _RATIO))
        interpolation = chance.interpolation or config.interpolation
        if interpolation == "random":
            interpolation = random.choice(("bilinear", "bicubic"))
        image = image.resize((config.size[1], config.size[0]), FILTERS[interpolation])
        if chance.hflip > 0 and torch.rand(1).item() < chance.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = image.convert(config.mode)
        if any(chance.jitter) and _happens(chance.color_jitter_prob, unset=True):
            image = jitter_colors(image, chance.jitter)
        if _happens(chance.gray_scale_prob, unset=False):
            image = turn_gray(image)
        tensor = normalise(torch.from_numpy(np.array(image)), config)
        return erase_rectangles(tensor, chance.re_prob, chance.re_count or 1) if chance.re_prob else tensor


def preprocess_eval(config: PreprocessConfig, image_mode: ImageMode = "standard") -> EvalTransform:
    """Returns the preprocessing for evaluation."""
    return EvalTransform(config, image_mode)


def preprocess_train(
    config: PreprocessConfig,
    augmentation: AugmentationConfig | Mapping[str, Any] | None = None,
    image_mode: ImageMode = "standard",
) -> TrainTransform:
    """Returns the preprocessing for training. `augmentation` may be an `aug_cfg` of OpenCLIP."""
    if augmentation is None or isinstance(augmentation, Mapping):
        augmentation = AugmentationConfig.from_dict(augmentation or {})
    return TrainTransform(config, augmentation, image_mode)


def image_transform_v2(
    cfg: PreprocessConfig,
    is_train: bool,
    aug_cfg: AugmentationConfig | Mapping[str, Any] | None = None,
    image_mode: ImageMode = "standard",
) -> EvalTransform | TrainTransform:
    """Returns `preprocess_train` or `preprocess_eval`, under OpenCLIP's name."""
    return preprocess_train(cfg, aug_cfg, image_mode) if is_train else preprocess_eval(cfg, image_mode)


def image_transform(
    image_size: int | Sequence[int],
    is_train: bool,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    resize_mode: ResizeMode | None = None,
    interpolation: Literal["bicubic", "bilinear", "random", ""] | None = None,
    fill_color: int = 0,
    aug_cfg: AugmentationConfig | Mapping[str, Any] | None = None,
    image_mode: ImageMode = "standard",
) -> EvalTransform | TrainTransform:
    """Returns a transform from the arguments of OpenCLIP's function of this name; None is as in OpenAI's CLIP.

    `image_size`: side, or height and width. `interpolation`: bicubic, bilinear, or random, which is bicubic in
    evaluation.
    """
    sides = (image_size,) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) not in (1, 2):
        raise ClipModelsError(f"image_size {image_size!r} must be a side, or height and width")
    height, width = sides * (3 - len(sides))
    config = PreprocessConfig(
        size=(height, width),
        mean=_triple(OPENAI_DATASET_MEAN if mean is None else mean),
        std=_triple(OPENAI_DATASET_STD if std is None else std),
        resize_mode=resize_mode or "shortest",
        interpolation=interpolation if interpolation and interpolation != "random" else "bicubic",
        fill_color=fill_color,
    )
    if not is_train:
        return preprocess_eval(config, image_mode)
    transform = preprocess_train(config, aug_cfg, image_mode)
    if interpolation == "random" and not transform.augmentation.interpolation:
        return replace(transform, augmentation=replace(transform.augmentation, interpolation="random"))
    return transform


def normalise(pixels: Tensor, config: PreprocessConfig) -> Tensor:
    """Returns uint8 [..., H, W, 3] as float32 [..., 3, H, W] with mean and std applied, on the device of `pixels`."""
    scaled = pixels.movedim(-1, -3).contiguous().float().div_(255)
    mean, std = (torch.tensor(value, device=pixels.device).view(3, 1, 1) for value in (config.mean, config.std))
    return scaled.sub_(mean).div_(std)


def _happens(probability: float | None, unset: bool) -> bool:
    """Draws only if the result is open, as OpenCLIP does."""
    return unset if probability is None else bool(probability) and random.random() < probability


def _triple(value: float | Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (value,) * 3 if isinstance(value, int | float) else value
    return float(red), float(green), float(blue)


def _prepare(image: object, image_mode: ImageMode) -> Image.Image:
    if not isinstance(image, Image.Image):
        raise ClipModelsError(f"preprocessing takes a Pillow image, not {type(image).__name__}")
    return image if image_mode == "openclip" else upright_rgb(image)
