"""Contrastive training of a CoCa together with its captioning decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from clip_train.errors import ClipTrainError
from clip_train.tasks.contrastive import ContrastiveConfig

if TYPE_CHECKING:
    from clip_models import CLIP, ModelSpec
    from clip_train.parallel import World
    from clip_train.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class CoCaConfig(ContrastiveConfig):
    """Contrastive and captioning training (CoCa, Yu et al. 2022)."""

    contrastive_weight: float = 1.0
    """factor on the loss of the pairs"""
    caption_weight: float = 2.0
    """factor on the captioning loss"""
    caption_mean: Literal["all", "rank"] = "all"
    """the captioning loss is the mean over the tokens of all ranks, or, as in OpenCLIP, the mean of the ranks' means"""

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        for name, value in (("contrastive", self.contrastive_weight), ("caption", self.caption_weight)):
            if value < 0:
                raise ClipTrainError(f"task.{name}_weight = {value} must be at least 0")

    def check_model(self, spec: ModelSpec) -> None:
        if spec.decoder is None:
            raise ClipTrainError(
                f"model.name = {spec.name!r} does not fit task.kind = 'coca': it has no decoder; choose an "
                "architecture with one, such as coca_ViT-B-32, or another task"
            )
        if spec.init_logit_bias is not None:
            raise ClipTrainError(
                f"model.name = {spec.name!r} does not fit task.kind = 'coca': its logit_bias would not be trained"
            )

    def chance(self, spec: ModelSpec, samples: int) -> float | None:
        """Returns the weighted sum of ln N for the pairs and of ln V for a guess among all tokens of the vocabulary."""
        pairs = super().chance(spec, samples)
        tokens = math.log(spec.text.vocab_size)
        return None if pairs is None else self.contrastive_weight * pairs + self.caption_weight * tokens

    def build(self, model: CLIP, *, precision: str, world: World) -> Task:
        from clip_train.tasks.captioning import CaptioningTask

        return CaptioningTask(model, self, precision=precision, world=world)
