"""Files of tensors: a reproducible safetensors writer, and readers that run no code of a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_models.errors import ClipModelsError
from clip_models.weights.content import inspect
from clip_models.weights.tensorfiles.npz import read_npz
from clip_models.weights.tensorfiles.safetensors import (
    DTYPE_NAMES,
    digest,
    dump_safetensors,
    read_header,
    read_index,
    read_safetensors,
    read_shards,
    write_safetensors,
)
from clip_models.weights.tensorfiles.torchfiles import SUFFIXES, read_torch_file

__all__ = [
    "DTYPE_NAMES",
    "WEIGHTS_SUFFIXES",
    "digest",
    "dump_safetensors",
    "read_names",
    "read_tensors",
    "write_safetensors",
]

INDEX_SUFFIX = ".index.json"
WEIGHTS_SUFFIXES = (".safetensors", INDEX_SUFFIX, ".npz", *SUFFIXES)


def read_tensors(path: Path) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Returns (tensors on the CPU, safetensors metadata or {}) of one weights file.

    Formats: safetensors; .index.json, the list of the parts of weights in several files; npz; files of torch.save, read
    by torch.load(weights_only=True) only (see `read_torch_file`). Raises ClipModelsError for any other file, a damaged
    one, one that would run code, and one that declares more than it holds.
    """
    kind = _format(path)
    if kind == "index":
        return read_shards(path, read_tensors), {}
    if kind == "safetensors":
        return read_safetensors(path)
    return (read_npz(path) if kind == "npz" else read_torch_file(path)), {}


def read_names(path: Path) -> tuple[list[str] | None, Mapping[str, str]]:
    """Returns (names of the tensors or None if the format does not list them, metadata), without reading tensors."""
    kind = _format(path)
    if kind == "safetensors":
        return read_header(path)
    return (list(read_index(path)) if kind == "index" else None), {}


def _format(path: Path) -> str:
    if not path.is_file():
        raise ClipModelsError(f"there is no weights file {path}")
    try:
        content = inspect(path)
    except OSError as error:
        raise ClipModelsError(f"{path} cannot be read: {error.strerror}; make it readable") from error
    if content.foreign:
        raise ClipModelsError(f"{path} is {content.foreign}")
    if path.name.endswith(INDEX_SUFFIX):
        return "index"
    by_name = {".safetensors": "safetensors", ".npz": "npz", **dict.fromkeys(SUFFIXES, "torch")}
    if path.suffix not in by_name:
        raise ClipModelsError(
            f"{path} has the extension {path.suffix!r}; weights are read from {', '.join(WEIGHTS_SUFFIXES)}"
        )
    if content.format == "torch" and path.suffix not in SUFFIXES:
        raise ClipModelsError(f"{path} is a PyTorch checkpoint, not {path.suffix}; name it .pt, or convert it")
    return content.format or by_name[path.suffix]
