"""`clip-models profile`: the cost of architectures."""

import csv
import dataclasses
import json
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

from clip_core.console import progress_bar


@dataclass(frozen=True, kw_only=True)
class Config:
    """Counts on the meta device: no weights are read and no memory is taken."""

    models: tuple[str, ...] = field(default=(), metadata={"positional": True})
    """names of architectures; default: all"""
    format: Literal["table", "csv", "json"] = "table"
    """output format"""


def run(config: Config) -> int:
    from clip_models.inference.profiling import Profile, profile
    from clip_models.specs import get_model_spec, list_models

    specs = [get_model_spec(name) for name in config.models or list_models()]
    names = [f.name for f in dataclasses.fields(Profile)]
    rows = []
    for spec in progress_bar(specs, unit="model", leave=False, show=None if len(specs) > 3 else False):
        row = dataclasses.asdict(profile(spec))
        rows.append({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()})
    if config.format == "json":
        print(json.dumps(rows, indent=2))
    elif config.format == "csv":
        writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        _print_table([names, *([row[name] for name in names] for row in rows)])
    return 0


def _print_table(lines: list[list[Any]]) -> None:
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *others in cells:
        rest = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        print(f"{first:<{widths[0]}}  " + "  ".join(rest))
