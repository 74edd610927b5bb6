"""Exact deduplication of any number of rows in bounded memory.

Hashes are distributed over temporary files by their value, so that equal ones are in the same file, and each file is
sorted separately. Per row, this takes 8 bytes for the row and 8 (phash) or 16 (sha256, its first half) for the hash on
local disk; in memory, one file at a time, about a million rows. All rows with the same hash are in one file.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

ROWS_PER_BUCKET = 1 << 20
MAX_BUCKETS = 256  # files open at once
MIX = np.uint64(0x9E3779B97F4A7C15)  # spreads hashes whose high bits are alike, as those of phash are


class HashBuckets:
    """Finds repeated hashes among hashes added in the order of their rows.

    A context manager; its files stay in `folder`.
    """

    def __init__(self, folder: Path, expected_rows: int) -> None:
        self.count = min(MAX_BUCKETS, max(1, -(-expected_rows // ROWS_PER_BUCKET)))
        self.paths = [folder / f"bucket-{number:03d}" for number in range(self.count)]
        self.words = 0
        self.last = -1

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.files = [stack.enter_context(open(path, "w+b")) for path in self.paths]
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stack.close()

    def add(self, rows: np.ndarray, keys: np.ndarray) -> None:
        """Adds `rows`, int64 [N], ascending and above all earlier ones, with `keys`, uint64 [N, words]."""
        if not len(rows):
            return
        assert rows[0] > self.last, "rows must come in order: the first of equals is kept"
        self.last, self.words = int(rows[-1]), keys.shape[1]
        records = np.column_stack([rows.astype(np.uint64), keys])
        mixed = (keys[:, 0] * MIX) >> np.uint64(32)
        bucket = (mixed * np.uint64(self.count)) >> np.uint64(32)
        order = np.argsort(bucket, kind="stable")
        starts = np.searchsorted(bucket[order], np.arange(self.count + 1))
        for number in np.flatnonzero(np.diff(starts)).tolist():
            self.files[number].write(records[order[starts[number] : starts[number + 1]]].tobytes())

    def duplicates(self) -> Iterator[np.ndarray]:
        """Yields, bucket by bucket, the rows, int64 [M], whose key was also added with a smaller row."""
        for file in self.files:
            file.seek(0)
            records = np.frombuffer(file.read(), dtype=np.uint64).reshape(-1, 1 + self.words)
            order = np.lexsort(records.T)  # by key, among equal ones by row
            keys = records[order, 1:]
            is_repeat = (keys[1:] == keys[:-1]).all(axis=1)
            yield records[order[1:][is_repeat], 0].astype(np.int64)


def hash_keys(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (bool [N]: where there is a hash, uint64 [n, words]: those hashes, of bytes the first 16)."""
    has_hash = column.is_valid().to_numpy()
    present = column.drop_null().combine_chunks()
    if pa.types.is_integer(present.type):
        return has_hash, present.to_numpy().astype(np.uint64).reshape(-1, 1)
    heads = b"".join(value[:16] for value in present.to_pylist())
    return has_hash, np.frombuffer(heads, dtype=np.uint64).reshape(-1, 2)
