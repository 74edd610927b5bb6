"""The ranks of a run: one process, or several that torchrun, srun or another launcher has started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from clip_core.console import warn
from clip_train.errors import ClipTrainError, RankLost
from clip_train.launch import Launch, read_launch
from clip_train.peers import Peers
from clip_train.waiting import WAITS
from clip_train.watch import Watch

TIMEOUT_S = 600.0
MARGIN_S = 60.0  # the limits of torch.distributed come later than ours, which names the missing ranks
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The rank of this process, and the operations on all ranks of a run."""

    rank: int
    size: int
    device: torch.device
    watch: Watch = field(default_factory=lambda: Watch(TIMEOUT_S))
    peers: Peers | None = None
    """None for a single process"""

    def collective(self) -> AbstractContextManager[None]:
        """Returns a context for work of all ranks together, which the watch limits to its timeout."""
        return self.watch.collective() if self.size > 1 else nullcontext()

    @property
    def leads(self) -> bool:
        """Returns whether this rank writes files and prints messages."""
        return self.rank == 0

    def lead(self, act: Callable[[], T]) -> T:
        """Runs `act` on rank 0. Every rank returns its result, or raises ClipTrainError with its message."""
        with self.watch.storing():
            return act() if self.size == 1 else self._lead(act)

    def _lead(self, act: Callable[[], T]) -> T:
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
        """Returns the values of all ranks, in rank order, on every rank."""
        values: list[T] = [value] * self.size
        if self.size > 1:
            with self.collective():
                dist.all_gather_object(values, value)
        return values

    def vote(self, values: list[int]) -> Callable[[], list[int]]:
        """Starts to take the maximum of each number over the ranks, between CPUs, and returns what waits for it."""
        if self.size == 1:
            return lambda: values
        votes = torch.tensor(values)
        work = dist.all_reduce(votes, op=dist.ReduceOp.MAX, async_op=True)

        def result() -> list[int]:
            with self.collective():
                work.wait()
            return votes.tolist()

        return result

    def sum(self, value: Tensor) -> Tensor:
        """Returns the sum of a tensor over the ranks, on the device, as a new tensor."""
        total = value.clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total


@contextmanager
def join_world(device: str = "auto", watch: Watch | None = None) -> Iterator[World]:
    """Joins the process group that the variables of the launcher describe, if any; see `read_launch`.

    `device`: auto, cpu or cuda; on CUDA each rank uses the device of its local rank. Raises RankLost, which names the
    ranks that do not join, or that made a collective fail.
    """
    launch, watch = read_launch(), watch or Watch(TIMEOUT_S)
    place = _device(device, launch)
    if launch.size == 1:
        yield World(0, 1, place, watch)
        return
    watch.name = f"rank {launch.rank}"
    peers = Peers(launch, watch.join, watch.where)
    watch.diagnose = peers.status
    how = ""
    try:
        # Small messages between hosts use the CPU, so that they do not wait for the queue of the accelerator.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo",
            store=dist.PrefixStore("group", peers.store),
            rank=launch.rank,
            world_size=launch.size,
            timeout=timedelta(seconds=max(watch.timeout, watch.storage) + MARGIN_S),
        )
        yield World(launch.rank, launch.size, place, watch, peers)
    except BaseException as error:
        how = "it was told to stop" if isinstance(error, SystemExit) else str(error) or type(error).__name__
        if isinstance(error, RuntimeError) and (lost := peers.lost()):
            how = f"rank {launch.rank} cannot go on: {lost}"
            if watch.wanted:
                warn(how)
                raise watch.ending() from error
            raise RankLost(how) from error
        raise
    finally:
        peers.end(how.partition("\n")[0])
        if dist.is_initialized():
            dist.destroy_process_group()


def _device(device: str, launch: Launch) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        raise ClipTrainError("train.device = 'cuda', but torch sees no CUDA device: use 'auto' or 'cpu'")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    local = 0 if visible == 1 else launch.local  # the launcher may have given each rank its own device
    if local >= visible:
        raise ClipTrainError(f"rank {launch.rank} has LOCAL_RANK {local}, but there are {visible} CUDA devices")
    place = torch.device("cuda", local)
    torch.cuda.set_device(place)
    return place


def all_gather(local: Tensor) -> Tensor:
    """Gathers [B, …] of every rank into [W·B, …] in rank order. Has no gradient."""
    out = local.new_empty(dist.get_world_size() * local.shape[0], *local.shape[1:])
    with WAITS.waiting(local.device):
        dist.all_gather_into_tensor(out, local.contiguous())
    return out


def reduce_scatter(whole: Tensor) -> Tensor:
    """Sums [W·B, …] over the ranks and returns this rank's rows, [B, …]. Has no gradient."""
    out = whole.new_empty(whole.shape[0] // dist.get_world_size(), *whole.shape[1:])
    with WAITS.waiting(whole.device):
        dist.reduce_scatter_tensor(out, whole.contiguous())
    return out
