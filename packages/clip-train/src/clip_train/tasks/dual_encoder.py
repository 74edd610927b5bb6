"""The implementation of tasks that train an image and a text tower on pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_models import CLIP
from clip_train.errors import ClipTrainError
from clip_train.losses.positives import caption_groups, value_groups
from clip_train.parallel import World
from clip_train.tasks.base import Batch, Outputs, Task, Tensors

if TYPE_CHECKING:
    from clip_train.tasks.contrastive import PairConfig, TowersConfig


class TowersTask(Task):
    """Trains both towers of a CLIP on their features, and the scale of the logits as the config says."""

    def __init__(self, model: CLIP, config: TowersConfig, *, precision: str, world: World) -> None:
        super().__init__(model, precision=precision, world=world)
        config.initialise(model)
        self._scale = config.logit_scale

    def forward(self, image: Tensor, batch: Batch) -> Outputs:
        features = {"image": self.model.encode_image(image), "text": self.model.encode_text(batch["text"])}
        return Outputs(self.normalised(features), self.shared(), {})

    def shared(self) -> dict[str, Tensor]:
        """Returns the scale and, if there is one, the bias of the logits."""
        shared = {"scale": self.model.logit_scale.exp()}
        return shared if self.model.logit_bias is None else {**shared, "bias": self.model.logit_bias * 1.0}

    def normalised(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the features [B, D] L2-normalised, in float32: bf16 loses the digits that tell close pairs apart."""
        if any(value.ndim != 2 for value in features.values()):
            shapes = " and ".join(str(list(value.shape)) for value in features.values())
            raise ClipTrainError(
                f"model.name = {self.model.spec.name!r} returns features of shapes {shapes}, "
                "not one vector for each image and caption: choose towers that pool their tokens"
            )
        return {name: F.normalize(value.float(), dim=-1) for name, value in features.items()}

    @torch.no_grad()
    def after_step(self) -> None:
        self._scale.clamp(self.model)


class DualEncoderTask(TowersTask):
    """Trains both towers on a loss of the pairs of all ranks, which the config makes.

    The loss also gets the model's `logit_bias` as `bias` if there is one, and `groups` if the config names positives.
    """

    def __init__(self, model: CLIP, config: PairConfig, *, precision: str, world: World) -> None:
        super().__init__(model, config, precision=precision, world=world)
        self._loss, self._positives = config.make_loss(), config.positives
        self.columns = config.columns

    def tensors(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Adds "group", int64 [B], where other samples than the own one are positives."""
        tensors = super().tensors(batch)
        if self._positives == "captions":
            tensors["group"] = caption_groups(torch.from_numpy(batch["text"]))
        elif self._positives != "pair":
            tensors["group"] = value_groups(batch[self._positives])
        return tensors

    def losses_of(
        self, features: Tensors, shared: Tensors, batch: Batch, *, ranks: int, step: int | None = None
    ) -> Tensors:
        """Returns {"contrastive_loss": the mean over the pairs}."""
        options = {"groups": batch["group"]} if "group" in batch else {}
        return {"contrastive_loss": self._loss(features["image"], features["text"], **shared, ranks=ranks, **options)}
