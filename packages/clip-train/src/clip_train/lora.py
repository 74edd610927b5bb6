"""The config of low-rank adaptation (LoRA), which `clip_train.adapters` applies. Requires neither torch nor peft."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import Literal

from clip_core.suggest import did_you_mean
from clip_train.errors import ClipTrainError

GROUPS = ("attention", "mlp", "all")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Trains a product of two thin matrices beside linear layers, whose weights stay as they are (LoRA, Hu et al. 2021,
    arXiv 2106.09685). The exported model has the products added to its weights."""

    rank: int = 0
    """columns of the first and rows of the second matrix; 0 is off"""
    alpha: float = 16.0
    """factor on the product, divided by the rank"""
    dropout: float = 0.0
    """share of the inputs of the adapters that is left out in training"""
    targets: str | tuple[str, ...] = "attention"
    """the linear layers of the blocks that are adapted: "attention", "mlp" or "all"; or patterns of their names, such
    as ["visual.*.attn.in_proj", "*.c_fc"], over all linear layers of the towers"""
    towers: tuple[Literal["image", "text"], ...] = ("image", "text")
    """towers that are adapted"""
    logit_scale: bool = False
    """train the scale of the logits, and their bias, too"""

    def check(self, *, pretrained: bool, locked: bool, precision: str) -> None:
        """Raises ClipTrainError for a value that is not valid, has no effect, or cannot work.

        `pretrained`: whether both towers start from given weights. `locked`: whether `model.lock` is used.
        `precision`: `train.precision`.
        """
        if self.rank < 0:
            raise ClipTrainError(f"model.lora.rank = {self.rank} must be at least 0")
        if not self.rank:
            self._check_off()
            return
        if not 0 < self.alpha < math.inf:
            raise ClipTrainError(f"model.lora.alpha = {self.alpha} must be above 0")
        if not 0 <= self.dropout < 1:
            raise ClipTrainError(f"model.lora.dropout = {self.dropout} must be in [0, 1)")
        if isinstance(self.targets, str) and self.targets not in GROUPS:
            hint = did_you_mean(self.targets, GROUPS, f"the groups are {', '.join(GROUPS)}")
            raise ClipTrainError(
                f"model.lora.targets = {self.targets!r} is no group of layers; {hint}; patterns of names are a list"
            )
        for name, value in (("targets", self.targets), ("towers", self.towers)):
            if not value:
                raise ClipTrainError(
                    f"model.lora.{name} is empty, so nothing would be trained; omit it for the default"
                )
        if len(set(self.towers)) < len(self.towers):
            raise ClipTrainError(f"model.lora.towers = {list(self.towers)} names a tower twice")
        if not pretrained:
            raise ClipTrainError(
                f"model.lora.rank = {self.rank} trains beside frozen weights, which would be random: name them in "
                "model.pretrained, or those of both towers in model.pretrained_image and model.pretrained_text"
            )
        if locked:
            raise ClipTrainError(
                "model.lock has no effect with model.lora, which locks both towers: omit it; model.lora.towers says "
                "which towers are adapted"
            )
        if precision == "fp8":
            raise ClipTrainError(
                "train.precision = 'fp8' does not work with model.lora, whose thin matrices have no products in "
                "float8: choose train.precision = 'bf16'"
            )
        if importlib.util.find_spec("peft") is None:
            raise ClipTrainError(
                f"model.lora.rank = {self.rank} needs peft, which is not installed; pip install 'clip-train[lora]'"
            )

    def _check_off(self) -> None:
        default = LoraConfig()
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value != getattr(default, name):
                raise ClipTrainError(
                    f"model.lora.{name} = {value!r} has no effect without model.lora.rank: set the rank"
                )
