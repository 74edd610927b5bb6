"""Tasks: a model with its objective. The loop asks a task for losses and knows no objective itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_train.loss import contrastive_loss
from clip_train.parallel import World

MAX_LOGIT_SCALE = math.log(100)


class Task(Protocol):
    """What the loop needs of an objective."""

    model: nn.Module
    """the bare module whose parameters are trained and saved"""

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """A batch of the stream, put on the device."""

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalar losses of a prepared batch; `loss` is the one to minimise, equal on every rank."""

    def evaluate(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of a prepared batch of this rank alone, in evaluation mode and without a gradient."""

    def report(self) -> dict[str, float]:
        """Numbers to log beside the losses."""

    def after_step(self) -> None:
        """Called after each optimizer step, for constraints on the parameters."""


class _Towers(nn.Module):
    """Both towers in one call, which is what DistributedDataParallel can wrap, with unnormalised features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model: Any = self.model
        return model.encode_image(image), model.encode_text(text), model.logit_scale.exp()


class ContrastiveTask:
    """Image-text contrastive training of a dual encoder of clip-models.

    `mean`, `std`: of the three channels, on the scale 0 to 1. `precision`: fp32, or bf16 for autocast.
    """

    def __init__(
        self, model: nn.Module, *, mean: Sequence[float], std: Sequence[float], precision: str, world: World
    ) -> None:
        self.model = model.to(world.device)
        self._towers = world.wrap(_Towers(self.model))
        self._world = world
        self._autocast = precision == "bf16"
        spread = torch.tensor(std, device=world.device).view(3, 1, 1)
        self._gain = 1 / (255 * spread)
        self._offset = torch.tensor(mean, device=world.device).view(3, 1, 1) / spread

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """{"image": uint8 [B, 3, H, W], "text": int64 [B, L]} → float32 images with mean and std applied, and tokens.

        Columns of padding after the last end token of the batch are cut off: the text tower is causal and pooled at
        the end token, so they change nothing but the time.
        """
        image, text = torch.from_numpy(batch["image"]), torch.from_numpy(batch["text"])
        text = text[:, : int(text.argmax(1).max()) + 1].contiguous()
        if self._world.device.type == "cuda":
            image, text = (part.pin_memory().to(self._world.device, non_blocking=True) for part in (image, text))
        return {"image": image.to(torch.float32).mul_(self._gain).sub_(self._offset), "text": text}

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{"loss": the mean over the pairs of all ranks}."""
        return {"loss": self._loss(self._towers, batch, self._world.size)}

    @torch.no_grad()
    def evaluate(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The contrastive loss within the batch of this rank."""
        self.model.eval()
        loss = self._loss(_Towers(self.model), batch, 1)
        self.model.train()
        return loss

    def report(self) -> dict[str, float]:
        """{"logit_scale": the factor on the cosines, exponentiated}."""
        return {"logit_scale": float(self._logit_scale.detach().exp())}

    @torch.no_grad()
    def after_step(self) -> None:
        """Keeps the factor on the cosines in [1, 100]."""
        self._logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    @property
    def _logit_scale(self) -> Tensor:
        return self.model.get_parameter("logit_scale")

    def _loss(self, towers: nn.Module, batch: Mapping[str, Tensor], ranks: int) -> Tensor:
        with torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._autocast):
            image, text, scale = towers(batch["image"], batch["text"])
        # In float32: normalised in bf16, the features lose the digits that tell close pairs apart.
        return contrastive_loss(
            F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1), scale, ranks=ranks
        )
