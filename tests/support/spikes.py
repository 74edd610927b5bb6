"""A task whose loss jumps at chosen samples."""

from dataclasses import dataclass
from typing import Any

import torch

from clip_models import CLIP
from clip_train.parallel import World
from clip_train.tasks.base import Task
from clip_train.tasks.contrastive import ContrastiveConfig
from clip_train.tasks.dual_encoder import DualEncoderTask


@dataclass(frozen=True, kw_only=True)
class SpikyConfig(ContrastiveConfig):
    """The loss of a batch with one of the samples `at`, by uid, has `factor` times its value, or is NaN for 0."""

    at: tuple[str, ...] = ()
    factor: float = 100.0

    def build(self, model: CLIP, *, precision: str, world: World) -> Task:
        return SpikyTask(model, self, precision=precision, world=world)


class SpikyTask(DualEncoderTask):
    def losses_of(self, features: Any, shared: Any, batch: Any, *, ranks: int, step: int | None = None) -> Any:
        losses = super().losses_of(features, shared, batch, ranks=ranks, step=step)
        config: SpikyConfig = self._config
        marked = torch.tensor([int(uid[:16], 16) - (1 << 63) for uid in config.at], dtype=torch.int64)
        hit = torch.isin(batch["uid"], marked).any().float()
        hit = (self.world.sum(hit) if ranks > 1 else hit) > 0
        factor = torch.where(hit, config.factor or torch.nan, 1.0)
        return {name: loss * factor for name, loss in losses.items()}

    def __init__(self, model: CLIP, config: SpikyConfig, *, precision: str, world: World) -> None:
        super().__init__(model, config, precision=precision, world=world)
        self._config = config
