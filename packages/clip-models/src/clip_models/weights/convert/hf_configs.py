"""The towers' parts of a config.json of transformers, to and from our configs."""

from collections.abc import Mapping
from typing import Any

from clip_models.errors import ClipModelsError
from clip_models.tables import read_table

_TEXT = {
    "context_length": "max_position_embeddings", "vocab_size": "vocab_size", "width": "hidden_size",
    "heads": "num_attention_heads", "layers": "num_hidden_layers", "norm_eps": "layer_norm_eps",
}  # fmt: skip
_VISION = {
    "image_size": "image_size", "patch_size": "patch_size", "width": "hidden_size", "layers": "num_hidden_layers",
    "norm_eps": "layer_norm_eps",
}  # fmt: skip
"""Our field → transformers' key."""


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


def text_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a CLIPTextConfig that have a counterpart in transformers' `text_config`."""
    return _fields(config, _TEXT)


def vision_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a ViTConfig that have a counterpart in transformers' `vision_config`."""
    return _fields(config, _VISION) | {"head_width": config["hidden_size"] // config["num_attention_heads"]}


def _fields(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    ratio = mlp_ratio(config["intermediate_size"], config["hidden_size"])
    return {ours: config[theirs] for ours, theirs in names.items()} | {"mlp_ratio": ratio}


def mlp_ratio(hidden: int, width: int) -> float:
    """Returns the ratio whose product with `width`, cut to an integer, is `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def to_text_config(config: Any) -> dict[str, Any]:
    """Returns the counterparts of `text_fields` for a text tower."""
    return _to_theirs(config, _TEXT)


def to_vision_config(config: Any) -> dict[str, Any]:
    """Returns the counterparts of `vision_fields` for a ViT."""
    return _to_theirs(config, _VISION) | {"num_attention_heads": config.heads}


def _to_theirs(config: Any, names: Mapping[str, str]) -> dict[str, Any]:
    theirs = {key: getattr(config, ours) for ours, key in names.items()}
    return theirs | {"intermediate_size": int(config.width * config.mlp_ratio)}
