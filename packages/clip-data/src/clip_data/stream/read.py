"""Access to samples by (unit, row): descriptions from the sidecars, payloads by ranged reads of the tars."""

import os
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from clip_data.errors import ClipDataError
from clip_data.stream.manifest import Part
from clip_data.tables import read_table

SIDECAR = ("image_offset", "image_length", "uid", "caption")
MAX_OPEN = 64  # tars held open by a process
MAX_TABLES = 4  # sidecars held by a process besides the windows cut from them
MAX_GAP = 64 * 1024  # bytes worth reading over to save a request to a remote store
MAX_BLOCK = 16 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """The place of a sample's image, and its fields of the sidecar."""

    shard: str
    offset: int
    length: int
    ordinal: int
    """number of the sample among those of the manifest"""
    uid: str
    caption: str
    columns: tuple[Any, ...]


class Window:
    """The rows of some thousand samples, in columns: what a stream needs while it passes through them."""

    def __init__(
        self,
        shards: Sequence[str],
        units: np.ndarray,
        ordinals: np.ndarray,
        table: pa.Table,
        columns: Sequence[str],
    ) -> None:
        self.shards, self.units, self.ordinals, self.table = shards, units, ordinals, table
        self.names = ["uid", "caption", *columns]
        self.offsets = _integers(table["image_offset"])
        self.lengths = _integers(table["image_length"])

    def sample(self, place: int) -> Sample:
        uid, caption, *columns = (self.table[name][place].as_py() for name in self.names)
        return Sample(
            shard=self.shards[self.units[place]],
            offset=int(self.offsets[place]),
            length=int(self.lengths[place]),
            ordinal=int(self.ordinals[place]),
            uid=uid.hex(),
            caption=caption or "",
            columns=tuple(columns),
        )


def _integers(column: pa.ChunkedArray) -> np.ndarray:
    values: np.ndarray = column.fill_null(-1).to_numpy()
    return values.astype(np.int64)


class SourceReader:
    """Reads the samples of one source. Holds a few sidecars and open tars for a dataset of any size."""

    def __init__(self, part: Part, columns: Sequence[str] = (), first: int = 0) -> None:
        """`columns`: of the sidecar, or "set.column" of a set that a scorer has written; `first`: of all ordinals."""
        self.part = part
        self.starts = first + np.cumsum(part.counts) - part.counts
        self.store = part.selection.store
        self.shards = [unit.shard_name for unit in part.units]
        self.requested = columns
        self.columns = [*SIDECAR, *(name for name in columns if name not in SIDECAR)]
        self.bytes_read = 0
        self._table = lru_cache(maxsize=MAX_TABLES)(self._load)
        self._files: OrderedDict[str, int] = OrderedDict()
        self.close = weakref.finalize(self, _close, self._files)

    def check(self) -> None:
        """Raises ClipDataError if the first unit lacks a column."""
        self._load(0)

    def window(self, units: np.ndarray, rows: np.ndarray) -> Window:
        """Returns the samples with these indices of units and of kept rows within them (int64 [n]), in this order."""
        by_unit = np.argsort(units, kind="stable")
        present, starts = np.unique(units[by_unit], return_index=True)
        groups = np.split(rows[by_unit], starts[1:])
        if self.store.local or len(present) == 1:
            tables = [self._table(int(unit)).take(mine) for unit, mine in zip(present, groups, strict=True)]
        else:
            with ThreadPoolExecutor(8) as threads:
                whole = threads.map(self._table, map(int, present))
                tables = [table.take(mine) for table, mine in zip(whole, groups, strict=True)]
        back = np.argsort(by_unit, kind="stable")
        table = pa.concat_tables(tables, promote_options="permissive").take(back)
        return Window(self.shards, units, self.starts[units] + rows, table.combine_chunks(), self.requested)

    def payloads(self, samples: Sequence[Sample]) -> list[bytes]:
        """Returns the bytes of the images; shorter than recorded, or empty, if the tar ends too early.

        Raises ClipDataError if a tar is missing or cannot be read, which is not the fault of a single sample.
        """
        found = self._local(samples) if self.store.local else self._remote(samples)
        self.bytes_read += sum(map(len, found))
        return found

    def _load(self, unit: int) -> pa.Table:
        plan = self.part.units[unit]
        own = [name for name in self.columns if "." not in name]
        table = read_table(self.store, plan.sidecar_name, own, plan.rows)
        for name in self.columns[len(SIDECAR) :]:
            owner, _, column = name.rpartition(".")
            if owner:
                file = plan.column_name(owner)
                if not self.store.exists(file):
                    raise ClipDataError(
                        f"{self.store.url} has no {file}, which holds the column {name}: score it first"
                    )
                table = table.append_column(name, read_table(self.store, file, [column], plan.rows)[column])
        return table.select(self.columns).take(self.part.rows(plan))

    def _local(self, samples: Sequence[Sample]) -> list[bytes]:
        found = []
        for sample in samples:
            try:
                file = self._file(sample.shard)
                found.append(os.pread(file, sample.length, sample.offset) if sample.length > 0 else b"")
            except OSError as error:
                raise self._unreadable(sample.shard, error) from error
        return found

    def _file(self, shard: str) -> int:
        if shard not in self._files:
            self._files[shard] = os.open(self.store.full(shard), os.O_RDONLY | os.O_CLOEXEC)
            if len(self._files) > MAX_OPEN:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(shard)
        return self._files[shard]

    def _remote(self, samples: Sequence[Sample]) -> list[bytes]:
        """Reads samples that are close together by one request, and sends all requests at once."""
        blocks: list[tuple[str, int, int]] = [("", 0, 0)]
        block_of = {}
        for index in sorted(range(len(samples)), key=lambda index: (samples[index].shard, samples[index].offset)):
            sample = samples[index]
            end = sample.offset + max(sample.length, 0)
            shard, first, last = blocks[-1]
            if shard == sample.shard and sample.offset <= last + MAX_GAP and end - first <= MAX_BLOCK:
                blocks[-1] = (shard, first, max(last, end))
            else:
                blocks.append((sample.shard, sample.offset, end))
            block_of[index] = len(blocks) - 2
        blocks = blocks[1:]
        data = self._ranges(blocks)
        found = []
        for index, sample in enumerate(samples):
            start = sample.offset - blocks[block_of[index]][1]
            found.append(data[block_of[index]][start : start + max(sample.length, 0)])
        return found

    def _ranges(self, blocks: Sequence[tuple[str, int, int]]) -> list[bytes]:
        paths = [self.store.full(shard) for shard, _, _ in blocks]
        starts, ends = [start for _, start, _ in blocks], [end for _, _, end in blocks]
        answers = self.store.fs.cat_ranges(paths, starts, ends, on_error="return")
        data = []
        for (shard, start, _), answer in zip(blocks, answers, strict=True):
            if isinstance(answer, FileNotFoundError):
                raise self._unreadable(shard, answer)
            if isinstance(answer, Exception):
                # An object store rejects a range that begins beyond the end of a truncated tar.
                if start < self.store.size(shard):
                    raise self._unreadable(shard, answer)
                answer = b""
            data.append(answer)
        return data

    def _unreadable(self, shard: str, error: Exception) -> ClipDataError:
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else str(error)
        return ClipDataError(f"cannot read {self.store.url}/{shard}: {reason}; check it with 'clip-data verify'")


def _close(files: OrderedDict[str, int]) -> None:
    while files:
        os.close(files.popitem()[1])
