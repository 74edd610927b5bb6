"""Losses by name. This module does not import torch.

A loss of pairs is a function `loss(image, text, scale, *, ranks, …)`; `sigmoid` takes the logit bias after the scale.
It gets this rank's L2-normalised float32 features, [B, D] each, and the exponentiated logit scale. It returns the mean
over the samples of all ranks, the same on every rank, or with `ranks` = 1 over those of this rank. Parameter gradients
are averaged over the ranks afterwards, which gives the gradient of that mean. A recipe may name the losses of this
registry; those of captions and of distillation take what only their tasks have, and are in their modules.
"""

from collections.abc import Callable
from typing import Any

from clip_core.registry import Registry

LOSSES: Registry[Callable[..., Any]] = Registry(
    "loss",
    {
        "contrastive": "clip_train.losses.contrastive:contrastive_loss",
        "sigmoid": "clip_train.losses.sigmoid:sigmoid_loss",
    },
)
