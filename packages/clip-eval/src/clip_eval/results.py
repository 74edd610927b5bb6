"""Result rows: what a row holds, how rows are stored, compared and printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from clip_data.store import Store
from clip_eval.errors import ClipEvalError

Row = dict[str, Any]
FILE = "results.jsonl"
COUNTS = {
    "truncated": "texts cut at the context length",
    "corrupt": "pictures could not be decoded",
    "unlabelled": "samples without a label",
    "other_classes": "samples of classes that are not asked for",
    "empty_classes": "classes without a sample",
}


def read_results(store: Store) -> list[Row]:
    """All rows of an evaluation folder; none when nothing was evaluated yet."""
    if not store.exists(FILE):
        return []
    try:
        return [json.loads(line) for line in store.read_bytes(FILE).splitlines()]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ClipEvalError(f"{store.url}/{FILE} is damaged: remove it and evaluate again ({error})") from error


def write_results(store: Store, rows: Sequence[Row]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    store.write_bytes(FILE, "".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass"))


def format_table(rows: Sequence[Row]) -> str:
    """The rows for a terminal, in percent, with a line for all that was cut or left out."""
    header = ("task", "metric", "value", "95 % interval", "chance", "n")
    cells = [header]
    for row in rows:
        interval = f"{100 * row['low']:.1f} – {100 * row['high']:.1f}"
        percents = (f"{100 * row['value']:.2f} %", interval, f"{100 * row['chance']:.2f} %")
        cells.append((row["task"], row["metric"], *percents, str(row["n"])))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(f"{text:{'<' if i < 2 else '>'}{widths[i]}}" for i, text in enumerate(line)) for line in cells]
    lines.insert(1, "  ".join("─" * width for width in widths))
    for task in dict.fromkeys(row["task"] for row in rows):
        first = next(row for row in rows if row["task"] == task)
        lines += [f"{task}: {first[name]} {what}" for name, what in COUNTS.items() if first.get(name)]
    return "\n".join(lines)
