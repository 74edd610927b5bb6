"""Resizing and cropping before a model, pixel for pixel as OpenCLIP's and torchvision's transforms on Pillow do it."""

import math
from collections.abc import Callable

from PIL import Image, ImageOps

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
CROP_TRIES = 10  # of torchvision's RandomResizedCrop before it falls back to the centre
MOST_PIXELS = 1 << 25  # of a resized image before its centre is cut out


def fit_image(image: Image.Image, size: tuple[int, int], mode: str, interpolation: str, fill: int) -> Image.Image:
    """Returns an image in its own mode at `size` (height, width): resized, then cropped, or padded (mode "longest").

    A thin line that would become a long band (1 × 20,000 pixels need 3 GB on the way to 224 × 224) is cut to the part
    that is kept before it is resized.
    """
    width, height = target = (size[1], size[0])
    resized = _resized_size(image.size, target, mode)
    if resized[0] * resized[1] > MOST_PIXELS:
        (left, right), (low_x, high_x) = _middle(image.width, resized[0], width)
        (top, bottom), (low_y, high_y) = _middle(image.height, resized[1], height)
        part = image.crop((left, top, right, bottom))
        return part.resize(target, FILTERS[interpolation], (low_x, low_y, high_x, high_y))
    image = image.resize(resized, FILTERS[interpolation])
    missing_w, missing_h = max(0, width - image.width), max(0, height - image.height)
    if missing_w or missing_h:
        border = (missing_w // 2, missing_h // 2, (missing_w + 1) // 2, (missing_h + 1) // 2)
        bands = len(image.getbands())
        color = fill if mode == "longest" else 0
        image = ImageOps.expand(image, border, color if bands == 1 else (color,) * bands)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _resized_size(size: tuple[int, int], target: tuple[int, int], resize_mode: str) -> tuple[int, int]:
    """Returns the (width, height) to resize to, before cropping or padding."""
    if resize_mode == "squash":
        return target
    if resize_mode == "shortest" and target[0] == target[1]:
        # Rounds down, as torchvision's Resize; the other cases round to nearest, as OpenCLIP's own.
        long = int(target[0] * max(size) / min(size))
        return (target[0], long) if size[0] <= size[1] else (long, target[1])
    pick = min if resize_mode == "shortest" else max
    ratio = pick(size[1] / target[1], size[0] / target[0])
    return max(1, round(size[0] / ratio)), max(1, round(size[1] / ratio))


def _middle(source: int, resized: int, target: int) -> tuple[tuple[int, int], tuple[float, float]]:
    """Returns the part of `source` pixels that the middle `target` of `resized` come from, and their place within it.

    The part includes the reach of the filters.
    """
    start = round((resized - target) / 2)
    low, high = start * source / resized, (start + target) * source / resized
    first = max(0, math.floor(low) - 4)
    return (first, min(source, math.ceil(high) + 4)), (low - first, high - first)


def random_crop(
    width: int,
    height: int,
    ratio: tuple[float, float],
    draw: Callable[[], tuple[float, float]],
    place: Callable[[int], int],
) -> tuple[int, int, int, int]:
    """Returns torchvision's random resized crop as (left, top, right, bottom).

    `draw` gives an area as a share of the image and a shape (width / height). `place(n)` gives one of n places, first
    of the rows, then of the columns. If no draw fits, the crop is the largest centred one within `ratio`.
    """
    for _ in range(CROP_TRIES):
        area, shape = draw()
        w, h = round(math.sqrt(width * height * area * shape)), round(math.sqrt(width * height * area / shape))
        if 0 < w <= width and 0 < h <= height:
            top, left = place(height - h + 1), place(width - w + 1)
            return left, top, left + w, top + h
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
