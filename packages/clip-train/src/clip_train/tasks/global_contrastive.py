"""Contrastive training on an estimate of the loss over the whole data set, for small batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from clip_train.errors import ClipTrainError
from clip_train.tasks.contrastive import TowersConfig

if TYPE_CHECKING:
    from clip_models import CLIP, ModelSpec
    from clip_train.parallel import World
    from clip_train.tasks.base import Task


class Version(NamedTuple):
    """What the published algorithms differ in."""

    temperature: Literal["fixed", "global", "individual"]
    gamma: Literal["constant", "cosine"]


VERSIONS = {
    "sogclr": Version("fixed", "constant"),
    "isogclr": Version("individual", "constant"),
    "v1": Version("fixed", "cosine"),
    "v2": Version("individual", "cosine"),
    "v3": Version("global", "cosine"),
}


@dataclass(frozen=True, kw_only=True)
class GlobalContrastiveConfig(TowersConfig):
    """Global contrastive training: SogCLR (Yuan et al. 2022), iSogCLR (Qiu et al. 2023), FastCLIP (Wei et al. 2024).

    `logit_scale.init` is the inverse of the initial temperature, and `logit_scale.max` of the lowest one.
    """

    reads_weights = False

    version: Literal["sogclr", "isogclr", "v1", "v2", "v3"] = "v3"
    """sogclr and v1 have a fixed temperature, isogclr and v2 one for each image and caption, v3 a trained one; gamma is
    constant in sogclr and isogclr, and falls in v1 to v3"""
    gamma: float = 0.2
    """share of the batch in the running normaliser of a sample; v1 to v3 fall to it from 1"""
    gamma_epochs: int = 0
    """epochs in which gamma falls in v1 to v3, half a cosine in steps of one epoch; the authors take half of the run"""
    eps: float = 1e-14
    """added to the normalisers"""
    rho: float = 8.0
    """keeps trained temperatures low (isogclr, v2, v3): they fall where the loss of a sample is above -rho"""
    temperature_lr: float = 0.001
    """learning rate of individual temperatures; that of a global one is optim.lr and its optim.rates.logit_scale"""
    temperature_momentum: float = 0.9
    """momentum of individual temperatures"""

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        self.refuse_unused(spec)
        if not 0 < self.gamma <= 1:
            raise ClipTrainError(f"task.gamma = {self.gamma} must be in (0, 1]")
        falls = VERSIONS[self.version].gamma == "cosine"
        if falls and self.gamma_epochs < 1:
            raise ClipTrainError(
                f"task.gamma_epochs = {self.gamma_epochs}: task.version = {self.version!r} needs the epochs in which "
                "gamma falls, such as half of those of the run"
            )
        if not falls and self.gamma_epochs:
            raise ClipTrainError(f"task.gamma_epochs = {self.gamma_epochs}: gamma is constant in {self.version!r}")
        if self.eps <= 0 or self.rho < 0:
            raise ClipTrainError(f"task.eps = {self.eps} must be above 0, and task.rho = {self.rho} at least 0")
        if self.temperature_lr <= 0 or not 0 <= self.temperature_momentum < 1:
            raise ClipTrainError(
                f"task.temperature_lr = {self.temperature_lr} must be above 0, and task.temperature_momentum = "
                f"{self.temperature_momentum} in [0, 1)"
            )
        if not self.logit_scale.learnable:
            raise ClipTrainError(
                f"task.logit_scale.learnable = false: whether the temperature is trained follows from task.version = "
                f"{self.version!r}"
            )

    def initialise(self, model: CLIP) -> None:
        trained = VERSIONS[self.version].temperature == "global"
        replace(self.logit_scale, learnable=trained).apply(model)

    def gamma_at(self, epoch: int) -> float:
        """Returns gamma in an epoch, from 0."""
        if VERSIONS[self.version].gamma == "constant" or epoch >= self.gamma_epochs:
            return self.gamma
        return self.gamma + (1 - self.gamma) * (1 + math.cos(math.pi * epoch / self.gamma_epochs)) / 2

    def build(self, model: CLIP, *, precision: str, world: World) -> Task:
        from clip_train.tasks.normalised import NormalisedTask

        return NormalisedTask(model, self, precision=precision, world=world)
