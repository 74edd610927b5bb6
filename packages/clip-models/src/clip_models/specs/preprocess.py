"""PreprocessConfig: how images become the input of a tower."""

from dataclasses import dataclass
from typing import Literal

from clip_models.errors import ClipModelsError
from clip_models.specs.values import PlainData, check_fields

OPENAI_DATASET_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_DATASET_STD = (0.26862954, 0.26130258, 0.27577711)
Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["shortest", "longest", "squash"]


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(PlainData):
    """How an image is preprocessed for the tower. The fields are the keys of OpenCLIP's preprocess_cfg.

    `to_dict` returns the preprocessing of a sample stream, without its "augment" key.
    """

    WHERE = "preprocess"

    size: tuple[int, int] = (224, 224)
    """Height and width of the result, in pixels."""
    mode: Literal["RGB"] = "RGB"
    """Pillow mode of the result; RGB is the only one."""
    mean: tuple[float, float, float] = OPENAI_DATASET_MEAN
    """Subtracted per channel, on the scale 0 to 1."""
    std: tuple[float, float, float] = OPENAI_DATASET_STD
    """Divides per channel, on the scale 0 to 1."""
    interpolation: Interpolation = "bicubic"
    """bicubic or bilinear, always antialiased."""
    resize_mode: ResizeMode = "shortest"
    """shortest: fit the short side, crop the centre. longest: fit the long side, pad. squash: ignore the aspect."""
    fill_color: int = 0
    """Value of the padding that resize_mode longest adds, 0 to 255."""

    def __post_init__(self) -> None:
        if min(self.size) <= 0:
            raise ClipModelsError(f"preprocess.size {list(self.size)} must be positive")
        check_fields(self, "preprocess.")
        if min(self.std) <= 0:
            raise ClipModelsError(f"preprocess.std {list(self.std)} must be positive")
        if not 0 <= self.fill_color <= 255:
            raise ClipModelsError(f"preprocess.fill_color {self.fill_color} is outside 0 to 255")
