"""The entries of data/models/*.toml, merged with those that they extend."""

import functools
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from clip_models.errors import ClipModelsError
from clip_models.tables import read_table

Tables = Mapping[str, Mapping[str, Any]]
"""Entries of a file by name."""


@functools.cache
def built_in() -> Tables:
    """Returns the entries of this package, abstract ones included."""
    tables: dict[str, Mapping[str, Any]] = {}
    folder = files("clip_models") / "data" / "models"
    for path in sorted(path.name for path in folder.iterdir() if path.name.endswith(".toml")):
        tables |= read_table(f"models/{path.removesuffix('.toml')}")
    return tables


def resolve(name: str, tables: Tables, below: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns the entry `name` merged with those that it extends. Raises ClipModelsError if that is not possible."""
    if name in below:
        raise ClipModelsError(f"{name!r} extends itself, through {', '.join(below[below.index(name) + 1 :]) or name}")
    table = {key: value for key, value in tables[name].items() if key not in ("abstract", "extends")}
    parents = tables[name].get("extends", ())
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list | tuple):
        raise ClipModelsError(f"extends of {name!r} must be a name or a list of names, not {parents!r}")
    merged: dict[str, Any] = {}
    for parent in parents:
        if parent not in tables:
            raise ClipModelsError(f"{name!r} extends {parent!r}, which is not an entry")
        merged = overlay(merged, resolve(parent, tables, (*below, name)))
    return overlay(merged, table)


@functools.cache
def hf_text_configs() -> Mapping[str, Mapping[str, Any]]:
    """Returns the known configurations of encoders of the transformers library, by id on the hub."""
    tables = built_in()
    texts = (resolve(name, tables).get("text", {}) for name, table in tables.items() if table.get("abstract"))
    return {text["model_name"]: text["config"] for text in texts if text.get("kind") == "hf"}


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` with the keys of `over`, merged in depth; a table of another kind replaces the one below."""
    merged = dict(base)
    for key, value in over.items():
        below = base.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping) and value.get("kind") in (None, below.get("kind")):
            merged[key] = overlay(below, value)
        else:
            merged[key] = value
    return merged
