"""Values of the device on their way to the host."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Readback:
    """A copy of scalars, which starts with the constructor. On CUDA it goes to pinned memory, and nothing waits."""

    def __init__(self, scalars: Mapping[str, Tensor]) -> None:
        self._names = list(scalars)
        values = torch.stack([scalar.detach().to(torch.float32) for scalar in scalars.values()])
        self._done: torch.cuda.Event | None = None
        self._values = values
        if values.device.type == "cuda":
            self._values = torch.empty(len(values), dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(values.device))

    def read(self) -> dict[str, float]:
        """Waits for the copy and returns the values."""
        if self._done is not None:
            self._done.synchronize()
        return dict(zip(self._names, self._values.tolist(), strict=True))
