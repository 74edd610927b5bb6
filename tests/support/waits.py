"""Finds operations that make the host wait for the device, on a machine that has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READING = {
    torch.ops.aten._local_scalar_dense.default,  # item, bool, int, float, and what calls them
    torch.ops.aten.nonzero.default,  # the size of its result depends on values
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
}
METHODS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu}


class Waited(AssertionError):
    """An operation that would have waited for an accelerator."""


class _Values(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READING:
            raise Waited(f"{func} reads a value")
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in METHODS:
            raise Waited(f"{func} copies values to the host")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raises Waited for an operation in the block that would make the host wait for an accelerator."""
    with _Methods(), _Values():
        yield
