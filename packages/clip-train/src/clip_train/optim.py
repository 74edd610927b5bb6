"""AdamW, what it decays, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from clip_models import CLIP
from clip_train.config import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters in two groups, with and without weight decay.

    Matrices decay. Vectors and scalars do not, and neither does what `model.no_weight_decay()` names.
    """
    spared = model.no_weight_decay() if isinstance(model, CLIP) else set()
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 and name not in spared else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    # Fused, one pass over memory: on the token embedding alone the loop over tensors costs as much as a small model.
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of optimizer step `step` (from 0) of `steps`."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / (steps - config.warmup)))
