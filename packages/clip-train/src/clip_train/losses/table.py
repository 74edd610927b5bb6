"""Numbers of every sample of a data set, each held by one rank.

Rank r of W holds rows [r · ⌈n/W⌉, (r + 1) · ⌈n/W⌉) of n. A replica on every rank would save no traffic, as every rank
needs the numbers of the whole batch either way, and costs W times the memory: 8 GB for two float32 of a billion
samples, against 8 GB / W. A row belongs to the ordinal of its sample in the manifest, which depends on no rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from clip_train.parallel import World


class SampleTable:
    """Columns of float32, given by name with their initial values, on the device. Methods are called on every rank."""

    def __init__(self, world: World, samples: int, initial: Mapping[str, float]) -> None:
        self._world, self._samples, self._names = world, samples, list(initial)
        block = -(-samples // world.size)
        self._first = world.rank * block
        self._rows = max(0, min(block, samples - self._first))
        values = torch.tensor(list(initial.values()), dtype=torch.float32, device=world.device)
        # The last column takes what other ranks hold, so that a write has a fixed size and the host need not wait.
        self._data = values[:, None].repeat(1, self._rows + 1)

    def read(self, ordinals_N: Tensor) -> Tensor:
        """Returns float32 [columns, N] of samples, int64 [N], the same on every rank."""
        places_N, own_N = self._places(ordinals_N)
        found = torch.where(own_N, self._data[:, places_N], 0.0)
        if self._world.size > 1:
            dist.all_reduce(found)  # one rank has a value, and all others zero
        return found

    def write(self, ordinals_N: Tensor, values: Tensor) -> None:
        """Stores [columns, N], the same on every rank. Values that are not finite leave the sample as it is.

        Of a sample that is twice in a batch, which happens where epochs meet, the first place counts.
        """
        places_N, own_N = self._places(ordinals_N)
        sorted_N, order_N = ordinals_N.sort(stable=True)
        first_N = torch.ones_like(own_N)
        first_N[order_N[1:]] = sorted_N[1:] != sorted_N[:-1]
        stored_N = own_N & first_N & values.isfinite().all(0)
        self._data[:, places_N.where(stored_N, self._rows)] = values

    def _places(self, ordinals_N: Tensor) -> tuple[Tensor, Tensor]:
        places_N = ordinals_N - self._first
        own_N = (places_N >= 0) & (places_N < self._rows)
        return places_N.where(own_N, self._rows), own_N

    def state(self) -> dict[str, Tensor]:
        """Returns each column, float32 [samples]; with several ranks as a DTensor, of which each has its rows."""
        return {name: self._whole(rows[: self._rows]) for name, rows in zip(self._names, self._data, strict=True)}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what `state` returned, of any number of ranks."""
        for name, rows in zip(self._names, self._data, strict=True):
            saved = tensors[name]
            own = saved.to_local() if hasattr(saved, "to_local") else saved[self._first : self._first + self._rows]
            rows[: self._rows].copy_(own)

    def _whole(self, rows: Tensor) -> Tensor:
        if self._world.size == 1:
            return rows
        return DTensor.from_local(rows, self._mesh, [Shard(0)], shape=torch.Size([self._samples]), stride=(1,))

    @cached_property
    def _mesh(self) -> DeviceMesh:
        return init_device_mesh(self._world.device.type, (self._world.size,))
