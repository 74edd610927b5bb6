"""AdamW (Loshchilov and Hutter 2019)."""

from typing import Any

import torch

from clip_train.config import OptimConfig


def adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """Returns torch's fused AdamW, which passes over the memory once."""
    # On the token embedding alone, the loop over tensors costs as much as a small model.
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
