"""CLIPModel, MetaClip2Model and SiglipModel of the transformers library, to and from ours. Needs no transformers.

Source of names and defaults: the models' configuration and modeling files in transformers 5.
"""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from clip_models.errors import ClipModelsError
from clip_models.specs import CLIPTextConfig, ModelSpec, TimmConfig, ViTConfig
from clip_models.weights.convert import hf_clip, hf_siglip
from clip_models.weights.convert.hf_processor import preprocess_from_processor

_FAMILIES: dict[str, ModuleType] = {"clip": hf_clip, "metaclip_2": hf_clip, "siglip": hf_siglip}
"""The module that converts a model_type."""
_REFUSED = {"siglip2": "Siglip2Model takes images of variable resolution; use the fixed-resolution checkpoints"}


def spec_from_huggingface(
    config: Mapping[str, Any], processor: Mapping[str, Any] | None = None, name: str = "from-huggingface"
) -> ModelSpec:
    """Returns the spec that a config.json and a preprocessor_config.json of transformers describe.

    Without `processor` the preprocessing is that of the model's family. Raises ClipModelsError for another model_type,
    and for options that our towers do not have.
    """
    kind = config.get("model_type")
    if kind not in _FAMILIES:
        reason = _REFUSED.get(str(kind), f"choose one of {', '.join(_FAMILIES)}")
        raise ClipModelsError(f"config.json is of the model_type {kind!r}, which is not converted; {reason}")
    spec: ModelSpec = _FAMILIES[kind].spec_from_config(config, name)
    if processor is None:
        return spec
    return dataclasses.replace(spec, preprocess=preprocess_from_processor(processor, spec.preprocess))


def to_huggingface(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns (config.json, tensors) for the one of CLIPModel, MetaClip2Model and SiglipModel that computes the same.

    Raises ClipModelsError if none does: they have the plain ViT with CLIP's text transformer, or SigLIP's towers.
    Unchanged tensors share memory with the model.
    """
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    if isinstance(spec.text, CLIPTextConfig) and spec.decoder is None:
        if isinstance(spec.vision, ViTConfig):
            return hf_clip.to_huggingface(model, spec, spec.vision, spec.text)
        if isinstance(spec.vision, TimmConfig):
            return hf_siglip.to_huggingface(model, spec, spec.vision, spec.text)
    raise ClipModelsError(
        f"{spec.name!r} has no counterpart in transformers, which has ViT with CLIP's text transformer, and SigLIP"
    )
