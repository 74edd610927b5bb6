"""Contrastive training of a dual encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from clip_train.errors import ClipTrainError
from clip_train.losses import LOSSES
from clip_train.tasks import TaskConfig

if TYPE_CHECKING:
    from clip_models import CLIP, ModelSpec
    from clip_train.parallel import World
    from clip_train.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(TaskConfig):
    """Image-text contrastive training (CLIP, Radford et al. 2021)."""

    loss: str = "contrastive"
    """the loss of the pairs: a registered name, or package.module:function"""

    def check(self, spec: ModelSpec) -> None:
        LOSSES.check(self.loss)
        unused = ""
        if spec.decoder is not None:
            unused = "a CoCa, and its decoder would not be trained; choose task.kind = 'coca'"
        elif spec.init_logit_bias is not None:
            unused = "made for the sigmoid loss, and its logit_bias would be ignored; choose task.kind = 'siglip'"
        if unused:
            raise ClipTrainError(f"model.name = {spec.name!r} does not fit task.kind = 'contrastive': it is {unused}")

    def build(self, model: CLIP, *, precision: str, world: World) -> Task:
        from clip_train.tasks.dual_encoder import DualEncoderTask

        return DualEncoderTask(model, LOSSES.get(self.loss), precision=precision, world=world)
