"""Builds the optimizer and the learning rate of a config."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from clip_models import CLIP
from clip_train.config import OptimConfig
from clip_train.optim import OPTIMIZERS, SCHEDULES


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Builds the optimizer over the trainable parameters in two groups, with and without weight decay.

    Matrices decay. Vectors and scalars do not, and neither does what `model.no_weight_decay()` names.
    """
    spared = model.no_weight_decay() if isinstance(model, CLIP) else set()
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 and name not in spared else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return OPTIMIZERS.get(config.name)(groups, config)


def learning_rate(config: OptimConfig, steps: int) -> Callable[[int], float]:
    """Returns the rate as a function of the optimizer step (from 0) of `steps`."""
    schedule = SCHEDULES.get(config.schedule)

    def rate(step: int) -> float:
        if step < config.warmup:
            return config.lr * (step + 1) / config.warmup
        return config.lr * schedule(step - config.warmup, steps - config.warmup)

    return rate
