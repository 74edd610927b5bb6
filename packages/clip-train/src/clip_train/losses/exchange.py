"""What the ranks exchange while they compute one loss together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from clip_train.parallel import all_gather, reduce_scatter


@dataclass(frozen=True)
class Exchange:
    """The collectives of a loss over `ranks` ranks. With one rank nothing is sent, even if there is a process group."""

    ranks: int

    @property
    def rank(self) -> int:
        return dist.get_rank() if self.ranks > 1 else 0

    def gather(self, local: Tensor) -> Tensor:
        """Returns [B, …] of every rank as [N, …], N = ranks · B, in rank order."""
        return all_gather(local) if self.ranks > 1 else local

    def scatter(self, whole: Tensor) -> Tensor:
        """Sums [N, …] over the ranks and returns the rows of this rank, [B, …]."""
        return reduce_scatter(whole) if self.ranks > 1 else whole

    def sum(self, value: Tensor) -> Tensor:
        """Sums a tensor over the ranks, in place."""
        if self.ranks > 1:
            dist.all_reduce(value)
        return value

    def max(self, value: Tensor) -> Tensor:
        """Takes the maximum of a tensor over the ranks, in place."""
        if self.ranks > 1:
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return value

    def mean_of_samples(self, loss_B: Tensor) -> Tensor:
        """Returns the float32 mean of [B] over the samples of all ranks. Its sum is taken in float64."""
        total = self.sum(loss_B.sum(dtype=torch.float64))
        return (total / (self.ranks * loss_B.numel())).float()

    def shift(self, tensor: Tensor) -> Shift:
        """Starts to send a tensor to the next rank and to receive one of its shape from the rank before."""
        if self.ranks == 1:
            return Shift(tensor, tensor, [])
        sent, arriving = tensor.contiguous(), torch.empty_like(tensor, memory_format=torch.contiguous_format)
        # Neighbours match these by their order alone, as NCCL does.
        operations = [
            dist.P2POp(dist.isend, sent, (self.rank + 1) % self.ranks),
            dist.P2POp(dist.irecv, arriving, (self.rank - 1) % self.ranks),
        ]
        return Shift(sent, arriving, dist.batch_isend_irecv(operations))

    def pass_round(self, own: Tensor, visit: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Shows the tensor of every rank to every rank, and brings each home the sum of what the ranks answered.

        `visit(guest, origin)` returns the answer of this rank to the tensor of rank `origin`, in its shape. The next
        guest, and the answers to the one that left, travel while `visit` computes.
        """
        guest, answers = own, None
        for step in range(self.ranks):
            coming = self.shift(guest) if step < self.ranks - 1 else None
            answer = visit(guest, (self.rank - step) % self.ranks)
            if answers is not None:
                answer = answer + answers.wait()
            answers = self.shift(answer)
            guest = coming.wait() if coming is not None else guest
        assert answers is not None
        return answers.wait()


@dataclass(frozen=True)
class Shift:
    """A transfer between neighbours under way. It holds what is sent, which has to live as long."""

    sent: Tensor
    arriving: Tensor
    works: list[dist.Work]

    def wait(self) -> Tensor:
        """Returns what has arrived."""
        for work in self.works:
            work.wait()
        return self.arriving
