"""Contrastive training of a dual encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from clip_train.errors import ClipTrainError
from clip_train.losses import LOSSES
from clip_train.tasks import TaskConfig

if TYPE_CHECKING:
    from clip_models import CLIP
    from clip_train.parallel import World
    from clip_train.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(TaskConfig):
    """Image-text contrastive training."""

    loss: str = "contrastive"
    """the loss of the pairs: a registered name, or package.module:function"""

    def check(self) -> None:
        LOSSES.check(self.loss)

    def build(self, model: CLIP, *, precision: str, world: World) -> Task:
        from clip_train.tasks.dual_encoder import DualEncoderTask

        unused = ""
        if model.spec.decoder is not None:
            unused = "a CoCa, and its decoder needs a captioning loss"
        elif model.spec.init_logit_bias is not None:
            unused = "made for the sigmoid loss (SigLIP), and its logit_bias would be ignored"
        if unused:
            raise ClipTrainError(
                f"model.name = {model.spec.name!r} cannot be trained contrastively: the model is {unused}; choose an "
                "architecture without a decoder and without init_logit_bias, such as ViT-B-32"
            )
        return DualEncoderTask(model, LOSSES.get(self.loss), precision=precision, world=world)
