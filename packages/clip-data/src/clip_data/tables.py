"""Parquet files in a store."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clip_core.store import Store
from clip_data.errors import ClipDataError

if TYPE_CHECKING:
    import pyarrow as pa


def read_table(store: Store, name: str, columns: Sequence[str] | None = None, rows: int | None = None) -> pa.Table:
    """Returns a parquet file, or some of its columns, in their order.

    Raises ClipDataError if it is damaged, lacks a column, or does not have `rows` rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with store.open(name) as file, store.trying("read", name):
        try:
            # Arrow's threads must not hold a Python file: a thread that releases it last, when the interpreter ends,
            # aborts ("terminate called without an active exception").
            parquet = pq.ParquetFile(file, pre_buffer=False)
            missing = [column for column in columns or () if column not in parquet.schema_arrow.names]
            if missing:
                known = ", ".join(parquet.schema_arrow.names)
                raise ClipDataError(f"{store.url}/{name} has no column {missing[0]!r}; it has {known}")
            found = parquet.metadata.num_rows
            if rows not in (None, found):
                raise ClipDataError(f"{store.url}/{name} is damaged: {found} rows instead of {rows}")
            table = parquet.read(columns=None if columns is None else list(columns), use_threads=False)
            return table if columns is None else table.select(columns)
        except (pa.ArrowInvalid, OSError) as error:
            if getattr(error, "errno", None):  # an error of the disk or the network, not of the file
                raise
            raise ClipDataError(f"{store.url}/{name} is damaged: not a parquet file ({error})") from error


def write_table(store: Store, name: str, table: pa.Table) -> None:
    store.write_bytes(name, table_bytes(table))


def table_bytes(table: pa.Table) -> bytes:
    """Returns the table as a parquet file; the same table always gives the same bytes."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
