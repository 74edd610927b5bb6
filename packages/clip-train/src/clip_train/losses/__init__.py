"""Losses of image-text pairs, by name. This module does not import torch.

A loss is a function `loss(image, text, scale, *, ranks)`. It takes this rank's L2-normalised float32 features, [B, D]
each, and the exponentiated logit scale. It returns the mean over the pairs of all ranks, the same on every rank, or
with `ranks` = 1 over those of this rank. Parameter gradients are averaged over the ranks afterwards.
"""

from collections.abc import Callable
from typing import Any

from clip_core.registry import Registry

LOSSES: Registry[Callable[..., Any]] = Registry(
    "loss", {"contrastive": "clip_train.losses.contrastive:contrastive_loss"}
)
