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
"""What a caller may insist on against a description, and the part of the spec that has it; None is the spec itself."""

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
    """`spec` with what is given; None and False change nothing. ClipModelsError for what the model does not have.

    `preprocess` holds keys of PreprocessConfig, `changes` those of ModelSpec, with tables (vision, text, decoder) laid
    over what is there; both are stronger than the rest.
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
    """What the caller insists on against the weights, as `load_pretrained` names it."""
    parts = {name for name, value in forced.items() if value is not None and value is not False}
    return parts | {name for name, part in FORCEABLE.items() if name in (changes.get(part, {}) if part else changes)}
