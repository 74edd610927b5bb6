"""AdamW, what it decays, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clip_train.config import OptimConfig

_NO_DECAY = ("bn", "ln", "bias", "logit_scale")  # parts of a name, as OpenCLIP has them


def decays(name: str, parameter: Tensor) -> bool:
    """OpenCLIP's rule: matrices decay; vectors, scalars, norms, biases and the logit scale do not."""
    return parameter.ndim >= 2 and not any(part in name for part in _NO_DECAY)


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters in two groups, with and without decay."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for n, p in named if decays(n, p)], "weight_decay": config.weight_decay},
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
    ]
    # Fused, one pass over memory: on the token embedding alone the loop over tensors costs as much as a small model.
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of optimizer step `step` (from 0) of `steps`."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / (steps - config.warmup)))
