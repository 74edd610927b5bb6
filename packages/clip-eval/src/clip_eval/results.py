"""Result rows: what a row holds, how rows are stored, compared and printed."""

import json
from collections.abc import Sequence
from typing import Any

from clip_core.store import Store
from clip_eval.errors import ClipEvalError

Row = dict[str, Any]
FILE = "results.jsonl"
KEYS = {"benchmark", "kind", "dataset", "metric", "value", "low", "high", "n", "chance", "corrupt", "precision"}
KEYS |= {"model", "model_sha256", "fingerprint"}
COUNTS = {
    "truncated": "texts cut at the context length",
    "corrupt": "images that could not be read",
    "unlabelled": "samples without a label",
    "uncaptioned": "samples without a caption",
    "other_classes": "samples of classes that are not listed",
    "empty_classes": "classes without a sample",
    "same_prompts": "classes whose prompts repeat those of a class with a lower id, which is predicted for both",
}


def in_percent(share: float, digits: int = 1) -> str:
    """Returns a share in percent, rounded. One that is neither 0 nor 1 is never shown as 0 or 100."""
    text, least = f"{100 * share:.{digits}f}", f"{10.0**-digits:.{digits}f}"
    if share > 0 and float(text) == 0:
        return f"< {least}"
    return f"> {100 - float(least):.{digits}f}" if share < 1 and float(text) == 100 else text


def interval_in_percent(row: Row) -> str:
    return f"{in_percent(row['low'], 2)} – {in_percent(row['high'], 2)}"


def file_in_store(file: str) -> tuple[Store, str]:
    """Returns the folder of a file, given as a path or an fsspec URL, and the file's name in it."""
    folder, slash, name = file.rpartition("/")
    if not name or folder.endswith(":/"):
        raise ClipEvalError(f"{file!r} names a folder or a bucket: give the name of a file in it")
    return Store(folder or slash or "."), name


def read_results(store: Store) -> list[Row]:
    """Returns all rows of an evaluation folder; none if nothing was evaluated yet. Raises ClipEvalError for others."""
    if not store.exists(FILE):
        return []
    try:
        return check_rows([json.loads(line) for line in store.read_bytes(FILE).splitlines()])
    except ValueError as error:
        way_out = "remove it and evaluate again, or choose another folder"
        raise ClipEvalError(f"{store.url}/{FILE} does not hold results of clip-eval ({error}): {way_out}") from error


def check_rows(rows: list[Row]) -> list[Row]:
    """Returns the rows. Raises ValueError if one of them lacks a key."""
    for number, row in enumerate(rows, start=1):
        if missing := KEYS.difference(row if isinstance(row, dict) else ()):
            raise ValueError(f"row {number} has no {min(missing)!r}")
    return rows


def details_file(benchmark: str) -> str:
    """Returns the name of the file that holds what the report shows of a benchmark."""
    return f"details/{benchmark}.json"


def first_rows(rows: Sequence[Row]) -> dict[str, Row]:
    """Returns the first row of each benchmark, by its name, in their order."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row["benchmark"], row)
    return first


def write_results(store: Store, rows: Sequence[Row]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    store.write_bytes(FILE, text.encode("utf-8", "surrogatepass"))


def format_table(rows: Sequence[Row]) -> str:
    """Returns the rows for a terminal, in percent, with a line for each count of what was cut or left out."""
    header = ("benchmark", "metric", "value", "95 % interval", "chance", "n")
    cells = [header]
    for row in rows:
        value, chance = (f"{in_percent(row[name], 2)} %" for name in ("value", "chance"))
        percents = (value, interval_in_percent(row), chance)
        cells.append((row["benchmark"], row["metric"], *percents, str(row["n"])))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(f"{text:{'<' if i < 2 else '>'}{widths[i]}}" for i, text in enumerate(line)) for line in cells]
    lines.insert(1, "  ".join("─" * width for width in widths))
    for name, first in first_rows(rows).items():
        lines += [f"{name}: {first[key]} {what}" for key, what in COUNTS.items() if first.get(key)]
    return "\n".join(lines)
