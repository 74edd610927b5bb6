"""Statistics of the stored image. Sums are integers, so that all machines give the same bits."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image

from clip_data.score.phash import phash
from clip_data.score.scorer import Batch

LEVELS = np.arange(256, dtype=np.int64)


@dataclass(frozen=True)
class ImageScorer:
    """Shape, light, sharpness and colour of the stored image (after the resize of acquire)."""

    name: ClassVar[str] = "image"
    version: ClassVar[int] = 1
    needs_image: ClassVar[bool] = True
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("aspect_ratio", pa.float32()),  # width / height
            ("luminance", pa.float32()),  # mean of the grey levels (ITU-R 601-2), 0 to 255
            ("contrast", pa.float32()),  # their standard deviation
            ("entropy", pa.float32()),  # of their histogram, 0 to 8 bits
            ("sharpness", pa.float32()),  # variance of their 4-neighbour Laplacian; 0 when a side is below 3
            ("colorfulness", pa.float32()),  # Hasler and Süsstrunk 2003, 0 for grey, above 100 for extreme
            ("phash", pa.uint64()),
        ]
    )

    def score(self, batch: Batch) -> pa.Table:
        return pa.Table.from_pylist([_measure(image) for image in batch.images], schema=self.schema)


def _measure(image: Image.Image) -> dict[str, Any]:
    grey = image.convert("L")
    histogram = np.array(grey.histogram(), dtype=np.int64)
    pixels = image.width * image.height
    mean, variance = _moments(int(histogram @ LEVELS), int(histogram @ LEVELS**2), pixels)
    shares = [count / pixels for count in histogram.tolist() if count]
    return {
        "aspect_ratio": image.width / image.height,
        "luminance": mean,
        "contrast": math.sqrt(variance),
        "entropy": -math.fsum(share * math.log2(share) for share in shares) + 0.0,
        "sharpness": _sharpness(np.asarray(grey, dtype=np.int16)),
        "colorfulness": _colorfulness(np.asarray(image, dtype=np.int16)),
        "phash": phash(grey),
    }


def _sharpness(grey_HW: np.ndarray) -> float:
    if min(grey_HW.shape) < 3:
        return 0.0
    center = grey_HW[1:-1, 1:-1]
    laplacian = grey_HW[:-2, 1:-1] + grey_HW[2:, 1:-1] + grey_HW[1:-1, :-2] + grey_HW[1:-1, 2:] - 4 * center
    return _array_moments(laplacian)[1]


def _colorfulness(rgb_HWC: np.ndarray) -> float:
    red, green, blue = rgb_HWC[..., 0], rgb_HWC[..., 1], rgb_HWC[..., 2]
    rg_mean, rg_variance = _array_moments(red - green)
    yb_mean, yb_variance = _array_moments(red + green - 2 * blue)  # twice the yellow-blue axis: no halves
    spread = math.sqrt(rg_variance + yb_variance / 4)
    return spread + 0.3 * math.sqrt(rg_mean**2 + yb_mean**2 / 4)


def _array_moments(values: np.ndarray) -> tuple[float, float]:
    flat = values.ravel()
    wide = flat.astype(np.int32)  # squares reach 1020²
    return _moments(int(flat.sum(dtype=np.int64)), int((wide * wide).sum(dtype=np.int64)), flat.size)


def _moments(total: int, squares: int, count: int) -> tuple[float, float]:
    """Returns mean and population variance from exact sums."""
    return total / count, (squares * count - total * total) / (count * count)
