"""Sharded tensors (DTensor) and others, alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """Returns the part of a sharded tensor that this rank holds, sharing its memory; any other tensor unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_group(tensors: Iterable[Tensor]) -> dist.ProcessGroup | None:
    """Returns the ranks that hold one copy of the tensors together; None if none of the tensors is sharded."""
    for tensor in tensors:
        if isinstance(tensor, DTensor):
            [axis] = [axis for axis, placement in enumerate(tensor.placements) if isinstance(placement, Shard)]
            return tensor.device_mesh.get_group(axis)
    return None


def compute_device(parameters: Sequence[Tensor]) -> torch.device:
    """Returns the device on which parameters are used, which is not that of shards on the CPU."""
    for parameter in parameters:
        if isinstance(parameter, DTensor) and parameter.device_mesh.device_type != "cpu":
            return torch.device(parameter.device_mesh.device_type, torch.accelerator.current_device_index())
    return parameters[0].device


def scatter(whole: Tensor, like: Tensor) -> Tensor:
    """Returns a tensor that every rank has, sharded as `like` is; as it is if `like` is not sharded."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.to_local().device), like.device_mesh, like.placements)
