"""The entries of data/models/*.toml, each laid over those it extends."""

import functools
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from clip_models.errors import ClipModelsError

Tables = Mapping[str, Mapping[str, Any]]
"""Entries by name, as a file has them."""


@functools.cache
def built_in() -> Tables:
    """The entries that come with the package, abstract ones too."""
    tables: dict[str, Mapping[str, Any]] = {}
    folder = files("clip_models") / "data" / "models"
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.endswith(".toml"):
            tables |= tomllib.loads(path.read_text(encoding="utf-8"))
    return tables


def resolve(name: str, tables: Tables, below: tuple[str, ...] = ()) -> dict[str, Any]:
    """The entry `name` laid over those it extends. ClipModelsError if one is missing or extends itself."""
    if name in below:
        raise ClipModelsError(f"{name!r} extends itself, by way of {', '.join(below[below.index(name) + 1 :]) or name}")
    table = {key: value for key, value in tables[name].items() if key not in ("abstract", "extends")}
    parents = tables[name].get("extends", ())
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list | tuple):
        raise ClipModelsError(f"extends of {name!r} must be a name or a list of names, not {parents!r}")
    merged: dict[str, Any] = {}
    for parent in parents:
        if parent not in tables:
            raise ClipModelsError(f"{name!r} extends {parent!r}, which is no entry")
        merged = overlay(merged, resolve(parent, tables, (*below, name)))
    return overlay(merged, table)


@functools.cache
def hf_text_configs() -> Mapping[str, Mapping[str, Any]]:
    """The configurations of encoders of the transformers library that need no download, by id on the hub."""
    tables = built_in()
    texts = (resolve(name, tables).get("text", {}) for name, table in tables.items() if table.get("abstract"))
    return {text["model_name"]: text["config"] for text in texts if text.get("kind") == "hf"}


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on `base`, key by key; a table of another kind takes the place of the one below."""
    merged = dict(base)
    for key, value in over.items():
        below = base.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping) and value.get("kind") in (None, below.get("kind")):
            merged[key] = overlay(below, value)
        else:
            merged[key] = value
    return merged
