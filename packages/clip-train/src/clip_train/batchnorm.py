"""Batch normalisation over the batch of all ranks. Two ranks train like one on their joint batch."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode


def synchronise_batch_norms(module: nn.Module) -> None:
    """Makes every batch norm of `module` in training mode use the statistics of all ranks, on any device.

    It replaces the call of torch.nn.functional.batch_norm inside the layer's forward, so subclasses with their own
    forward (timm's, which add an activation) are included. Layers in eval mode are not affected.
    """
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            child.forward = _synchronised(child, child.forward)  # type: ignore[method-assign]


def _synchronised(layer: _BatchNorm, forward: Any) -> Any:
    def call(*args: Any, **options: Any) -> Any:
        # In eval mode a layer without running statistics uses those of the batch of this rank.
        with _Synchronised() if layer.training else nullcontext():
            return forward(*args, **options)

    return call


class _Synchronised(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Computes torch.nn.functional.batch_norm in float32 with the statistics of all ranks' inputs, [B, C, …] each."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    with torch.autocast(input.device.type, enabled=False):
        x, axes = input.float(), [axis for axis in range(input.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(input.ndim)]
        own_count = x.new_tensor([x.numel() / x.shape[1]])
        total: Tensor = _SumOverRanks.apply(torch.cat([x.sum(axes), own_count]))
        mean_C, count = total[:-1] / total[-1], total[-1].detach()
        centred = x - mean_C.view(shape)
        var_C = _SumOverRanks.apply(centred.square().sum(axes)) / count
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean_C.to(running_mean.dtype), momentum)
                running_var.lerp_((var_C * count / (count - 1)).to(running_var.dtype), momentum)
        scale_C = torch.rsqrt(var_C + eps) if weight is None else torch.rsqrt(var_C + eps) * weight
        out = centred * scale_C.view(shape)
        return (out if bias is None else out + bias.view(shape)).to(input.dtype)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        return _all_reduced(local)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _all_reduced(grad)


def _all_reduced(local: Tensor) -> Tensor:
    total = local.clone()
    dist.all_reduce(total)
    return total
