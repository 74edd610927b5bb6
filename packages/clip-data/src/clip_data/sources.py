"""Source tables of a dataset: finds, identifies and opens them, and checks their columns."""

from __future__ import annotations

import functools
import hashlib
import io
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import IO, TYPE_CHECKING, Any

from clip_core import ClipError
from clip_core.store import Store
from clip_data.errors import ClipDataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SAMPLED = 64 * 1024  # bytes of a file's head and tail that enter its fingerprint
FORMATS = ("parquet", "csv", "tsv", "jsonl")
SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("url", "image_url", "img_url", "url_link", "link", "image", "src"),
    ("caption", "text", "alt", "alt_text", "alttext", "title", "description"),
)
"""usual names, in lower case, of the columns with the URL and with the caption"""
READ_BUFFER = 1 << 20  # bytes of a column chunk in memory while its pages are decoded


def find(pattern: str) -> list[str]:
    """Lists the files of an fsspec URL or glob, sorted, local ones as absolute paths. Raises ClipDataError if none."""
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(pattern)
        globbed = any(mark in path for mark in "*?[")
        found = sorted(fs.glob(path)) if globbed else [path] * fs.exists(path)
        folders = [name for name in found if fs.isdir(name)]
    except Exception as error:  # each file system has its own
        raise ClipDataError(f"cannot open the source {pattern!r}: {one_line(error)}") from error
    if not found:
        raise ClipDataError(f"{pattern} {'matches no file' if globbed else 'does not exist'}")
    if folders:
        raise ClipDataError(f"{folders[0]} is a folder: name its files, as in {folders[0]}/*.parquet")
    names = [name if Store(pattern).local else fs.unstrip_protocol(name) for name in found]
    for name in names:
        table_format(name)
    return names


def table_format(url: str) -> str:
    """Returns one of FORMATS, by the file's suffix (.gz is allowed for text)."""
    name = url.split("?")[0].lower()
    text = name.removesuffix(".gz").rsplit(".", 1)[-1]
    if text not in FORMATS or (text == "parquet" and name.endswith(".gz")):
        raise ClipDataError(f"{url} is not a table of a known format: use .parquet, or .csv, .tsv, .jsonl (also .gz)")
    return text


def identity(url: str) -> dict[str, Any]:
    """Returns the size of a file and a fingerprint of its size, head and tail, which detects changes at low cost.

    The tail of a parquet file is its footer, with the sizes and statistics of all column chunks.
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
    """Opens a file for reading bytes; it is seekable. Raises ClipDataError if it cannot be opened."""
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
        file = fs.open(path, "rb")
    except Exception as error:  # each file system has its own
        raise ClipDataError(f"cannot read the source {url}: {one_line(error)}") from error
    with file:
        yield file


@contextmanager
def parquet_file(url: str) -> Iterator[pq.ParquetFile]:
    """Opens a parquet file, which must be read with use_threads=False (see tables.py). Raises ClipDataError if it is
    not a parquet file, and in the block if it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(url) as file:
        try:  # without a buffer, whole column chunks are read at a time
            yield pq.ParquetFile(file, buffer_size=READ_BUFFER, pre_buffer=False)
        except ClipError:
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ClipDataError(f"{url} is damaged: not a readable parquet file ({one_line(error)})") from error


@functools.lru_cache(maxsize=4096)  # once per process and source
def check_unchanged(url: str, fingerprint: str) -> None:
    """Raises ClipDataError if the file has changed since it was planned."""
    if identity(url)["fingerprint"] != fingerprint:
        raise ClipDataError(f"{url} has changed since it was planned: restore it, or plan it into a new folder")


def check_columns(url: str, names: Sequence[str], texts: Sequence[str], extras: Sequence[str]) -> None:
    """Raises ClipDataError if a column is missing or occurs twice; `texts` are those of URL and caption."""
    flags = ("--url-column", "--caption-column", *("--extra-columns" for _ in extras))
    wanted = list(zip(flags, (*texts, *extras), (*SYNONYMS, *(() for _ in extras)), strict=True))
    missing = [(flag, name, usual) for flag, name, usual in wanted if name not in names]
    if missing:
        free = {name.casefold(): name for name in reversed(names) if name not in (*texts, *extras)}
        hints: dict[str, str] = {}
        for flag, name, usual in missing:
            close = get_close_matches(name.casefold(), free, 1, 0.75)
            found = next((free.pop(key) for key in (name.casefold(), *close, *usual) if key in free), None)
            if found is not None:
                hints[flag] = f"{hints.get(flag, flag)} {shlex.quote(found)}"
        hint = f"; did you mean {' '.join(hints.values())}?" if hints else ""
        if len(names) == 1 and table_format(url) in ("csv", "tsv"):
            hint = "; a .csv has commas between its fields, a .tsv tabs, and their lines end with a line feed"
        lacking = " and ".join(repr(name) for _, name, _ in missing)
        known = one_line(", ".join(names).replace("\t", "\\t"))
        raise ClipDataError(f"{url} has no column {lacking}; it has {known}{hint}")
    for _, name, _ in wanted:
        if list(names).count(name) > 1:
            raise ClipDataError(f"{url} has {list(names).count(name)} columns {name!r}: rename or remove all but one")


def check_strings(url: str, schema: pa.Schema, texts: Sequence[str]) -> None:
    """Raises ClipDataError if one of the columns does not hold strings (or only nulls)."""
    import pyarrow.types as kinds

    for name in texts:
        kind = schema.field(name).type
        value = kind.value_type if kinds.is_dictionary(kind) else kind
        tests = (kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_null)
        if not any(test(value) for test in tests):
            raise ClipDataError(f"{url}: column {name!r} holds {kind}, not strings: convert it in the source")


def check_utf8(url: str, name: str, column: pa.ChunkedArray, first: int) -> None:
    """Raises ClipDataError if a string of the column is not UTF-8, which Arrow accepts; `first` is its first row."""
    import pyarrow as pa

    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise ClipDataError(f"{url}: column {name!r} is damaged: {one_line(error)}") from error
        for row, value in enumerate(column):  # there may be none: Arrow also checks the rows outside of a slice
            try:
                value.as_py()
            except UnicodeDecodeError:
                message = f"{url}: column {name!r} holds invalid UTF-8 in row {first + row} (the first is 0)"
                raise ClipDataError(f"{message}: repair the value in the source, and plan again") from error


def one_line(error: object) -> str:
    """Returns a text without line breaks and control characters, cut to a readable length."""
    text = " ".join(str(error).split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:300])
