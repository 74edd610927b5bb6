"""Gradient norms and clipping. Nothing here waits for the device."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from clip_models import CLIP
from clip_models.extras import require
from clip_train.optim.config import OptimConfig
from clip_train.parallelize.shards import compute_device, local, shard_group

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
        self._group = shard_group(everything)
        self._device = compute_device(everything)

    def norms(self) -> dict[str, Tensor]:
        """Returns scalars on the device: `grad_norm` of all, and `grad_norm_image`, … of each tower."""
        squares = torch.stack([_squares(own, self._device) for own in self._towers.values()])
        whole, sharded = squares.unbind(1)
        if self._group is not None:
            sharded = sharded.contiguous()
            dist.all_reduce(sharded, group=self._group)
        total = whole + sharded
        norms = total.sqrt().float().unbind()
        return {
            "grad_norm": total.sum().sqrt().float(),
            **{_key(tower): norm for tower, norm in zip(self._towers, norms, strict=True)},
        }

    def apply(self, norms: dict[str, Tensor]) -> None:
        """Scales the gradients down to the limits, given the result of `norms`."""
        for key, limit, parameters in self._limits:
            factor = (limit / (norms[key] + 1e-6)).clamp(max=1.0)
            grads = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
            for device in {grad.device for grad in grads}:  # shards may be on the CPU, and scalars beside the model
                torch._foreach_mul_([grad for grad in grads if grad.device == device], factor.to(device))
        if self._agc:
            utils = require("timm.utils", "timm", "optim.agc")
            utils.adaptive_clip_grad(self._everything, clip_factor=self._agc)


def _key(tower: str) -> str:
    return f"grad_norm_{tower}"


def _squares(parameters: list[nn.Parameter], device: torch.device) -> Tensor:
    """Returns the sums of the squared gradients of whole tensors and of this rank's shards, float64 [2] on `device`."""
    sums = []
    for sharded in (False, True):
        grads = [p.grad for p in parameters if p.grad is not None and isinstance(p.grad, DTensor) == sharded]
        norms = torch._foreach_norm([local(grad) for grad in grads]) if grads else [torch.zeros(())]
        sums.append(torch.stack([norm.double() for norm in norms]).square().sum())
    return torch.stack([value.to(device) for value in sums])
