"""What multiplies float32 matrices, of linear layers on a CPU and of the loss on CUDA, and when bf16 is worth it.

On a CPU PyTorch multiplies float32 matrices with its BLAS, MKL on x86. oneDNN, which PyTorch has too, is 2.2 times as
fast on an AMD CPU of the kind Zen 5, 1.1 times on Zen 4, and 1.2 times as slow on Zen 3. It is used in the linear
layers of the native towers; those of timm and transformers use PyTorch's BLAS. On CUDA the loss has a choice
(`losses/products.py`). The sums of the libraries are not the same to the last bit: a run that measures them
does it once, and keeps its choice in its metrics for the time it is resumed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clip_models import CLIP
from clip_models.towers.products import Product, computed_by
from clip_train.arithmetic import deterministic_mode
from clip_train.config import TrainConfig, check_matmul
from clip_train.errors import ClipTrainError
from clip_train.losses.products import computed_by as loss_computed_by
from clip_train.losses.selection import fastest
from clip_train.parallel import World

if TYPE_CHECKING:
    from clip_train.parallelize.config import Precision

LIBRARIES = ("torch", "onednn", "tf32x3", "bf16x3")
_TURNS = 4
_FLOPS = 1e9  # of one turn, of each library
_GAIN = 1.15  # what oneDNN has to win by, so that noise does not decide


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

    auto takes the library whose number in LIBRARIES is `metrics["matmul"]`. Where several could be used it measures
    them if there is no such entry, and adds it. Raises ClipTrainError for a library that this device does not have.
    """
    choice: str = config.matmul
    device = world.device.type
    if choice == "onednn" and not torch.backends.mkldnn.is_available():
        raise ClipTrainError("train.matmul = 'onednn' needs a PyTorch with oneDNN: set it to 'auto'")
    if choice == "auto":
        free = deterministic_mode(config, world.device) != "strict"
        if free and device == "cuda" and config.compile != "step":
            choice = _kept(lambda: fastest(model.spec.embed_dim, world.device), world, metrics)
        elif free and device == "cpu" and config.compile == "off" and config.precision == "fp32":
            choice = _kept(lambda: "onednn" if _onednn_is_faster(model) else "torch", world, metrics)
        else:
            choice = "torch"
    check_matmul(choice, device, config.compile)
    if choice == "onednn":
        return onednn
    return nullcontext if choice == "torch" else partial(loss_computed_by, choice)


def _kept(measured: Callable[[], str], world: World, metrics: MutableMapping[str, float]) -> str:
    if "matmul" not in metrics:
        metrics["matmul"] = world.lead(lambda: float(LIBRARIES.index(measured())))
    return LIBRARIES[int(metrics["matmul"])]


def computed_precision(precision: Precision, world: World) -> Precision:
    """Returns the precision that a run computes in: fp32 instead of bf16 on a CPU that has to emulate bf16.

    There a product takes 5 to 80 times as long in bf16 as in fp32 (AVX2), and is less exact.
    """
    if precision != "bf16" or world.device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return precision
    return "fp32"


def _onednn_is_faster(model: CLIP) -> bool:
    """Measures a step of the linear layer that most weights of the model belong to."""
    shapes: Counter[tuple[int, ...]] = Counter()
    for block in model.blocks():
        for weight in block.parameters():
            if weight.ndim == 2:
                shapes[tuple(weight.shape)] += weight.numel()
    if not shapes:
        return False
    outputs, inputs = shapes.most_common(1)[0][0]
    rows = min(max(int(_FLOPS / (6 * inputs * outputs)), 64), 2048)
    generator = torch.Generator().manual_seed(0)  # the run's own generator must not move
    x, matrix = (torch.randn(n, inputs, generator=generator).requires_grad_() for n in (rows, outputs))
    grad = torch.randn(rows, outputs, generator=generator)
    seconds: dict[Product, float] = {}
    for _ in range(_TURNS):
        for library in (F.linear, _linear):
            start = time.perf_counter()
            torch.autograd.grad(library(x, matrix, None), (x, matrix), grad)
            seconds[library] = min(seconds.get(library, float("inf")), time.perf_counter() - start)
    return seconds[F.linear] > _GAIN * seconds[_linear]
