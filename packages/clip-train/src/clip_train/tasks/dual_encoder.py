"""The implementation of tasks that train an image and a text tower on pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_models import CLIP
from clip_train.errors import ClipTrainError
from clip_train.parallel import World

MAX_LOGIT_SCALE = math.log(100)


class _Towers(nn.Module):
    """Both towers in one call, which DistributedDataParallel can wrap. Features are not normalised."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model: Any = self.model
        return model.encode_image(image), model.encode_text(text), model.logit_scale.exp()


class DualEncoderTask:
    """Trains both towers of a CLIP on a loss of the pairs of all ranks.

    `loss`: a function as `clip_train.losses` describes it. `precision`: fp32, or bf16 for autocast.
    """

    def __init__(self, model: CLIP, loss: Callable[..., Tensor], *, precision: str, world: World) -> None:
        self.model: CLIP = model.to(world.device)
        self._pair_loss = loss
        self._towers = world.wrap(_Towers(self.model))
        self._world = world
        self._autocast = precision == "bf16"
        mean, std = (
            torch.tensor(values, device=world.device).view(3, 1, 1)
            for values in (model.spec.preprocess.mean, model.spec.preprocess.std)
        )
        self._gain, self._offset = 1 / (255 * std), mean / std

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Takes {"image": uint8 [B, 3, H, W], "text": int64 [B, L]}. Returns float32 images, normalised, and tokens.

        Columns of the tokens that change no feature of this model's text tower are cut off.
        """
        image, text = torch.from_numpy(batch["image"]), self.model.cut_captions(torch.from_numpy(batch["text"]))
        if self._world.device.type == "cuda":
            image, text = (
                part.contiguous().pin_memory().to(self._world.device, non_blocking=True) for part in (image, text)
            )
        return {"image": image.to(torch.float32).mul_(self._gain).sub_(self._offset), "text": text}

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns {"loss": the mean over the pairs of all ranks}."""
        return {"loss": self._loss(self._towers, batch, self._world.size)}

    @torch.no_grad()
    def evaluate(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the loss within the batch of this rank."""
        self.model.eval()
        loss = self._loss(_Towers(self.model), batch, 1)
        self.model.train()
        return loss

    def report(self) -> dict[str, float]:
        """Returns {"logit_scale": the exponentiated factor on the cosines}."""
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
        if image.ndim != 2 or text.ndim != 2:
            raise ClipTrainError(
                f"model.name = {self.model.spec.name!r} returns features of shapes {list(image.shape)} and "
                f"{list(text.shape)}, not one vector for each image and caption: choose towers that pool their tokens"
            )
        # In float32: normalised in bf16, the features lose the digits that tell close pairs apart.
        return self._pair_loss(
            F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1), scale, ranks=ranks
        )
