"""Gradient norms and clipping. Nothing here waits for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clip_models import CLIP
from clip_models.extras import require
from clip_train.optim.config import OptimConfig

_PREFIXES = (("visual.", "image"), ("text_decoder.", "decoder"), ("logit_", "other"), ("", "text"))


def tower_of(model: nn.Module, name: str) -> str:
    """Returns the tower of a parameter: image, text or decoder; other for logit scale and bias, and outside a CLIP."""
    if not isinstance(model, CLIP):
        return "other"
    return next(tower for prefix, tower in _PREFIXES if name.startswith(prefix))


class Clip:
    """Clips the gradient of the trainable parameters as the config says: by its norm, by tower, or by unit."""

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        self._towers: dict[str, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._towers.setdefault(tower_of(model, name), []).append(parameter)
        everything = [parameter for tower in self._towers.values() for parameter in tower]
        self._limits: list[tuple[str, float, list[nn.Parameter]]] = [
            (_key(tower), limit, self._towers.get(tower, [])) for tower, limit in config.grad_clip.items()
        ]
        if config.grad_clip_norm:
            self._limits = [("grad_norm", config.grad_clip_norm, everything)]
        self._agc, self._everything = config.agc, everything

    def norms(self) -> dict[str, Tensor]:
        """Returns scalars on the device: `grad_norm` of all, and `grad_norm_image`, … of each tower."""
        towers = {
            _key(tower): _whole(nn.utils.get_total_norm([p.grad for p in own if p.grad is not None]))
            for tower, own in self._towers.items()
        }
        return {"grad_norm": torch.linalg.vector_norm(torch.stack([*towers.values()])), **towers}

    def apply(self, norms: dict[str, Tensor]) -> None:
        """Scales the gradients down to the limits, given the result of `norms`."""
        for key, limit, parameters in self._limits:
            nn.utils.clip_grads_with_norm_(parameters, limit, norms[key])
        if self._agc:
            utils = require("timm.utils", "timm", "optim.agc")
            utils.adaptive_clip_grad(self._everything, clip_factor=self._agc)


def _key(tower: str) -> str:
    return f"grad_norm_{tower}"


def _whole(norm: Any) -> Tensor:
    """Returns the norm over all shards of sharded gradients."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
