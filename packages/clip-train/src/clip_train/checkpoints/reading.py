"""Reads and verifies the files of a checkpoint. Each file is read by one rank, which sends the others what they need.

The layout of the reading ranks may differ from that of the writing ones. Where it is the same, a rank reads its own
shards and nothing but replicated tensors is sent.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard._utils import narrow_tensor_by_index

from clip_core import ClipError
from clip_train.checkpoints.layout import Damaged, Folder, Pieces, name_of
from clip_train.checkpoints.planning import DTYPES, piece_name, reads
from clip_train.parallel import World

_PART = 1 << 24  # bytes that are read and hashed at a time
Key = tuple[int, str]
"""(number of the file, name of the piece)"""


def fill(
    targets: Mapping[str, Tensor], folder: Folder, state: Mapping[str, Any], table: Mapping[str, Pieces], world: World
) -> None:
    """Fills `targets` in place with the tensors of a checkpoint. Called on every rank.

    A target may be sharded (DTensor), in any layout. Files that no rank needs are not read. Raises Damaged, on all
    ranks, for a file that is not what was saved; some targets are filled then.
    """
    _Reading(targets, folder, state, table, world).run()


class _Reading:
    def __init__(
        self,
        targets: Mapping[str, Tensor],
        folder: Folder,
        state: Mapping[str, Any],
        table: Mapping[str, Pieces],
        world: World,
    ) -> None:
        self._folder, self._state, self._table, self._world = folder, state, table, world
        self._names = sorted(name for name in state["files"] if name.endswith(".safetensors"))
        self._planner, items = reads(targets, table)
        self._items: dict[Key, list[Any]] = {}
        for item in items:
            key = item.storage_index.fqn
            at, sizes, file = table[key].pieces[item.storage_index.index or 0]
            if math.prod(sizes):
                self._items.setdefault((file, piece_name(key, at, sizes, table[key].shape)), []).append(item)

    def run(self) -> None:
        needed: dict[Key, list[int]] = {}
        for rank, keys in enumerate(self._world.gather(list(self._items))):
            for key in keys:
                needed.setdefault(key, []).append(rank)
        files = sorted({file for file, _ in needed})
        size, rank = self._world.size, self._world.rank
        with self._world.watch.storing():
            for first in range(0, len(files), size):
                reading = files[first : first + size]
                mine = next((file for file in reading if self._reader(file, reading) == rank), None)
                held, wrong = self._read(mine)
                for reason in filter(None, self._world.gather(wrong)):
                    kind, text = reason
                    raise (Damaged if kind == "damaged" else ClipError)(text)
                for file in reading:
                    pieces = sorted(name for number, name in needed if number == file)
                    self._share(file, self._reader(file, reading), pieces, needed, held)

    def _reader(self, file: int, reading: list[int]) -> int:
        """Returns the rank that reads a file: that of its number, where the round has all of them."""
        size = self._world.size
        return file % size if len({other % size for other in reading}) == len(reading) else reading.index(file)

    def _read(self, file: int | None) -> tuple[dict[str, Tensor], tuple[str, str] | None]:
        """Returns (the tensors of a file, None), or ({}, what is wrong with it)."""
        if file is None:
            return {}, None
        name = self._names[file]
        try:
            return read_file(self._folder, self._state, name), None
        except Damaged as error:
            return {}, ("damaged", str(error))
        except ClipError as error:
            return {}, ("unreadable", str(error))

    def _share(
        self, file: int, reader: int, pieces: Iterable[str], needed: Mapping[Key, list[int]], held: Mapping[str, Tensor]
    ) -> None:
        """Sends the pieces of one file from the rank that has read it to those that need them, and uses them here."""
        rank, size = self._world.rank, self._world.size
        for name in pieces:
            wanting, own = needed[file, name], self._items.get((file, name), [])
            others = [other for other in wanting if other != reader]
            if rank == reader:
                data = held[name]
            elif own or len(others) == size - 1:
                data = self._empty(own)
            else:
                continue
            if len(others) == size - 1 and size > 1:
                dist.broadcast(_bytes(data), reader)
            elif rank == reader:
                for other in others:
                    dist.send(_bytes(data), other)
            elif own:
                dist.recv(_bytes(data), reader)
            for item in own:
                target = self._planner.resolve_tensor(item)
                target.detach().copy_(narrow_tensor_by_index(data, item.storage_offsets, item.lengths))

    def _empty(self, items: list[Any]) -> Tensor:
        index = items[0].storage_index
        each = self._table[index.fqn]
        return torch.empty(each.pieces[index.index][1], dtype=DTYPES[each.dtype])


def read_file(folder: Folder, state: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """Returns the tensors of a file by the names of their pieces. Raises Damaged, or ClipError if it is unreadable."""
    described = state["files"][name]
    data = torch.empty(described["bytes"], dtype=torch.uint8)
    view, sha256, place = data.numpy().data, hashlib.sha256(), 0
    full = f"{name_of(state['step'])}/{name}"
    try:
        with folder.store.open(full) as file, folder.store.trying("read", full):
            while place < len(view) and (count := file.readinto(view[place : place + _PART])):  # type: ignore[attr-defined]
                sha256.update(view[place : place + count])
                place += count
            longer = bool(file.read(1))
    except ClipError as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
            raise Damaged(f"{name} is missing") from error
        raise
    if place < len(view) or longer or sha256.hexdigest() != described["sha256"]:
        raise Damaged(f"{name} has changed since it was saved")
    return _tensors(data)


def _tensors(data: Tensor) -> dict[str, Tensor]:
    """Returns views of the bytes of a safetensors file, whose hash has been compared."""
    length = int.from_bytes(data[:8].numpy().tobytes(), "little")
    header = json.loads(data[8 : 8 + length].numpy().tobytes())
    header.pop("__metadata__", None)
    body = data[8 + length :]
    return {
        name: body[slice(*entry["data_offsets"])].view(DTYPES[entry["dtype"]]).view(entry["shape"])
        for name, entry in header.items()
    }


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
