"""The tables of URLs a dataset is planned from: finding them, knowing them again, converting text to parquet."""

from __future__ import annotations

import difflib
import functools
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from clip_data.errors import ClipDataError
from clip_data.store import Store

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SAMPLED = 64 * 1024  # bytes of a file's head and tail that enter its fingerprint
FORMATS = ("parquet", "csv", "tsv", "jsonl")
JSONL_BATCH = 4096  # lines decoded at a time
READ_BUFFER = 1 << 20  # bytes of a column chunk in memory while its pages are decoded


def find(pattern: str) -> list[str]:
    """The files of an fsspec URL or glob, sorted; local ones as absolute paths. ClipDataError when there are none."""
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(pattern)
        globbed = any(mark in path for mark in "*?[")
        found = sorted(fs.glob(path)) if globbed else [path] * fs.exists(path)
        folders = [name for name in found if fs.isdir(name)]
    except (ValueError, ImportError, OSError) as error:
        raise ClipDataError(f"cannot open the source {pattern!r}: {error}") from error
    if not found:
        raise ClipDataError(f"{pattern} {'matches no file' if globbed else 'does not exist'}")
    if folders:
        raise ClipDataError(f"{folders[0]} is a folder: name its files, as in {folders[0]}/*.parquet")
    names = [name if Store(pattern).local else fs.unstrip_protocol(name) for name in found]
    for name in names:
        table_format(name)
    return names


def table_format(url: str) -> str:
    """One of FORMATS, by the file's suffix (a trailing .gz counts for text only)."""
    name = url.split("?")[0].lower()
    text = name.removesuffix(".gz").rsplit(".", 1)[-1]
    if text not in FORMATS or (text == "parquet" and name.endswith(".gz")):
        raise ClipDataError(f"{url} is not a table of a known format: use .parquet, or .csv, .tsv, .jsonl (also .gz)")
    return text


def identity(url: str) -> dict[str, Any]:
    """What tells a file from a changed one without reading it all: its size, and a hash of size, head and tail.

    The tail of a parquet file is its footer, with the sizes and statistics of every column chunk.
    """
    with opened(url) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(SAMPLED)
        file.seek(max(0, size - SAMPLED))
        digest = hashlib.blake2b(b"%d\0%s%s" % (size, head, file.read(SAMPLED)), digest_size=16)
    return {"bytes": size, "fingerprint": digest.hexdigest()}


@contextmanager
def opened(url: str) -> Iterator[IO[bytes]]:
    """The file, seekable, as bytes; whatever goes wrong while opening it is a ClipDataError."""
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
        file = fs.open(path, "rb")
    except (ValueError, ImportError, OSError) as error:
        raise ClipDataError(f"cannot read the source {url}: {error}") from error
    with file:
        yield file


@contextmanager
def parquet_file(url: str) -> Iterator[pq.ParquetFile]:
    """An opened parquet file; ClipDataError when it is none, or turns out damaged while it is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(url) as file:
        try:
            yield pq.ParquetFile(file, buffer_size=READ_BUFFER)  # without: a whole column chunk at a time
        except ClipDataError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise ClipDataError(f"{url} is damaged: not a readable parquet file ({_one_line(error)})") from error


@functools.lru_cache(maxsize=4096)  # once per process and source
def check_unchanged(url: str, fingerprint: str) -> None:
    """ClipDataError when the file is no longer the one that was planned."""
    if identity(url)["fingerprint"] != fingerprint:
        raise ClipDataError(f"{url} has changed since it was planned: restore it, or plan it into a new folder")


def check_columns(url: str, schema: pa.Schema, texts: Sequence[str], extras: Sequence[str]) -> None:
    """ClipDataError when a column is missing or one of `texts` does not hold strings."""
    import pyarrow.types as kinds

    for name in (*texts, *extras):
        if name not in schema.names:
            close = difflib.get_close_matches(name, schema.names, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ClipDataError(f"{url} has no column {name!r}; it has {', '.join(schema.names)}{hint}")
    for name in texts:
        kind = schema.field(name).type
        value = kind.value_type if kinds.is_dictionary(kind) else kind
        if not (kinds.is_string(value) or kinds.is_large_string(value) or kinds.is_string_view(value)):
            raise ClipDataError(f"{url}: column {name!r} holds {kind}, not strings")


def convert(url: str, target: Store, name: str, texts: Sequence[str], extras: Sequence[str], group_rows: int) -> None:
    """Writes the wanted columns of a text table as parquet with row groups of `group_rows`, in one streaming pass.

    The same file always gives the same bytes. Types of extra columns follow from the first rows; a later row of
    another type is an error that names it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = list(dict.fromkeys((*texts, *extras)))
    with target.staging() as folder:
        path = folder / "table.parquet"
        writer = None
        try:
            with opened(url) as raw:
                file = gzip.GzipFile(fileobj=raw) if url.lower().endswith(".gz") else raw
                batches = _jsonl(file, url, texts, extras) if table_format(url) == "jsonl" else _csv(file, url, texts)
                for table in _regroup((_project(batch, url, texts, extras, wanted) for batch in batches), group_rows):
                    writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
                    writer.write_table(table, row_group_size=group_rows)
        except (pa.ArrowException, UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ClipDataError(f"{url} is damaged or not {table_format(url)}: {_one_line(error)}") from error
        finally:
            if writer is not None:
                writer.close()
        if writer is None:
            raise ClipDataError(f"{url} is an empty table: it has no rows")
        target.publish(os.fspath(path), name)


def _project(batch: pa.Table, url: str, texts: Sequence[str], extras: Sequence[str], wanted: list[str]) -> pa.Table:
    check_columns(url, batch.schema, texts, extras)
    return batch.select(wanted)


def _regroup(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly `rows`, but for the last: row groups do not depend on the reader's blocks."""
    import pyarrow as pa

    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += table.num_rows
        while count >= rows:
            joined = pa.concat_tables(held)
            yield joined.slice(0, rows)
            held, count = [joined.slice(rows)], count - rows
    if count:
        yield pa.concat_tables(held)


def _csv(file: Any, url: str, texts: Sequence[str]) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.csv as csv

    delimiter = "\t" if table_format(url) == "tsv" else ","
    try:
        reader = csv.open_csv(
            file,
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string())),
        )
    except pa.ArrowInvalid as error:
        if "Empty" in str(error):
            raise ClipDataError(f"{url} is an empty table: it has no rows") from error
        raise
    for batch in reader:
        yield pa.Table.from_batches([batch])


def _jsonl(file: Any, url: str, texts: Sequence[str], extras: Sequence[str]) -> Iterator[pa.Table]:
    import pyarrow as pa

    schema: pa.Schema | None = None
    rows: list[dict[str, Any]] = []
    first = 1

    def table(last: int) -> pa.Table:
        nonlocal schema
        if schema is None:
            seen = dict.fromkeys(name for row in rows for name in row)
            inferred = pa.Table.from_pylist([{name: row.get(name) for name in seen} for row in rows]).schema
            check_columns(url, _no_nulls(inferred), texts, extras)
            schema = pa.schema([_no_nulls(inferred).field(name) for name in dict.fromkeys((*texts, *extras))])
        try:
            return pa.Table.from_pylist(rows, schema=schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ClipDataError(f"{url}, lines {first} to {last}: a value changes type: {_one_line(error)}") from error

    number = 0
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ClipDataError(f"{url}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ClipDataError(f"{url}, line {number} is not a JSON object: {line[:60]!r}")
        rows.append(row)
        if len(rows) == JSONL_BATCH:
            yield table(number)
            rows, first = [], number + 1
    if rows:
        yield table(number)


def _no_nulls(schema: pa.Schema) -> pa.Schema:
    """A column without any value so far is taken for strings."""
    import pyarrow as pa

    return pa.schema([field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in schema])


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
