"""Products of float32 matrices, from products of shorter numbers where those are faster.

A float32 number is nearly the sum of two numbers with fewer digits, a ≈ a₁ + a₂, and a·b ≈ a₁·b₁ + a₁·b₂ + a₂·b₁ with
sums in float32 (Markidis et al. 2018, arXiv 1803.04014; Ootomo and Yokota 2022, arXiv 2203.03341). The tensor cores of
a GPU multiply the short numbers several times as fast as its other units multiply float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor, Tensor], Tensor]

ERROR = 1e-5  # largest relative error of a gradient
_TURNS = 5
_ROWS, _COLUMNS = 512, 8192  # of a tile
_SCALE, _NOISE = 100.0, 4.0  # the largest scale of the logits, and pairs that are not yet told apart well
_BITS = 13  # that float32 has more than TF32


def mm(a: Tensor, b: Tensor) -> Tensor:
    """Returns a·b, [M, K], [K, N] → [M, N]: of float32 as `computed_by` says, of other types in their precision."""
    return _product(a, b) if a.dtype == torch.float32 else a @ b


@contextmanager
def computed_by(name: str) -> Iterator[None]:
    """Within it `mm` computes float32 products as the entry `name` of PRODUCTS does, in all threads."""
    global _product
    before, _product = _product, PRODUCTS[name]
    try:
        yield
    finally:
        _product = before


def _tf32x3(a: Tensor, b: Tensor) -> Tensor:
    flags = torch.backends.cuda.matmul
    before, flags.fp32_precision = flags.fp32_precision, "tf32"
    try:
        return torch.mm(*_three(a, b, _tf32))
    finally:
        flags.fp32_precision = before


def _tf32(x: Tensor) -> Tensor:
    half, mask = 1 << (_BITS - 1), -1 << _BITS
    return ((x.contiguous().view(torch.int32) + half) & mask).view(torch.float32)  # rounded, not cut


def _bf16x3(a: Tensor, b: Tensor) -> Tensor:
    a, b = _three(a, b, lambda x: x.to(torch.bfloat16))
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())  # the same numbers: products of bf16 are exact in float32


def _three(a: Tensor, b: Tensor, shorten: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Returns [M, 3·K] and [3·K, N] in short numbers, whose product is the sum of the three products."""
    (a_1, a_2), (b_1, b_2) = (_split(x, shorten) for x in (a, b))
    return torch.cat([a_1, a_1, a_2], dim=1), torch.cat([b_1, b_2, b_1])


def _split(x: Tensor, shorten: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    high = shorten(x)
    return high, shorten(x - high.float())


PRODUCTS: Mapping[str, Product] = {"torch": torch.mm, "tf32x3": _tf32x3, "bf16x3": _bf16x3}
_product: Product = torch.mm


def fastest(width: int, device: torch.device) -> str:
    """Returns the name of the fastest product on a device with which gradients of the contrastive loss keep ERROR.

    `width`: channels of the features. Both are measured, on random features.
    """
    seconds = {name: _seconds(name, width, device) for name in PRODUCTS}
    for name in sorted(seconds, key=seconds.__getitem__):
        if name == "torch" or gradient_error(name, width, device) < ERROR:
            return name
    raise AssertionError("PRODUCTS has torch")


def gradient_error(name: str, width: int, device: torch.device) -> float:
    """Returns the relative error of the gradient of the contrastive loss with a product, against float64."""
    from clip_train.losses.contrastive import contrastive_loss

    generator = torch.Generator().manual_seed(0)  # the run's own generator must not move
    text = torch.randn(_ROWS, width, generator=generator)
    image = text + _NOISE * torch.randn(_ROWS, width, generator=generator)
    features = [F.normalize(x).to(device).requires_grad_() for x in (image, text)]
    exact = [x.detach().double().requires_grad_() for x in features]
    scale = torch.tensor(_SCALE, device=device)
    logits = scale.double() * exact[0] @ exact[1].T
    labels = torch.arange(_ROWS, device=device)
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    wanted = torch.cat(torch.autograd.grad(loss, exact))
    with computed_by(name):
        found = torch.cat(torch.autograd.grad(contrastive_loss(features[0], features[1], scale), features))
    return float((found.double() - wanted).norm() / wanted.norm())


def _seconds(name: str, width: int, device: torch.device) -> float:
    """Measures the three products of a tile."""
    x, y = (torch.ones(rows, width, device=device) for rows in (_ROWS, _COLUMNS))
    p = torch.ones(_ROWS, _COLUMNS, device=device)
    best = float("inf")
    with computed_by(name):
        for _ in range(_TURNS):
            start = time.perf_counter()
            mm(x, y.T), mm(p, y), mm(p.T, x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - start)
    return best
