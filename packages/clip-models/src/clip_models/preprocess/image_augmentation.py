"""The random steps of training, each with the draws of the library that OpenCLIP uses for it.

With equal seeds of torch and of Python's `random` they give the pixels of torchvision and timm on Pillow images. All
take and return RGB images unless they say otherwise.
"""

import math
import random

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from clip_core.geometry import random_crop

Box = tuple[int, int, int, int]
"""left, top, right, bottom"""


def draw_crop(width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]) -> Box:
    """Returns a crop of random area and shape in an image of width × height, drawn from torch's generator."""
    low, high = torch.log(torch.tensor(ratio)).tolist()

    def draw() -> tuple[float, float]:
        area = torch.empty(1).uniform_(*scale).item()
        return area, torch.exp(torch.empty(1).uniform_(low, high)).item()

    return random_crop(width, height, ratio, draw, lambda places: int(torch.randint(0, places, (1,)).item()))


def draw_crop_as_timm(width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]) -> Box:
    """Returns the same, drawn from Python's generator."""
    low, high = math.log(ratio[0]), math.log(ratio[1])

    def draw() -> tuple[float, float]:
        return random.uniform(*scale), math.exp(random.uniform(low, high))

    return random_crop(width, height, ratio, draw, random.randrange)


def jitter_colors(image: Image.Image, strengths: tuple[float, ...]) -> Image.Image:
    """Changes brightness, contrast, saturation and hue in random order, by 1 ± strength (hue: 0 ± strength)."""
    order = torch.randperm(4).tolist()
    *around_one, hue = strengths
    factors = [torch.empty(1).uniform_(max(0.0, 1 - s), 1 + s).item() if s else None for s in around_one]
    factors.append(torch.empty(1).uniform_(-hue, hue).item() if hue else None)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for step in order:
        factor = factors[step]
        if factor is not None:
            image = _shift_hue(image, factor) if step == 3 else enhancers[step](image).enhance(factor)
    return image


def _shift_hue(image: Image.Image, share: float) -> Image.Image:
    """Rotates the colour circle by a share of it."""
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.int32(share * 255).astype(np.uint8)  # wraps around, as the circle does
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def turn_gray(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


def erase_rectangles(image_CHW: Tensor, probability: float, count: int) -> Tensor:
    """Fills up to `count` rectangles of a normalised image with normal noise, in place."""
    if random.random() > probability:
        return image_CHW
    _, height, width = image_CHW.shape
    count = 1 if count == 1 else random.randint(1, count)
    for _ in range(count):
        for _ in range(10):
            area = random.uniform(0.02, 1 / 3) * (height * width) / count
            shape = math.exp(random.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if w < width and h < height:
                top, left = random.randint(0, height - h), random.randint(0, width - w)
                image_CHW[:, top : top + h, left : left + w] = torch.empty(len(image_CHW), h, w).normal_()
                break
    return image_CHW
