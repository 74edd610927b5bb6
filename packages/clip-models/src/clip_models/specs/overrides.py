"""Changes to a spec before it is built: OpenCLIP's force_* arguments and model_kwargs. Free of torch."""

from collections.abc import Mapping
from typing import Any

from clip_models.errors import ClipModelsError
from clip_models.specs import ModelSpec
from clip_models.specs.families import overlay

FORCEABLE = {
    "quick_gelu": None, "custom_text": None, "preprocess": None, "tokenizer": None, "image_size": "vision",
    "patch_dropout": "vision", "context_length": "text",
}  # fmt: skip
"""What a caller may insist on against a description, and its part of the spec; None is the spec itself."""

_OPENCLIP_KEYS = {"vision_cfg": "vision", "text_cfg": "text", "multimodal_cfg": "decoder"}


def override_spec(
    spec: ModelSpec,
    *,
    custom_text: bool = False,
    patch_dropout: float | None = None,
    image_size: int | tuple[int, int] | None = None,
    context_length: int | None = None,
    preprocess: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> ModelSpec:
    """Returns `spec` with the changes; None and False change nothing. Raises ClipModelsError for unknown options.

    `preprocess` has keys of PreprocessConfig, `changes` those of ModelSpec, whose tables (vision, text, decoder) are
    merged; both override the rest.
    """
    forced: dict[str, Any] = {"custom_text": True} if custom_text else {}
    if patch_dropout is not None:
        if not hasattr(spec.vision, "patch_dropout"):
            raise ClipModelsError(f"{spec.name} has no patches to drop; leave force_patch_dropout out")
        forced["vision"] = {"patch_dropout": patch_dropout}
    if image_size is not None:
        forced["vision"] = {**forced.get("vision", {}), "image_size": image_size}
        forced["preprocess"] = {"size": [image_size] * 2 if isinstance(image_size, int) else image_size}
    if context_length is not None:
        forced["text"] = {"context_length": context_length}
    plain = dict(changes or {})
    for key, ours in _OPENCLIP_KEYS.items():
        if key in plain:
            raise ClipModelsError(f"{key} is called {ours} here, a table of the keys that change; see ModelSpec")
    if preprocess:
        plain["preprocess"] = {**plain.get("preprocess", {}), **preprocess}
    for over in (forced, plain):
        spec = ModelSpec.from_dict(overlay(spec.to_dict(), over)) if over else spec
    return spec


def forced_parts(forced: Mapping[str, Any], changes: Mapping[str, Any]) -> set[str]:
    """Returns what the caller insists on against the weights, for `load_pretrained`."""
    parts = {name for name, value in forced.items() if value is not None and value is not False}
    return parts | {name for name, part in FORCEABLE.items() if name in (changes.get(part, {}) if part else changes)}
