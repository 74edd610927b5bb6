"""A task, a loss, an optimizer and a schedule as a user's package defines them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clip_train.tasks.contrastive import PairConfig


@dataclass(frozen=True, kw_only=True)
class ShiftedConfig(PairConfig):
    """Trains on images' features that are shifted."""

    loss: str = "tests.clip_train.outside:distance"
    shift: float = 0.0

    def make_loss(self) -> Any:
        def loss(image: Any, text: Any, scale: Any, *, ranks: int) -> Any:
            return distance(image + self.shift, text, scale, ranks=ranks)

        return loss

    def build(self, model: Any, *, precision: str, world: Any) -> Any:
        from clip_train.tasks.dual_encoder import DualEncoderTask

        return DualEncoderTask(model, self, precision=precision, world=world)


def distance(image: Any, text: Any, scale: Any, *, ranks: int) -> Any:
    """Returns the mean cosine distance of the pairs, scaled."""
    return scale * (1 - (image * text).sum(1)).mean()


def sgd(groups: Any, config: Any) -> Any:
    import torch

    return torch.optim.SGD(groups, lr=config.lr, momentum=config.betas[0])


def linear(seen: int, plan: Any) -> float:
    return 1 - seen / (plan.total - plan.warmup)
