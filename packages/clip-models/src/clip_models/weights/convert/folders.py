"""Folders that other libraries load: OpenCLIP's and transformers'."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clip_models.errors import ClipModelsError
from clip_models.specs import ModelSpec, TokenizerConfig
from clip_models.specs.openclip import to_open_clip_config
from clip_models.weights.convert.description import HF_CONFIG, HF_PROCESSOR, OPEN_CLIP_CONFIG
from clip_models.weights.convert.hf_processor import processor_config
from clip_models.weights.convert.huggingface import to_huggingface
from clip_models.weights.tensorfiles import write_safetensors


def save_open_clip(folder: str | os.PathLike[str], model: nn.Module, tokenizer: TokenizerConfig | None = None) -> None:
    """Write open_clip_config.json and open_clip_model.safetensors into `folder`: OpenCLIP's `local-dir:`.

    `tokenizer` is described in place of the model's own. ClipModelsError for a model that OpenCLIP's configuration
    cannot describe, before anything is written.
    """
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    config = to_open_clip_config(dataclasses.replace(spec, tokenizer=tokenizer or spec.tokenizer))
    folder = Path(folder)
    _write_tensors(folder / "open_clip_model.safetensors", model.state_dict())
    _write_json(folder / OPEN_CLIP_CONFIG, config)


def save_huggingface(folder: str | os.PathLike[str], model: nn.Module) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json into `folder`, for transformers.

    ClipModelsError for a model that transformers has no class for, before anything is written.
    """
    config, tensors = to_huggingface(model)
    processor = processor_config(model.spec)  # type: ignore[arg-type]
    folder = Path(folder)
    _write_tensors(folder / "model.safetensors", tensors)
    _write_json(folder / HF_CONFIG, config)
    _write_json(folder / HF_PROCESSOR, processor)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_safetensors(path, {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, {"format": "pt"})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ClipModelsError(f"cannot write {path}: {error.strerror}; choose a writable place") from error
