"""AugmentationConfig: the random steps of preprocessing in training, as data."""

from dataclasses import dataclass
from typing import Literal

from clip_models.errors import ClipModelsError
from clip_models.specs.values import PlainData, check_fields


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig(PlainData):
    """The keys of OpenCLIP's AugmentationCfg, and two more: `hflip` and `interpolation`. What is set is applied."""

    WHERE = "augmentation"

    scale: tuple[float, float] = (0.9, 1.0)
    """Bounds of the crop's share of the area."""
    ratio: tuple[float, float] | None = None
    """Bounds of the crop's width over its height; None is 3/4 to 4/3."""
    hflip: float = 0.0
    """Probability of mirroring."""
    color_jitter: float | tuple[float, ...] | None = None
    """Strengths for brightness, contrast, saturation and hue; without the fourth, or with one for all, hue stays."""
    color_jitter_prob: float | None = None
    """Probability of the jitter; None is always."""
    gray_scale_prob: float | None = None
    """Probability of turning grey."""
    re_prob: float | None = None
    """Probability of erasing rectangles, which are filled with normal noise."""
    re_count: int | None = None
    """How many rectangles are erased at most; None is one."""
    interpolation: Literal["", "bicubic", "bilinear", "random"] = ""
    """bicubic, bilinear, random (one of the two for each image), or "" for that of the model."""
    use_timm: bool = False
    """Draw the crop from Python's generator, as the timm library does, instead of torch's."""

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ClipModelsError(f"augmentation.scale {self.scale} must be two shares, 0 < low <= high <= 1")
        if self.ratio is not None and not 0 < self.ratio[0] <= self.ratio[1]:
            raise ClipModelsError(f"augmentation.ratio {self.ratio} must be two positive numbers, low <= high")
        for name in ("hflip", "color_jitter_prob", "gray_scale_prob", "re_prob"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ClipModelsError(f"augmentation.{name} {value} must be a probability")
        if self.re_count is not None and self.re_count < 1:
            raise ClipModelsError(f"augmentation.re_count {self.re_count} must be positive")
        check_fields(self, "augmentation.")
        self._check_jitter()

    def _check_jitter(self) -> None:
        if self.use_timm and (self.color_jitter_prob is not None or self.gray_scale_prob is not None):
            raise ClipModelsError(
                "augmentation.color_jitter_prob and gray_scale_prob do not go with use_timm, which always jitters"
            )
        if self.color_jitter is None:
            if self.color_jitter_prob:
                raise ClipModelsError("augmentation.color_jitter_prob has nothing to apply; give color_jitter too")
            return
        jitter = self.jitter
        if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
            raise ClipModelsError(
                f"augmentation.color_jitter {self.color_jitter} must be one, three or four numbers from 0 on,"
                " the fourth (hue) up to 0.5"
            )

    @property
    def jitter(self) -> tuple[float, ...]:
        """Strengths for brightness, contrast, saturation and hue; all 0 without jitter."""
        if self.color_jitter is None:
            return (0.0,) * 4
        if isinstance(self.color_jitter, int | float):
            return (float(self.color_jitter),) * 3 + (0.0,)
        return (*self.color_jitter, 0.0) if len(self.color_jitter) == 3 else tuple(self.color_jitter)
