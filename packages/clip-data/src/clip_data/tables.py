"""Parquet files in a store."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clip_core.store import Store
from clip_data.errors import ClipDataError

if TYPE_CHECKING:
    import pyarrow as pa


def read_table(store: Store, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A parquet file, or some of its columns. Raises ClipDataError when damaged or when a column is missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with store.open(name) as file, store.trying("read", name):
        try:
            # Arrow's own threads must not hold a Python file: one that drops it last, when the interpreter ends,
            # aborts ("terminate called without an active exception").
            parquet = pq.ParquetFile(file, pre_buffer=False)
            missing = [column for column in columns or () if column not in parquet.schema_arrow.names]
            if missing:
                known = ", ".join(parquet.schema_arrow.names)
                raise ClipDataError(f"{store.url}/{name} has no column {missing[0]!r}; it has {known}")
            return parquet.read(columns=list(columns) if columns is not None else None, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            if getattr(error, "errno", None):  # the disk's or the network's, not the file's
                raise
            raise ClipDataError(f"{store.url}/{name} is damaged: not a parquet file ({error})") from error


def write_table(store: Store, name: str, table: pa.Table) -> None:
    store.write_bytes(name, table_bytes(table))


def table_bytes(table: pa.Table) -> bytes:
    """The table as a parquet file; the same table always gives the same bytes."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
