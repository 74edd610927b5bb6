"""A folder of captioned pictures as a URL table."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from clip_data.demo.table import write_parquet
from clip_data.errors import ClipDataError


def write_folder_table(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    captions_jsonl: str | os.PathLike[str],
    base_url: str,
    columns: Sequence[str] = ("category",),
) -> int:
    """Writes a URL table (parquet, atomically) for `LoopbackServer(folder=folder)` and returns its number of rows.

    Each line of `captions_jsonl` is an object with `file` (relative to `folder`), `caption` and the asked `columns`,
    which are passed through as strings (null as ""); further keys are ignored. Blank lines are skipped.
    Raises ClipDataError, naming file and line, for what cannot be read, a missing key or a missing picture.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise ClipDataError(f"cannot read the pictures: {os.fspath(folder)} is no folder")
    taken = [name for name in columns if name in ("url", "caption")]
    if taken or len(set(columns)) < len(columns):
        raise ClipDataError(f"columns {list(columns)} must differ from each other and from url and caption")
    try:
        lines = Path(captions_jsonl).read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ClipDataError(f"cannot read the captions {os.fspath(captions_jsonl)}: {error}") from error
    table: dict[str, list[str | None]] = {name: [] for name in ("url", "caption", *columns)}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{os.fspath(captions_jsonl)}, line {number}"
        record = _record(line, where)
        file, caption = _text(record, "file", where), _text(record, "caption", where)
        picture = (root / file).resolve()
        if not picture.is_relative_to(root):
            raise ClipDataError(f"{where}: {file!r} lies outside {root}")
        if not picture.is_file():
            raise ClipDataError(f"{where}: there is no file {file!r} in {root}")
        table["url"].append(f"{base_url.rstrip('/')}/{quote(picture.relative_to(root).as_posix())}")
        table["caption"].append(caption)
        for name in columns:
            table[name].append(_as_string(_value(record, name, where)))
    if not table["url"]:
        raise ClipDataError(f"{os.fspath(captions_jsonl)} holds no rows: one JSON object a line is needed")
    write_parquet(path, table)
    return len(table["url"])


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ClipDataError(f"{where}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise ClipDataError(f"{where}: expected a JSON object, found {line.strip()[:60]!r}")
    return record


def _value(record: dict[str, Any], key: str, where: str) -> Any:
    if key not in record:
        raise ClipDataError(f"{where}: no key {key!r}; it has {', '.join(sorted(record)) or 'none'}")
    return record[key]


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = _value(record, key, where)
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ClipDataError(f"{where}: {key!r} must be a text that is not empty, found {value!r}")
    return value


def _as_string(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
