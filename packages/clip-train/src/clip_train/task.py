"""Tasks: a model with its objective. The loop asks a task for losses and knows no objective itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_models import CLIP, ModelSpec
from clip_train.errors import ClipTrainError
from clip_train.loss import contrastive_loss
from clip_train.parallel import World

MAX_LOGIT_SCALE = math.log(100)


class Task(Protocol):
    """What the loop needs of an objective."""

    @property
    def model(self) -> nn.Module:
        """The bare module whose parameters are trained and saved."""

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

    `precision`: fp32, or bf16 for autocast. Raises ClipTrainError for a model that was made for another objective.
    """

    def __init__(self, model: CLIP, *, precision: str, world: World) -> None:
        _check_objective(model.spec)
        self.model: CLIP = model.to(world.device)
        self._towers = world.wrap(_Towers(self.model))
        self._world = world
        self._autocast = precision == "bf16"
        mean, std = (
            torch.tensor(values, device=world.device).view(3, 1, 1)
            for values in (model.spec.preprocess.mean, model.spec.preprocess.std)
        )
        self._gain, self._offset = 1 / (255 * std), mean / std

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """{"image": uint8 [B, 3, H, W], "text": int64 [B, L]} → float32 images with mean and std applied, and tokens.

        Columns of the tokens that change no feature of this model's text tower are cut off.
        """
        image, text = torch.from_numpy(batch["image"]), self.model.cut_captions(torch.from_numpy(batch["text"]))
        if self._world.device.type == "cuda":
            image, text = (
                part.contiguous().pin_memory().to(self._world.device, non_blocking=True) for part in (image, text)
            )
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
        if image.ndim != 2 or text.ndim != 2:
            raise ClipTrainError(
                f"model.name = {self.model.spec.name!r} gives features of the shapes {list(image.shape)} and "
                f"{list(text.shape)}, not one vector for each image and caption: choose towers that pool their tokens"
            )
        # In float32: normalised in bf16, the features lose the digits that tell close pairs apart.
        return contrastive_loss(
            F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1), scale, ranks=ranks
        )


def _check_objective(spec: ModelSpec) -> None:
    """ClipTrainError when the contrastive loss would leave a part of the model untrained or unused."""
    unused = ""
    if spec.decoder is not None:
        unused = "a CoCa, and its decoder needs a captioning loss"
    elif spec.init_logit_bias is not None:
        unused = "made for the sigmoid loss (SigLIP), and its logit_bias would be ignored"
    if unused:
        raise ClipTrainError(
            f"model.name = {spec.name!r} cannot be trained contrastively: the model is {unused}; choose an "
            "architecture without a decoder and without init_logit_bias, such as ViT-B-32"
        )
