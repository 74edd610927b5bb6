"""Who writes which tensor: the planners of torch.distributed.checkpoint, without its storage, which pickles.

A replicated tensor is written by one rank, so that the ranks have equal shares; of a sharded one (DTensor) each rank
writes its shard. The plan depends on the names, shapes and placements alone, and is made again only when they change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem, SavePlan

from clip_models.weights.tensorfiles import DTYPE_NAMES
from clip_train.checkpoints.layout import Pieces
from clip_train.errors import ClipTrainError
from clip_train.parallel import World

DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class Planned:
    """The share of this rank, and on rank 0 the table of all tensors."""

    plan: SavePlan
    table: dict[str, Pieces]
    """empty except on rank 0"""


class SavePlans:
    """Plans the saves of a run. `plan` is called on every rank."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._last: tuple[Any, Planned] | None = None

    def plan(self, tensors: Mapping[str, Tensor]) -> Planned:
        """Returns what this rank writes of `tensors`, which have the same names on all ranks if they are replicated."""
        planner = _planner(tensors)
        signature = [
            (item.index.fqn, item.index.offset, item.tensor_data) for item in planner.create_local_plan().items
        ]
        if any(self._world.gather(self._last is None or self._last[0] != signature)):
            self._last = (signature, self._made(planner))
        assert self._last is not None
        return self._last[1]

    def _made(self, planner: DefaultSavePlanner) -> Planned:
        own, size = planner.plan, self._world.size
        with self._world.collective():
            if size == 1:
                plans = [own]
            else:
                gathered: list[Any] | None = [None] * size if self._world.leads else None
                dist.gather_object(own, gathered)
                plans = gathered or []
            table: dict[str, Pieces] = {}
            if self._world.leads:
                plans, _ = planner.create_global_plan(plans)
                table = _table(plans)
            if size > 1:
                mine: list[Any] = [None]
                dist.scatter_object_list(mine, plans if self._world.leads else None)
                plans = mine
        return Planned(plans[0], table)


def _planner(tensors: Mapping[str, Tensor]) -> DefaultSavePlanner:
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPE_NAMES:
            raise ClipTrainError(f"{name} is {tensor.dtype}: checkpoints hold {', '.join(DTYPES)}")
        if any(placement.is_partial() for placement in getattr(tensor, "placements", ())):
            raise ClipTrainError(f"{name} is a DTensor of partial sums: reduce it before the checkpoint")
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(tensors))
    return planner


def _table(plans: list[SavePlan]) -> dict[str, Pieces]:
    found: dict[str, tuple[Any, list[Any]]] = {}
    for rank, plan in enumerate(plans):
        for item in plan.items:
            data = item.tensor_data
            assert data is not None
            _, pieces = found.setdefault(item.index.fqn, (data, []))
            pieces.append((tuple(data.chunk.offsets), tuple(data.chunk.sizes), rank))
    return {
        key: Pieces(DTYPE_NAMES[data.properties.dtype], tuple(data.size), tuple(pieces))
        for key, (data, pieces) in found.items()
    }


def piece_name(key: str, offsets: tuple[int, ...], sizes: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Returns the name of a piece in its file: that of the tensor, with the offsets if it is not the whole."""
    return key if tuple(sizes) == tuple(shape) else f"{key}@{','.join(map(str, offsets))}"


def reads(targets: Mapping[str, Tensor], table: Mapping[str, Pieces]) -> tuple[DefaultLoadPlanner, list[ReadItem]]:
    """Returns (planner, what this rank reads) to fill `targets`, whose names are in the table with the same shapes."""
    metadata = Metadata(
        {
            key: TensorStorageMetadata(
                TensorProperties(DTYPES[each.dtype]),
                torch.Size(each.shape),
                [ChunkStorageMetadata(torch.Size(at), torch.Size(sizes)) for at, sizes, _ in each.pieces],
            )
            for key, each in table.items()
            if key in targets
        }
    )
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(targets), metadata)
    return planner, planner.create_local_plan().items
