"""The implementation of tasks that train a dual encoder and a decoder that captions the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from clip_models import CLIP
from clip_train.losses.caption import caption_loss
from clip_train.parallel import World
from clip_train.tasks.base import Batch, Outputs, Tensors
from clip_train.tasks.dual_encoder import DualEncoderTask

if TYPE_CHECKING:
    from clip_train.tasks.coca import CoCaConfig


class CaptioningTask(DualEncoderTask):
    """Trains a CoCa: the contrastive loss of the pairs plus the cross entropy of every next token of a caption."""

    def __init__(self, model: CLIP, config: CoCaConfig, *, precision: str, world: World) -> None:
        super().__init__(model, config, precision=precision, world=world)
        self._config = config
        self._pad = model.spec.text.pad_id or 0

    def with_counts(self, batch: Batch) -> dict[str, Tensor]:
        """Adds "tokens", int64 [B], the same for all samples: the number of tokens that the captioning loss predicts.

        They are those of the batches of all ranks, or of this rank if the loss is the mean of the ranks' means.
        """
        count = self._predicted(batch)
        if self._config.caption_mean == "all":
            count = self.world.sum(count)
        return {**batch, "tokens": count.expand(len(batch["text"]))}

    def _predicted(self, batch: Batch) -> Tensor:
        """Returns the number of tokens that the captioning loss predicts."""
        return (batch["text"][:, 1:] != self._pad).sum()

    def weighed(self, batch: Batch) -> dict[str, Tensor]:
        return {"caption_loss": self._predicted(batch)}

    def forward(self, image: Tensor, batch: Batch) -> Outputs:
        text = batch["text"]
        out = self.model(image, text, output_labels=False)
        labels = F.pad(text[:, 1:], (0, 1), value=self._pad)  # the last position has no next token
        caption = caption_loss(
            out["logits"],
            labels,
            count=batch["tokens"][0] if "tokens" in batch else None,
            ignore=self._pad,
            ranks=self.world.size if "tokens" in batch else 1,
            mean=self._config.caption_mean,
        )
        features = self.normalised({"image": out["image_features"], "text": out["text_features"]})
        return Outputs(features, self.shared(), {"caption_loss": self._config.caption_weight * caption})

    def losses_of(
        self, features: Tensors, shared: Tensors, batch: Batch, *, ranks: int, step: int | None = None
    ) -> Tensors:
        """Returns {"contrastive_loss": the mean over the pairs, times its weight}."""
        losses = super().losses_of(features, shared, batch, ranks=ranks, step=step)
        return {name: self._config.contrastive_weight * loss for name, loss in losses.items()}
