"""The factor on the cosines, and the bias of the logits, as a recipe sets them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clip_train.errors import ClipTrainError

if TYPE_CHECKING:
    from clip_models import CLIP

CEILING = 1e6


@dataclass(frozen=True, kw_only=True)
class LogitScaleConfig:
    """The factor on the cosines: the inverse of the temperature. A trained one stays in [1, max]."""

    init: float | None = None
    """initial value, such as 14.3 for a temperature of 0.07; by default that of the architecture or of its weights"""
    learnable: bool = True
    """train it; false keeps its initial value"""
    max: float = 100.0
    """largest value of a trained one"""

    def check(self) -> None:
        """Raises ClipTrainError for a value that is not valid."""
        if not 1 <= self.max <= CEILING:
            raise ClipTrainError(f"task.logit_scale.max = {self.max} must be in [1, {CEILING:g}]")
        if self.init is None:
            return
        low, high = (1.0, self.max) if self.learnable else (1 / CEILING, CEILING)
        if not low <= self.init <= high:
            what = "a trained one" if self.learnable else "it"
            raise ClipTrainError(f"task.logit_scale.init = {self.init} must be in [{low:g}, {high:g}] for {what}")

    def apply(self, model: CLIP) -> None:
        """Sets the parameter `logit_scale`, the logarithm of the factor."""
        if self.init is not None:
            model.logit_scale.data.fill_(math.log(self.init))
        if not self.learnable:
            model.logit_scale.requires_grad_(False)

    def clamp(self, model: CLIP) -> None:
        """Brings a trained value back into [1, max]."""
        if self.learnable and model.logit_scale.requires_grad:
            model.logit_scale.data.clamp_(0, math.log(self.max))


@dataclass(frozen=True, kw_only=True)
class LogitBiasConfig:
    """The bias of the logits in the sigmoid loss."""

    init: float | None = None
    """initial value; by default that of the architecture or of its weights. A model without a bias gets one of this
    value; OpenCLIP's --siglip is -10 with logit_scale.init = 10"""
    learnable: bool = True
    """train it; false keeps its initial value"""

    def check(self) -> None:
        """Raises ClipTrainError for a value that is not valid."""
        if self.init is not None and not math.isfinite(self.init):
            raise ClipTrainError(f"task.logit_bias.init = {self.init} must be finite")

    def apply(self, model: CLIP) -> None:
        """Sets the parameter `logit_bias`, and adds it, also to the spec, where the model has none."""
        from torch import nn

        if self.init is not None:
            if model.logit_bias is None:
                model.logit_bias = nn.Parameter(model.logit_scale.data.clone())
                model.spec = replace(model.spec, init_logit_bias=self.init)
            model.logit_bias.data.fill_(self.init)
        if model.logit_bias is not None and not self.learnable:
            model.logit_bias.requires_grad_(False)
