"""Batches on the device, one step ahead of the step that computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clip_train.parallel import World
from clip_train.tasks.base import Task, cut


@dataclass(frozen=True, kw_only=True)
class Fed:
    """A batch on the device, and the state of its stream."""

    batch: dict[str, Tensor]
    stopping: bool
    """whether a rank has been told to stop; the same on all ranks"""
    tokens: int
    """tokens of this rank's captions, without padding"""
    columns: int
    """tokens that each caption is padded to, on all ranks"""
    counts: dict[str, float]
    """counts of the stream, up to this batch"""
    state: dict[str, Any]
    """state of the stream after this batch, for checkpoints"""


@dataclass(kw_only=True)
class _Ahead:
    """A batch that is on its way."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    counts: dict[str, float] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    arrived: torch.cuda.Event | None = None
    votes: Callable[[], list[int]] = list
    error: Exception | None = None


class Feed:
    """Reads the next batch of a stream and starts its copy to the device before the current step is computed.

    Copies go from pinned memory, on a stream of their own. The ranks agree on the length of the captions, which is one
    of few (`Task.lengths`), and on whether to stop: one message between CPUs for each batch, which travels while the
    current step is computed.
    """

    def __init__(self, stream: Any, task: Task, world: World, *, items: Iterable[Mapping[str, Any]] | None = None):
        """`stream` yields batches and has `stats` and `state_dict`; `items` yields its batches, if it does not."""
        self._stream, self._task, self._world = stream, task, world
        self._items: Iterator[Mapping[str, Any]] = iter(stream if items is None else items)
        self._side = torch.cuda.Stream(world.device) if world.device.type == "cuda" else None
        self._ahead: _Ahead | None = None
        self.wait_s = 0.0
        """seconds that the latest `take` has waited for the stream"""

    def take(self, *, last: bool = False) -> Fed:
        """Returns the next batch. Unless it is the `last`, the one after it is read too.

        Raises what the stream raises when it makes this batch; an error in the batch after it waits for its turn.
        """
        self.wait_s = 0.0
        current = self._ahead or self._fetch()
        if current.error:
            raise current.error
        self._ahead = None if last else self._fetch()
        return self._received(current)

    def _fetch(self) -> _Ahead:
        asked = time.perf_counter()
        try:
            batch = next(self._items)
        except Exception as error:
            ahead = _Ahead(error=error)
        else:
            self.wait_s += time.perf_counter() - asked
            ahead = self._sent(batch)
        # All ranks vote, also without a batch: one that does not would make the others wait.
        lengths = [ahead.lengths.get(name, 0) for name in self._task.texts]
        ahead.votes = self._world.vote([int(self._world.watch.wanted), *lengths])
        return ahead

    def _sent(self, batch: Mapping[str, Any]) -> _Ahead:
        tensors = self._task.tensors(batch)
        ahead = _Ahead(
            lengths=self._task.lengths(tensors),
            tokens=self._task.tokens(tensors),
            counts=dict(self._stream.stats),
            state=self._stream.state_dict(),
        )
        on_side: AbstractContextManager[Any] = torch.cuda.stream(self._side) if self._side else nullcontext()
        with on_side:
            ahead.tensors = {name: self._task.moved(tensor) for name, tensor in tensors.items()}
            if self._side:
                ahead.arrived = self._side.record_event()
        return ahead

    def _received(self, ahead: _Ahead) -> Fed:
        votes = ahead.votes()
        if ahead.arrived is not None:
            current = torch.cuda.current_stream(self._world.device)
            current.wait_event(ahead.arrived)  # the device waits, not this process
            for tensor in ahead.tensors.values():
                tensor.record_stream(current)
        # With one rank there is no vote to wait for: a signal counts at once.
        stopping = self._world.watch.wanted if self._world.size == 1 else bool(votes[0])
        return Fed(
            batch=cut(ahead.tensors, dict(zip(self._task.texts, votes[1:], strict=True))),
            stopping=stopping,
            tokens=ahead.tokens,
            columns=max(votes[1:], default=0),
            counts=ahead.counts,
            state=ahead.state,
        )
