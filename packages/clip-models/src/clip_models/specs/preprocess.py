"""PreprocessConfig: what happens to pictures before the towers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from clip_models.errors import ClipModelsError
from clip_models.specs.plain import from_plain, require_choice, to_plain

OPENAI_DATASET_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_DATASET_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """What happens to a picture before the tower: the keys of OpenCLIP's preprocess_cfg."""

    size: tuple[int, int] = (224, 224)
    """Height and width of the result, in pixels."""
    mode: str = "RGB"
    """Pillow mode of the result; RGB is the only one."""
    mean: tuple[float, float, float] = OPENAI_DATASET_MEAN
    """Subtracted per channel, on the scale 0 to 1."""
    std: tuple[float, float, float] = OPENAI_DATASET_STD
    """Divides per channel, on the scale 0 to 1."""
    interpolation: str = "bicubic"
    """bicubic or bilinear, always antialiased."""
    resize_mode: str = "shortest"
    """shortest: fit the short side, crop the centre. longest: fit the long side, pad. squash: ignore the aspect."""
    fill_color: int = 0
    """Value of the padding that resize_mode longest adds, 0 to 255."""

    def __post_init__(self) -> None:
        if min(self.size) <= 0:
            raise ClipModelsError(f"preprocess.size {list(self.size)} must be positive")
        require_choice("preprocess.mode", self.mode, ("RGB",))
        require_choice("preprocess.interpolation", self.interpolation, ("bicubic", "bilinear"))
        require_choice("preprocess.resize_mode", self.resize_mode, ("shortest", "longest", "squash"))
        if min(self.std) <= 0:
            raise ClipModelsError(f"preprocess.std {list(self.std)} must be positive")
        if not 0 <= self.fill_color <= 255:
            raise ClipModelsError(f"preprocess.fill_color {self.fill_color} is outside 0 to 255")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the treatment that a sample stream takes, without its "augment" key."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return from_plain(cls, data, "preprocess")
