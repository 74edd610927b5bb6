"""One process, or several that torchrun, or anything that sets its variables, has started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clip_train.batchnorm import synchronise_batch_norms
from clip_train.errors import ClipTrainError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The place of this process among the ranks of a run."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this rank writes the files and talks to the user."""
        return self.rank == 0

    def lead(self, act: Callable[[], T]) -> T:
        """Runs `act` on rank 0 alone; every rank gets its result, or raises ClipTrainError with its message."""
        if self.size == 1:
            return act()
        answer: list[tuple[T | None, str]] = [(None, "")]
        if self.leads:
            try:
                answer = [(act(), "")]
            except Exception as error:
                dist.broadcast_object_list([(None, str(error) or repr(error))])
                raise
        dist.broadcast_object_list(answer)
        result, message = answer[0]
        if message:
            raise ClipTrainError(message)
        return result  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in rank order, on every rank."""
        values: list[T] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; the same answer on every rank. Travels between CPUs."""
        if self.size == 1:
            return flag
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged and batch norms synchronised over the ranks, or itself on a single one."""
        if self.size == 1:
            return module
        synchronise_batch_norms(module)
        return DistributedDataParallel(
            module,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """Joins the process group that RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT describe, if any.

    `device`: auto, cpu or cuda; on CUDA each rank takes the card of its LOCAL_RANK.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ClipTrainError("train.device = 'cuda', but torch sees no CUDA device: use 'auto' or 'cpu'")
    rank, size, local = (
        int(os.environ.get(name, d)) for name, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    place = torch.device("cpu")
    if device != "cpu" and torch.cuda.is_available():
        visible = torch.cuda.device_count()
        if visible == 1:
            local = 0  # the launcher shows each rank its own card
        if local >= visible:
            raise ClipTrainError(f"rank {rank} has LOCAL_RANK {local}, but there are {visible} CUDA devices")
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    if size == 1:
        yield World(0, 1, place)
        return
    # Small agreements between hosts stay off the accelerator: they must not wait for its queue.
    dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo", rank=rank, world_size=size)
    try:
        yield World(rank, size, place)
    finally:
        dist.destroy_process_group()


def all_gather(local: Tensor) -> Tensor:
    """[B, …] of every rank → [W·B, …] in rank order. Carries no gradient."""
    out = local.new_empty(dist.get_world_size() * local.shape[0], *local.shape[1:])
    dist.all_gather_into_tensor(out, local.contiguous())
    return out


def reduce_scatter(whole: Tensor) -> Tensor:
    """[W·B, …] of every rank → [B, …]: this rank's rows of the sum over ranks. Carries no gradient."""
    out = whole.new_empty(whole.shape[0] // dist.get_world_size(), *whole.shape[1:])
    dist.reduce_scatter_tensor(out, whole.contiguous())
    return out
