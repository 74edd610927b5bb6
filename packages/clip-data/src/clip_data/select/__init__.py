"""Selections: which rows of a dataset are kept, by an expression over columns and by exact deduplication.

A selection writes row numbers beside the shards; no shard is rewritten.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_data.select.config import SelectConfig
    from clip_data.select.expression import Clause, parse_where
    from clip_data.select.reader import Selection, load_selection
    from clip_data.select.stage import select

_MODULES = {
    "Clause": "expression",
    "SelectConfig": "config",
    "Selection": "reader",
    "load_selection": "reader",
    "parse_where": "expression",
    "select": "stage",
}

__all__ = ["Clause", "SelectConfig", "Selection", "load_selection", "parse_where", "select"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
