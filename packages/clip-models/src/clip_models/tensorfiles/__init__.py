"""Files of tensors: an atomic, byte-reproducible safetensors writer, and readers that run no code of a file."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from clip_models.errors import ClipModelsError
from clip_models.tensorfiles.npz import read_npz
from clip_models.tensorfiles.safetensors import (
    digest,
    read_header,
    read_index,
    read_safetensors,
    read_shards,
    write_safetensors,
)
from clip_models.tensorfiles.torchfiles import SUFFIXES, read_torch_file

__all__ = ["WEIGHTS_SUFFIXES", "digest", "read_names", "read_tensors", "write_safetensors"]

INDEX_SUFFIX = ".index.json"
WEIGHTS_SUFFIXES = (".safetensors", INDEX_SUFFIX, ".npz", *SUFFIXES)


def read_tensors(path: Path, entry: str | None = None) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """(tensors on the CPU, safetensors metadata or {}) of one weights file.

    .safetensors; .index.json, the list of the parts of a weight set in several files; .npz; .pt, .pth, .bin and .ckpt
    through torch.load(weights_only=True) only, which builds tensors and containers and calls nothing else. Of a
    training checkpoint the model's state dict is taken, or the one under `entry`. ClipModelsError for any other file,
    a damaged one, one that would run code, and one that declares more than it holds.
    """
    if not path.is_file():
        raise ClipModelsError(f"there is no weights file {path}")
    if entry is not None and path.suffix not in SUFFIXES:
        raise ClipModelsError(f"{path} has no entries to choose {entry!r} from; only PyTorch checkpoints have")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.name.endswith(INDEX_SUFFIX):
        return read_shards(path, lambda part: read_tensors(part)), {}
    if path.suffix == ".npz":
        return read_npz(path), {}
    if path.suffix in SUFFIXES:
        return read_torch_file(path, entry), {}
    raise ClipModelsError(
        f"{path} has the extension {path.suffix!r}; weights are read from {', '.join(WEIGHTS_SUFFIXES)}"
    )


def read_names(path: Path) -> tuple[list[str] | None, Mapping[str, str]]:
    """(names of the tensors, metadata) without reading the tensors; None for formats that do not list them."""
    if path.suffix == ".safetensors":
        return read_header(path)
    return (list(read_index(path)) if path.name.endswith(INDEX_SUFFIX) else None), {}
