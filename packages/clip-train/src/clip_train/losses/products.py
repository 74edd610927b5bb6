"""Products of float32 matrices, from products of shorter numbers where those are faster.

A float32 number is nearly the sum of two numbers with fewer digits, a ≈ a₁ + a₂, and a·b ≈ a₁·b₁ + a₁·b₂ + a₂·b₁ with
sums in float32 (Markidis et al. 2018, arXiv 1803.04014; Ootomo and Yokota 2022, arXiv 2203.03341). The tensor cores of
a GPU multiply the short numbers several times as fast as its other units multiply float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

Product = Callable[[Tensor, Tensor], Tensor]

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
