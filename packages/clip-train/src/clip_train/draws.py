"""Random draws that depend on the sample and the step, not on the rank or the order of the samples.

Patch dropout and drop path draw one value for each sample of a batch. Keyed draws give a sample the same value in a
step whichever rank, micro-batch or position it is in, and again when the step is repeated or activations are computed
a second time. Other draws, such as those of activation dropout, come from torch's generators.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_PATCHES = ("PatchDropout", "PatchDropoutWithIndices")
"""Classes of layers that draw which patches are kept, ours and timm's."""


class KeyedDraws:
    """Makes the draws of a model's patch dropouts and drop paths keyed within `over`, and torch's outside of it.

    Drop paths are plain arithmetic on the keys, so that blocks can be compiled, recomputed and sharded.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        self._seed = seed
        self._keys_B: Tensor | None = None
        for name, module in model.named_modules():
            kind = type(module).__name__
            if kind in _PATCHES:
                module.forward = self._keyed(module.forward, name)
            elif kind == "DropPath":  # timm's stochastic depth
                module.forward = self._keyed_path(module, module.forward, name)

    @contextmanager
    def over(self, uid_B: Tensor | None, step: int) -> Iterator[None]:
        """Keys the draws by the samples' identifiers, int64 [B], and the step; None leaves them to torch."""
        self._keys_B = None if uid_B is None else _mixed(uid_B + _number(self._seed, step))
        try:
            yield
        finally:
            self._keys_B = None

    def _keyed(self, forward: Any, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if self._keys_B is None:
                return forward(*args, **options)
            with _Keyed(self._keys_B, name):
                return forward(*args, **options)

        return call

    def _keyed_path(self, module: Any, forward: Callable[[Tensor], Tensor], name: str) -> Any:
        number = _number(name, 1)

        def call(x: Tensor) -> Tensor:
            keys_B = self._keys_B
            if keys_B is None or not module.training or not module.drop_prob or len(x) != len(keys_B):
                return forward(x)
            share: float = 1 - module.drop_prob
            kept_B = (_uniform(_mixed(keys_B ^ number)) < share).to(x.dtype)
            scale_B = kept_B / share if share and module.scale_by_keep else kept_B
            return x * scale_B.view(-1, *[1] * (x.ndim - 1))

        return call


class _Keyed(TorchFunctionMode):
    """Answers torch.rand and torch.randn whose first dimension is the batch."""

    def __init__(self, keys_B: Tensor, name: str) -> None:
        self._keys_B, self._name, self._calls = keys_B, name, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.rand, torch.randn):
            sizes = args[0] if len(args) == 1 and isinstance(args[0], Sequence) else args
            if len(sizes) > 1 and sizes[0] == len(self._keys_B):
                drawn = self._uniform(tuple(sizes))
                values = drawn if func is torch.rand else torch.special.ndtri(drawn.clamp(1e-7, 1 - 1e-7))
                return values.to(kwargs.get("dtype") or torch.get_default_dtype())
        return func(*args, **kwargs)

    def _uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Returns float32 in [0, 1), a function of the sample, the module, the number of the call and the place."""
        self._calls += 1
        keys_B = _mixed(self._keys_B ^ _number(self._name, self._calls))
        places = torch.arange(math.prod(shape[1:]), device=keys_B.device) * _number("place")
        return _uniform(_mixed(keys_B[:, None] + places)).view(shape)


def _uniform(bits: Tensor) -> Tensor:
    """Returns float32 in [0, 1) of mixed int64 values."""
    return ((bits >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def _number(*parts: object) -> int:
    """Returns a signed 64-bit number that names the parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _mixed(x: Tensor) -> Tensor:
    """Applies the finaliser of SplitMix64 (Steele, Lea and Flood 2014) to int64 values; products wrap around."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)
