"""Optimizers and learning-rate schedules, by name. This module does not import torch.

An optimizer is a function `optimizer(groups, config)` of the parameter groups and the OptimConfig, and returns a
torch.optim.Optimizer whose state consists of tensors. A schedule is a function `schedule(step, steps)` of the step
(from 0) and the number of steps after the warm-up, and returns the share of the peak learning rate.
"""

from collections.abc import Callable
from typing import Any

from clip_core.registry import Registry

OPTIMIZERS: Registry[Callable[..., Any]] = Registry("optimizer", {"adamw": "clip_train.optim.adamw:adamw"})
SCHEDULES: Registry[Callable[[int, int], float]] = Registry(
    "schedule",
    {"cosine": "clip_train.optim.schedules:cosine", "constant": "clip_train.optim.schedules:constant"},
)
