"""Samples of parquet tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from clip_models.errors import ClipModelsError, first_line
from clip_models.inference.embedding.config import EmbedConfig
from clip_models.inference.embedding.inputs import Needs, resolve_path
from clip_models.inference.embedding.samples import Sample

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from fsspec import AbstractFileSystem

IMAGE_NAMES = ("image", "jpg", "png", "webp", "image_path", "path", "file", "file_name", "filename")
TEXT_NAMES = ("caption", "text", "txt")
_ROWS = 64  # decoded at a time: images are large
_BUFFER = 1 << 20  # bytes of a column in memory while its pages are decoded


def from_tables(files: Sequence[tuple[AbstractFileSystem, str]], config: EmbedConfig, needs: Needs) -> Iterator[Sample]:
    """Yields the rows of parquet files. Images are bytes, paths relative to the file, or structs of bytes and path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    start = 0
    for fs, name in files:
        try:
            with fs.open(name, "rb") as file:
                table = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
                yield from _rows(table, fs, name, config, needs, start)
                start += table.metadata.num_rows
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ClipModelsError(
                f"{name} is damaged or no parquet file: {first_line(error)}; fetch it again"
            ) from error


def _rows(
    table: pq.ParquetFile, fs: AbstractFileSystem, name: str, config: EmbedConfig, needs: Needs, start: int
) -> Iterator[Sample]:
    known = table.schema_arrow.names
    key = _column(name, known, "key_column", config.key_column, ("key",), optional=True)
    text = image = ""
    if config.what != "image":
        text = _column(name, known, "text_column", config.text_column, TEXT_NAMES)
    if config.what != "text":
        image = _column(name, known, "image_column", config.image_column, IMAGE_NAMES)
    row = 0
    for group in range(table.num_row_groups):
        stop = row + table.metadata.row_group(group).num_rows
        wanted = [column for column in (key, text) if column]
        if image and needs(start + row, start + stop):
            wanted.append(image)
        if not wanted:  # nothing to read: the keys are the numbers of the rows
            yield from (Sample(key=f"{os.path.basename(name)}#{number}") for number in range(row, stop))
            row = stop
            continue
        # Without threads: one of Arrow's that still holds the file when Python ends aborts the process.
        columns_wanted = list(dict.fromkeys(wanted))
        for batch in table.iter_batches(_ROWS, row_groups=[group], columns=columns_wanted, use_threads=False):
            columns = {column: _values(batch.column(column), column == text) for column in batch.schema.names}
            for index in range(batch.num_rows):
                value, found = columns[key][index] if key else None, columns[image][index] if image in columns else None
                if isinstance(found, dict):
                    found = found.get("bytes") if found.get("bytes") is not None else found.get("path")
                yield Sample(
                    key=f"{os.path.basename(name)}#{row}" if value is None else str(_string(value)),
                    image=resolve_path(fs, name, found) if isinstance(found, str) else found,
                    text=columns[text][index] if text else None,
                )
                row += 1


def _values(column: pa.Array, is_text: bool) -> list[Any]:
    """Returns the values of a column; captions as bytes, because in a damaged file one of them may not be UTF-8."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return list(column.to_pylist())
    found = column.cast(pa.large_binary()).to_pylist()
    return found if is_text else [_string(value) for value in found]


def _string(value: Any) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _column(
    name: str, known: Sequence[str], flag: str, asked: str, usual: Sequence[str], optional: bool = False
) -> str:
    if asked and asked not in known:
        raise ClipModelsError(f"{name} has no column {asked!r}; it has {', '.join(known)}")
    if twice := [column for column in dict.fromkeys(known) if known.count(column) > 1]:
        raise ClipModelsError(f"{name} has more than one column {twice[0]!r}; rename all but one")
    found = asked or next((column for column in usual if column in known), "")
    if not found and not optional:
        flag = f"--{flag.replace('_', '-')}"
        raise ClipModelsError(f"{name} has the columns {', '.join(known)}; name one with {flag}")
    return found
