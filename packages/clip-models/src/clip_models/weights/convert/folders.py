"""Saves folders for OpenCLIP and transformers."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clip_core import Store
from clip_models.specs import ModelSpec, TokenizerConfig
from clip_models.specs.openclip import to_open_clip_config
from clip_models.weights.convert.description import HF_CONFIG, HF_PROCESSOR, OPEN_CLIP_CONFIG
from clip_models.weights.convert.hf_processor import processor_config
from clip_models.weights.convert.huggingface import to_huggingface
from clip_models.weights.tensorfiles import write_safetensors


def save_open_clip(folder: str | os.PathLike[str], model: nn.Module, tokenizer: TokenizerConfig | None = None) -> None:
    """Writes open_clip_config.json and open_clip_model.safetensors into `folder`: OpenCLIP's `local-dir:`.

    `tokenizer` is described instead of the model's own. Raises ClipModelsError, if OpenCLIP's config cannot express the
    model, before anything is written.
    """
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    config = to_open_clip_config(dataclasses.replace(spec, tokenizer=tokenizer or spec.tokenizer))
    _write(Path(folder), {OPEN_CLIP_CONFIG: config}, "open_clip_model.safetensors", model.state_dict())


def save_huggingface(folder: str | os.PathLike[str], model: nn.Module) -> None:
    """Writes config.json, model.safetensors and preprocessor_config.json into `folder`, for transformers.

    Raises ClipModelsError for a model that transformers has no class for, before anything is written.
    """
    config, tensors = to_huggingface(model)
    processor = processor_config(model.spec)  # type: ignore[arg-type]
    _write(Path(folder), {HF_CONFIG: config, HF_PROCESSOR: processor}, "model.safetensors", tensors)


def _write(folder: Path, configs: Mapping[str, Any], name: str, tensors: Mapping[str, Tensor]) -> None:
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    write_safetensors(folder / name, tensors, {"format": "pt"})
    for file, content in configs.items():
        Store(folder).write_bytes(file, json.dumps(content, indent=2).encode() + b"\n")
