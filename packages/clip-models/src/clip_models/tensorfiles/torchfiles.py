"""PyTorch checkpoints, read without running what they hold."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_models.errors import ClipModelsError, first_line

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_STATE_DICTS = ("state_dict", "model", "model_state_dict")
"""Where training programs keep the model."""


def read_torch_file(path: Path, entry: str | None = None) -> dict[str, Tensor]:
    """The state dict of a file of torch.save: the file itself, its entry state_dict, model or model_state_dict
    (one in another, too), or the entry asked for."""
    is_zip = _starts_like_a_zip(path)
    if is_zip:
        _inspect_zip(path)
    try:
        # Mapped, not read: every tensor is copied once later anyway.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a damaged or refused pickle raises whatever its first bad opcode leads to
        raise _explain(path, error) from error
    state = _choose_entry(path, loaded, entry)
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ClipModelsError(f"{path} holds no state dict: its entry {name!r} is of type {type(value).__name__}")
        _check_storage(path, name, value)
    return dict(state)


def _explain(path: Path, error: Exception) -> ClipModelsError:
    """Without what torch.load says first, which is how to run the file's code."""
    if code := re.search(r"GLOBAL (\S+)", str(error)):
        return ClipModelsError(
            f"{path} holds {code[1]}, which is more than tensors and never unpickled; save its state dict alone with"
            " torch.save"
        )
    detail = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    line = detail[1] if detail else f"{type(error).__name__}: {first_line(error)}"
    return ClipModelsError(f"{path} is damaged or holds more than tensors, which is never unpickled: {line}")


def _starts_like_a_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _inspect_zip(path: Path) -> None:
    """torch.save stores without compression, so that a checkpoint is never larger than its file."""
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


def _choose_entry(path: Path, loaded: Any, entry: str | None) -> Mapping[str, Any]:
    if not isinstance(loaded, Mapping) or not loaded:
        raise ClipModelsError(f"{path} holds no state dict but {type(loaded).__name__}")
    if entry is not None:
        if not isinstance(loaded.get(entry), Mapping):
            tables = [str(key) for key, value in loaded.items() if isinstance(value, Mapping)]
            raise ClipModelsError(f"{path} has no entry {entry!r}; it has {', '.join(tables) or 'none'}")
        loaded = loaded[entry]
    while inner := [loaded[key] for key in _STATE_DICTS if isinstance(loaded.get(key), Mapping)]:
        loaded = inner[0]
    averages = [str(key) for key in loaded if "ema" in str(key) and isinstance(loaded[key], Mapping)]
    if averages and not any(isinstance(value, Tensor) for value in loaded.values()):
        raise ClipModelsError(f"{path} holds no state dict but averaged weights; ask for its entry {averages[0]!r}")
    return loaded


def _check_storage(path: Path, name: str, tensor: Tensor) -> None:
    """A few bytes can declare a tensor of any size: on no device, or by strides of zero."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise ClipModelsError(f"{path} holds {name} as {tensor.layout} on {tensor.device}; weights are plain tensors")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ClipModelsError(f"{path} declares {name} as {list(tensor.shape)}, which is more than it holds")
