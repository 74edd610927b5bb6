"""What multiplies float32 matrices, of linear layers on a CPU and of the loss on CUDA, and when bf16 is worth it.

On a CPU PyTorch multiplies float32 matrices with its BLAS, MKL on x86. oneDNN, which PyTorch has too, is 2.2 times as
fast on an AMD CPU of the kind Zen 5, as fast on Zen 4, and 1.2 times as slow on Zen 3. The kind of the CPU decides, and
no measurement, so that equal runs have equal bits. It is used in the linear layers of the native towers; those of timm
and transformers use PyTorch's BLAS. On CUDA the loss has a choice (`losses/products.py`), which a run measures once,
and keeps in its metrics for the time it is resumed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clip_models import CLIP
from clip_models.towers.products import computed_by
from clip_train.arithmetic import deterministic_mode
from clip_train.config import TrainConfig, check_matmul
from clip_train.errors import ClipTrainError
from clip_train.losses.products import computed_by as loss_computed_by
from clip_train.losses.selection import fastest
from clip_train.parallel import World

if TYPE_CHECKING:
    from clip_train.parallelize.config import Precision

LIBRARIES = ("torch", "onednn", "tf32x3", "bf16x3")
_ONEDNN_SINCE = {"AuthenticAMD": 26}
"""By vendor, the first family of CPUs whose products are clearly faster in oneDNN; 26 is Zen 5."""


def onednn() -> AbstractContextManager[None]:
    """Within it the native towers compute float32 linear layers on a CPU with oneDNN, forward and backward."""
    return computed_by(_linear)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    plain = type(weight) in (Tensor, nn.Parameter) and not torch.is_autocast_enabled("cpu")
    if plain and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.numel():
        y: Tensor = _Linear.apply(x, weight, bias)
        return y
    return F.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_NO, x_NI = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        by_input, by_weight, by_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if by_input else None,
            _product(grad_NO.t(), x_NI.t()) if by_weight else None,
            grad_NO.sum(dim=0) if by_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns x·weightᵀ + bias."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def multiplier(
    config: TrainConfig, model: CLIP, world: World, metrics: MutableMapping[str, float]
) -> Callable[[], AbstractContextManager[Any]]:
    """Returns the context of a step's products, the same on all ranks, as `matmul` of the config says.

    On CUDA auto takes the entry of LIBRARIES whose number is `metrics["matmul"]`, and measures and adds it if there is
    none. Raises ClipTrainError for a library that this device does not have.
    """
    choice, device = str(config.matmul), world.device.type
    if choice == "onednn" and not torch.backends.mkldnn.is_available():
        raise ClipTrainError("train.matmul = 'onednn' needs a PyTorch with oneDNN: set it to 'auto'")
    if choice == "auto":
        choice = _chosen(config, model, world, metrics)
    check_matmul(choice, device, config.compile)
    if choice == "onednn":
        return onednn
    return nullcontext if choice == "torch" else partial(loss_computed_by, choice)


def _chosen(config: TrainConfig, model: CLIP, world: World, metrics: MutableMapping[str, float]) -> str:
    if world.device.type == "cpu" and config.compile == "off" and config.precision == "fp32":
        return world.lead(lambda: "onednn" if _has_faster_onednn() else "torch")
    strict = deterministic_mode(config, world.device) == "strict"
    if world.device.type != "cuda" or config.compile == "step" or strict:
        return "torch"
    if "matmul" not in metrics:
        name = world.lead(lambda: fastest(model.spec.embed_dim, world.device))
        metrics["matmul"] = float(LIBRARIES.index(name))
    return LIBRARIES[int(metrics["matmul"])]


def _has_faster_onednn() -> bool:
    vendor, family = _cpu()
    return torch.backends.mkldnn.is_available() and family >= _ONEDNN_SINCE.get(vendor, family + 1)


def _cpu() -> tuple[str, int]:
    """Returns the vendor and the family of an x86 CPU under Linux, ("", 0) of any other."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    found = dict(re.findall(r"^(vendor_id|cpu family)\s*: *(.+)$", text, re.MULTILINE))
    return found.get("vendor_id", ""), int(found.get("cpu family", 0))


def computed_precision(precision: Precision, world: World) -> Precision:
    """Returns the precision that a run computes in: fp32 instead of bf16 on a CPU that has to emulate bf16.

    There a product takes 5 to 80 times as long in bf16 as in fp32 (AVX2), and is less exact.
    """
    if precision != "bf16" or world.device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return precision
    return "fp32"
