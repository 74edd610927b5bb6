"""Training of a dual encoder with a sigmoid loss for each pair of an image and a caption."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from clip_train.errors import ClipTrainError
from clip_train.tasks.contrastive import PairConfig
from clip_train.tasks.temperature import LogitBiasConfig

if TYPE_CHECKING:
    from clip_models import CLIP, ModelSpec
    from clip_train.parallel import World
    from clip_train.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class SigLIPConfig(PairConfig):
    """Sigmoid training of image-text pairs (SigLIP, Zhai et al. 2023). The bias of the logits is trained."""

    reads_weights = False

    loss: str = "sigmoid"
    """the loss of the pairs: a registered name, or package.module:function"""
    exchange: Literal["ring", "gather"] = "ring"
    """ranks pass their captions around and hold those of two at a time, or gather all, in fewer messages"""
    logit_bias: LogitBiasConfig = field(default_factory=LogitBiasConfig)
    """the bias of the logits"""

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        self.logit_bias.check()
        if self.loss == "contrastive":
            raise ClipTrainError(
                "task.loss = 'contrastive' has no bias of the logits: choose task.kind = 'contrastive'"
            )
        if spec.decoder is not None or (spec.init_logit_bias is None and self.logit_bias.init is None):
            why = "it has no init_logit_bias" if spec.decoder is None else "it is a CoCa"
            raise ClipTrainError(
                f"model.name = {spec.name!r} does not fit task.kind = 'siglip': {why}; choose an architecture with "
                "init_logit_bias, such as ViT-B-16-SigLIP, set task.logit_bias.init, or choose another task"
            )

    def initialise(self, model: CLIP) -> None:
        super().initialise(model)
        self.logit_bias.apply(model)

    def make_loss(self) -> Callable[..., Any]:
        return self.pair_loss(**({"exchange": "gather"} if self.exchange == "gather" else {}))

    def chance(self, spec: ModelSpec, samples: int) -> float | None:
        """Returns the loss of equal logits at their best value, which says that one pair in N is a positive."""
        if self.loss != "sigmoid" or self.positives != "pair":
            return None
        return math.log(samples) + (samples - 1) * math.log(samples / (samples - 1))

    def build(self, model: CLIP, *, precision: str, world: World) -> Task:
        from clip_train.tasks.dual_encoder import DualEncoderTask

        return DualEncoderTask(model, self, precision=precision, world=world)
