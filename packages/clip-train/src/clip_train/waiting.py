"""How long a rank waits for the others in a step: the one that waits least is the one they all wait for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class WaitClock:
    """Adds up the time that collectives take on this rank."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: deque[tuple[Any, Any]] = deque()  # CUDA: before and after, in the order of the stream

    @contextmanager
    def waiting(self, device: torch.device) -> Iterator[None]:
        """Measures a collective on tensors of `device`; on CUDA by events of its stream, which nobody waits for."""
        if device.type == "cuda":
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            yield
            after.record()
            self._events.append((before, after))
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    def take(self) -> float:
        """Returns the seconds since the last call. What CUDA has not finished counts next time."""
        while self._events and self._events[0][1].query():
            before, after = self._events.popleft()
            self._seconds += before.elapsed_time(after) / 1000
        seconds, self._seconds = self._seconds, 0.0
        return seconds


WAITS = WaitClock()
"""the collectives of the training step"""
