"""A folder of captioned images as a URL table."""

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
    Raises ClipDataError, naming file and line, for what cannot be read, a missing key or a missing image.
    """
    root, source = Path(folder).resolve(), os.fspath(captions_jsonl)
    if not root.is_dir():
        raise ClipDataError(f"cannot read the images: {os.fspath(folder)} is not a folder")
    if len({"url", "caption", *columns}) < len(columns) + 2:
        raise ClipDataError(f"columns {list(columns)} must differ from each other and from url and caption")
    try:
        lines = Path(captions_jsonl).read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ClipDataError(f"cannot read the captions {source}: {error}") from error
    table: dict[str, list[str | None]] = {name: [] for name in ("url", "caption", *columns)}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _row(json.loads(line), root, columns)
        except json.JSONDecodeError as error:
            raise ClipDataError(f"{source}, line {number}: not JSON ({error})") from error
        except ClipDataError as error:
            raise ClipDataError(f"{source}, line {number}: {error}") from error
        row["url"] = f"{base_url.rstrip('/')}/{row['url']}"
        for name, value in row.items():
            table[name].append(value)
    if not table["url"]:
        raise ClipDataError(f"{source} holds no rows: it must have one JSON object per line")
    write_parquet(path, table)
    return len(table["url"])


def _row(record: Any, root: Path, columns: Sequence[str]) -> dict[str, str]:
    """Returns the row of a line; `url` is the quoted path below `root`."""
    if not isinstance(record, dict):
        raise ClipDataError(f"expected a JSON object, found {str(record)[:60]!r}")
    for key in ("file", "caption", *columns):
        if key not in record:
            raise ClipDataError(f"no key {key!r}; it has {', '.join(sorted(record)) or 'none'}")
    for key in ("file", "caption"):
        if not isinstance(record[key], str) or not record[key].strip() or "\0" in record[key]:
            raise ClipDataError(f"{key!r} must be a text that is not empty, found {record[key]!r}")
    image = (root / record["file"]).resolve()
    if not image.is_relative_to(root):
        raise ClipDataError(f"{record['file']!r} lies outside {root}")
    if not image.is_file():
        raise ClipDataError(f"there is no file {record['file']!r} in {root}")
    passed = [(name, "" if record[name] is None else record[name]) for name in columns]
    return {
        "url": quote(image.relative_to(root).as_posix()),
        "caption": record["caption"],
        **{
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
            for name, value in passed
        },
    }
