"""Converts text tables of URLs (csv, tsv, jsonl, also .gz) to parquet, with their texts exactly as written."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import IO, TYPE_CHECKING, Any

from clip_core.config import unique_keys
from clip_core.store import Store
from clip_data.errors import ClipDataError
from clip_data.sources import check_columns, one_line, opened, table_format
from clip_data.value_types import ColumnType, json_kind, json_number, parse_text, text_kind

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 512  # rows decoded at a time: they fit the processor's cache, which is a third faster than thousands
BUFFER = 1 << 20  # bytes of a file read at a time
LONGEST = 1 << 24  # characters of a csv field, so that an open quote is found

Row = tuple[int, Sequence[Any]]  # the line it begins in, and the values of the wanted columns


def convert(url: str, target: Store, name: str, texts: Sequence[str], extras: Sequence[str], group_rows: int) -> None:
    """Writes the wanted columns of a text table as parquet with row groups of `group_rows`, in a streaming pass.

    The same file always gives the same bytes. `texts` become strings exactly as written. The types of the extra columns
    keep every value of the whole file; they take one more pass. Raises ClipDataError that names the line of an invalid
    row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = list(dict.fromkeys((*texts, *extras)))
    schema = pa.schema([(column, pa.string()) for column in wanted])
    if len(wanted) > len(texts):
        schema = _infer(url, texts, wanted)
    with target.staging() as folder:
        path = folder / "table.parquet"
        rows = 0
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for table in _regroup((_table(url, schema, *batch) for batch in _batches(url, texts, wanted)), group_rows):
                writer.write_table(table, row_group_size=group_rows)
                rows += table.num_rows
        if not rows:
            raise _empty(url)
        target.publish(os.fspath(path), name)


def _empty(url: str) -> ClipDataError:
    return ClipDataError(f"{url} is an empty table: it has no rows")


def _infer(url: str, texts: Sequence[str], wanted: Sequence[str]) -> pa.Schema:
    """Returns the schema that keeps every value of the file."""
    import pyarrow as pa

    kind = json_kind if table_format(url) == "jsonl" else text_kind
    columns = {name: ColumnType(kind) for name in wanted if name not in texts}
    for lines, values in _batches(url, texts, wanted):
        for name, column in zip(wanted, values, strict=True):
            if name in columns:
                columns[name].add(column, lines)
    types = dict.fromkeys(texts, pa.string())
    for name, seen in columns.items():
        try:
            types[name] = seen.type()
        except ValueError as error:
            raise ClipDataError(f"{url}: column {name!r}: {error}") from error
    return pa.schema([(name, types[name]) for name in wanted])


def _table(url: str, schema: pa.Schema, lines: Sequence[int], columns: Sequence[Sequence[Any]]) -> pa.Table:
    import pyarrow as pa

    arrays = []
    for field, given in zip(schema, columns, strict=True):
        values = given if table_format(url) == "jsonl" else parse_text(given, field.type)
        try:
            arrays.append(pa.array(values, field.type))
        except (pa.ArrowException, UnicodeEncodeError):
            for line, value in zip(lines, values, strict=True):
                where, shown = f"{url}, line {line}: column {field.name!r}", one_line(repr(value))
                try:
                    pa.array([value], field.type)
                except UnicodeEncodeError as error:
                    raise ClipDataError(f"{where} holds invalid UTF-8, {shown}: write it in UTF-8") from error
                except pa.ArrowException as error:
                    raise ClipDataError(f"{where} holds {shown}, not a {field.type}") from error
            raise
    return pa.Table.from_arrays(arrays, schema=schema)


def _regroup(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yields the rows in tables of exactly `rows`, except the last, so that row groups do not depend on batches."""
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


def _batches(
    url: str, texts: Sequence[str], wanted: Sequence[str]
) -> Iterator[tuple[Sequence[int], list[Sequence[Any]]]]:
    """Yields batches of rows: the lines in which they begin, and the values of each wanted column."""
    with opened(url) as raw:
        rows = _READERS[table_format(url)](_lines(raw, url), url, texts, wanted)
        while batch := list(itertools.islice(rows, BATCH)):
            numbers, values = zip(*batch, strict=True)
            yield numbers, list(zip(*values, strict=True))


def _lines(raw: IO[bytes], url: str) -> Iterator[str]:
    """Yields lines with their ends. Bytes that are not UTF-8 become surrogates, which Arrow rejects."""
    file: Any = gzip.GzipFile(fileobj=raw) if url.lower().endswith(".gz") else raw
    buffered = io.BufferedReader(file, BUFFER)
    try:
        head = buffered.peek(BUFFER)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ClipDataError(f"{url} is in UTF-16: convert it to UTF-8")
        if len(head) >= BUFFER and b"\n" not in head:
            raise ClipDataError(f"{url} has no line feed in its first {BUFFER:,} bytes: end lines with a line feed")
        yield from io.TextIOWrapper(buffered, encoding="utf-8-sig", errors="surrogateescape", newline="\n")
    except (EOFError, zlib.error, OSError) as error:
        raise ClipDataError(f"{url} is damaged: {one_line(error)}") from error


def _tsv_rows(lines: Iterator[str], url: str, texts: Sequence[str], wanted: Sequence[str]) -> Iterator[Row]:
    """Yields rows of fields between tabs. There is no quoting: a quote is an ordinary character."""
    header = next(lines, "").removesuffix("\n").removesuffix("\r").split("\t")
    pick = _picker(url, header, texts, wanted)
    for number, line in enumerate(lines, start=2):
        fields = line.removesuffix("\n").removesuffix("\r").split("\t")
        if len(fields) != len(header):
            if fields == [""]:
                continue
            raise _uneven(url, number, fields, header, "a field cannot hold a tab")
        yield number, pick(fields)


def _csv_rows(lines: Iterator[str], url: str, texts: Sequence[str], wanted: Sequence[str]) -> Iterator[Row]:
    """Yields rows of fields by RFC 4180. A quote inside an unquoted field, which it forbids, is kept."""
    csv.field_size_limit(LONGEST)
    records = csv.reader(lines, strict=True)
    number = 0  # of the last line of the record before
    try:
        header = next(records, [])
        number = records.line_num
        if number > 1:
            raise ClipDataError(f"{url}, line 1: the header goes on to line {number}: close its quote")
        pick = _picker(url, header, texts, wanted)
        place = header.index(texts[0])
        for fields in records:
            first, number = number + 1, records.line_num
            if first < number:
                _check_record(url, first, fields, len(header), place)
            if len(fields) != len(header):
                if not fields:
                    continue
                raise _uneven(url, first, fields, header, "quote a field that holds a comma")
            yield first, pick(fields)
    except csv.Error as error:
        first, last = number + 1, records.line_num
        where = f"line {first}" if last <= first else f"lines {first} to {last}"
        message = str(error)
        known = next((text for mark, text in _CSV_ERRORS.items() if mark in message), message)
        raise ClipDataError(f"{url}, {where}: {known}") from error


_CSV_ERRORS = {
    "expected after": 'text follows a closing quote: write a " inside of a quoted field twice, and close the field',
    "unexpected end": "a quoted field is not closed by the end of the file",
    "field limit": f"a field is longer than {LONGEST:,} characters: is its quote closed?",
    "new-line": "a lone carriage return is outside of quotes: end lines with a line feed",
}


def _picker(url: str, header: list[str], texts: Sequence[str], wanted: Sequence[str]) -> Callable[[list[str]], Any]:
    if header in ([], [""]):
        raise _empty(url)
    check_columns(url, header, texts, wanted[len(texts) :])
    return itemgetter(*(header.index(name) for name in wanted))


def _uneven(url: str, number: int, fields: list[str], header: list[str], advice: str) -> ClipDataError:
    return ClipDataError(f"{url}, line {number} has {len(fields)} fields and the header {len(header)}: {advice}")


def _check_record(url: str, number: int, fields: list[str], width: int, place: int) -> None:
    """Raises ClipDataError if a quoted field contains records: a line, other than that of the record's own URL, that
    has `width` fields and a URL at `place`. Real captions do not look like that.
    """
    mark = "://" if place >= len(fields) or "://" in fields[place] else ""
    fields = ['"' + field.replace('"', '""') + '"' if "\n" in field or "," in field else field for field in fields]

    def alone(line: str) -> bool:
        read = line.split(","), next(csv.reader([line.replace("\r", " ")]), [])
        return any(len(found) == width and mark in found[place] for found in read)

    lines = ",".join(fields).split("\n")
    own = ",".join(fields[:place]).count("\n")
    if any(alone(line) for index, line in enumerate(lines) if index != own):
        raise ClipDataError(
            f"{url}, line {number}: a quoted field goes on to line {number + len(lines) - 1} and takes in other rows: "
            "close its quote, or double each quote inside of it (RFC 4180); .jsonl can hold such a text"
        )


def _json_rows(lines: Iterator[str], url: str, texts: Sequence[str], wanted: Sequence[str]) -> Iterator[Row]:
    exact = json_number if len(wanted) > len(texts) else None
    decode = json.JSONDecoder(object_pairs_hook=unique_keys, parse_float=exact).decode
    missing, seen = set(wanted), dict[str, None]()
    rows = 0
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        try:
            row = decode(line)
        except (ValueError, RecursionError) as error:
            raise ClipDataError(f"{url}, line {number} is not JSON: {one_line(error)}") from error
        if not isinstance(row, dict):
            raise ClipDataError(f"{url}, line {number} is not a JSON object: {one_line(repr(row))}")
        if missing:
            missing -= row.keys()
            seen.update(dict.fromkeys(row))
        rows += 1
        yield number, [row.get(name) for name in wanted]
    if rows and missing:
        check_columns(url, list(seen), texts, wanted[len(texts) :])


_READERS = {"csv": _csv_rows, "tsv": _tsv_rows, "jsonl": _json_rows}
