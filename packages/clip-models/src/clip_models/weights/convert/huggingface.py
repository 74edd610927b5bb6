"""CLIPModel, MetaClip2Model and SiglipModel of the transformers library, to and from ours. Needs no transformers.

Source of names and defaults: the models' configuration and modeling files in transformers 5.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from clip_models.errors import ClipModelsError
from clip_models.specs import CLIPTextConfig, ModelSpec, TimmConfig, ViTConfig
from clip_models.weights.convert import hf_clip, hf_siglip
from clip_models.weights.convert.hf_processor import preprocess_from_processor

_NOT_YET = {"siglip2": "Siglip2Model takes pictures of variable resolution; take the fixed-resolution checkpoints"}


def spec_from_huggingface(
    config: Mapping[str, Any], processor: Mapping[str, Any] | None = None, name: str = "from-huggingface"
) -> ModelSpec:
    """The spec that a config.json of transformers describes, with what preprocessor_config.json says of the pictures.

    Without `processor` the model's family decides. ClipModelsError for another model_type and for options that our
    towers do not have.
    """
    kind = config.get("model_type")
    if kind in hf_clip.MODEL_TYPES:
        spec = hf_clip.spec_from_config(config, name)
    elif kind == hf_siglip.MODEL_TYPE:
        spec = hf_siglip.spec_from_config(config, name)
    else:
        known = ", ".join((*hf_clip.MODEL_TYPES, hf_siglip.MODEL_TYPE))
        reason = _NOT_YET.get(str(kind), f"choose one of {known}")
        raise ClipModelsError(f"config.json is of the model_type {kind!r}, which is not converted; {reason}")
    if processor is None:
        return spec
    return dataclasses.replace(spec, preprocess=preprocess_from_processor(processor, spec.preprocess))


def to_huggingface(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, tensors) for CLIPModel, MetaClip2Model or SiglipModel, whichever computes what `model` does.

    ClipModelsError where none does: another tower than the plain ViT with CLIP's text transformer, or than SigLIP's.
    The tensors share memory with the model where they could be left as they are.
    """
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    if isinstance(spec.text, CLIPTextConfig) and spec.decoder is None:
        if isinstance(spec.vision, ViTConfig):
            return hf_clip.to_huggingface(model, spec, spec.vision, spec.text)
        if isinstance(spec.vision, TimmConfig):
            return hf_siglip.to_huggingface(model, spec, spec.vision, spec.text)
    raise ClipModelsError(
        f"{spec.name!r} has no counterpart in transformers: only ViT with CLIP's text transformer, and SigLIP, have"
    )
