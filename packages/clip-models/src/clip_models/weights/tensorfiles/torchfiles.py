"""Reads PyTorch checkpoints without running code in them."""

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_models.errors import ClipModelsError, first_line
from clip_models.weights.tensorfiles.pickles import array_to_tensor, describe, load_inert

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_DEPTH = 8


def read_torch_file(path: Path) -> dict[str, Any]:
    """Returns the content of a file of torch.save by dotted names: `state_dict.a` is entry `a` of `state_dict`.

    Arrays of NumPy become tensors; of other objects only the class is known. A table with several names has the first.
    """
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if is_zip:
        _inspect_zip(path)
    try:
        loaded = load_inert(path, is_zip)
    except Exception as error:  # a damaged or refused pickle may raise anything
        raise _explain(path, error) from error
    if not isinstance(loaded, Mapping) or not loaded:
        raise ClipModelsError(
            f"{path} holds no state dict but {describe(loaded)}; save the state dict alone with torch.save"
        )
    content: dict[str, Any] = {}
    for name, value in _flatten(loaded, "", set(), _DEPTH):
        if name in content:
            raise ClipModelsError(f"{path} holds {name} twice; save its state dict alone with torch.save")
        content[name] = value = array_to_tensor(value)
        if isinstance(value, Tensor):
            _check_storage(path, name, value)
    return content


def _flatten(table: Mapping[Any, Any], prefix: str, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    """Yields the entries of each table once, also if tables contain themselves or each other."""
    seen.add(id(table))
    for key, value in table.items():
        if not isinstance(value, Mapping) or not value or not depth:
            yield f"{prefix}{key}", value
        elif id(value) not in seen:
            yield from _flatten(value, f"{prefix}{key}.", seen, depth - 1)


def _explain(path: Path, error: Exception) -> ClipModelsError:
    """Returns the error without the first words of torch.load's, which explain how to run the file's code."""
    if code := re.search(r"GLOBAL (\S+)", str(error)):
        return ClipModelsError(
            f"{path} holds {code[1]}, which is more than tensors and never unpickled; save its state dict alone with"
            " torch.save"
        )
    if "Unsupported operand" in str(error):
        return ClipModelsError(
            f"{path} is damaged, or was pickled by another protocol than that of torch.save; save its state dict alone"
            " with torch.save"
        )
    detail = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    line = detail[1] if detail else f"{type(error).__name__}: {first_line(error)}"
    return ClipModelsError(f"{path} is damaged or holds more than tensors, which is never unpickled: {line}")


def _inspect_zip(path: Path) -> None:
    """Raises ClipModelsError for a damaged or compressed archive; torch.save does not compress."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ClipModelsError(f"{path} is damaged: {error}; fetch it again") from error
    if any(member.filename.endswith("/constants.pkl") or "/code/" in member.filename for member in members):
        raise ClipModelsError(
            f"{path} is a TorchScript archive, which holds code and is not loaded; for OpenAI's weights take the"
            ' pretrained tag "openai", for others save torch.jit.load(file).state_dict() with torch.save'
        )
    unpacked = sum(member.file_size for member in members)
    if unpacked > path.stat().st_size:
        raise ClipModelsError(
            f"{path} would unpack to {unpacked} bytes from {path.stat().st_size}; checkpoints are not compressed,"
            " so this file is refused"
        )
    with zipfile.ZipFile(path) as archive:  # torch.load checks no checksum
        if broken := archive.testzip():
            raise ClipModelsError(f"{path} is damaged: {broken} does not have its CRC-32; fetch it, or save it, again")


def _check_storage(path: Path, name: str, tensor: Tensor) -> None:
    """Raises ClipModelsError for a tensor that is larger than its bytes: on no device, or by strides of zero."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise ClipModelsError(f"{path} holds {name} as {tensor.layout} on {tensor.device}; weights are plain tensors")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ClipModelsError(f"{path} declares {name} as {list(tensor.shape)}, which is more than it holds")
