"""The towers' parts of a config.json of transformers, to and from our configs."""

from collections.abc import Mapping
from typing import Any

from clip_models.errors import ClipModelsError
from clip_models.tables import read_table


def tower_config(config: Mapping[str, Any], key: str, model_type: str) -> dict[str, Any]:
    """Returns one tower's part of a config.json, completed by transformers' defaults.

    Older files repeat their values under `<key>_dict`, which takes precedence. Raises ClipModelsError if a known key is
    not of its default's type.
    """
    given = {k: v for part in (key, f"{key}_dict") for k, v in (config.get(part) or {}).items() if v is not None}
    usual = read_table("huggingface")[model_type][key]
    merged = {**usual, **given}
    for name, default in usual.items():
        kinds = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(merged[name], kinds):
            raise ClipModelsError(f"config.json has {key}.{name} = {merged[name]!r}, which is not converted")
    return merged


def from_theirs(tower: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of our `text` or `vision` config that have a counterpart in transformers' config of it."""
    fields = {ours: config[theirs] for ours, theirs in read_table("huggingface")["fields"][tower].items()}
    return fields | {"mlp_ratio": mlp_ratio(config["intermediate_size"], config["hidden_size"])}


def to_theirs(tower: str, config: Any) -> dict[str, Any]:
    """Returns the inverse of `from_theirs` for our `config`."""
    theirs = {theirs: getattr(config, ours) for ours, theirs in read_table("huggingface")["fields"][tower].items()}
    return theirs | {"intermediate_size": int(config.width * config.mlp_ratio)}


def mlp_ratio(hidden: int, width: int) -> float:
    """Returns the ratio whose product with `width`, cut to an integer, is `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
