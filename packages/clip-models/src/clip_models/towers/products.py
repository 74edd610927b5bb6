"""The products of the native towers' linear layers, which a caller may compute in its own way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]

_product: Product = F.linear


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns x·weightᵀ + bias: [..., I], [O, I], [O] → [..., O]."""
    return _product(x, weight, bias)


class Linear(nn.Linear):
    """nn.Linear by way of `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


@contextmanager
def computed_by(product: Product) -> Iterator[None]:
    """Within it `linear` calls `product`, in all threads. A training step has to be within it as a whole, because the
    backward pass may compute activations again. Not a TorchFunctionMode, which `Tensor.backward` leaves."""
    global _product
    before, _product = _product, product
    try:
        yield
    finally:
        _product = before
