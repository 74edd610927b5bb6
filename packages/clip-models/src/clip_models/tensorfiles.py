"""Files of tensors: an atomic, byte-reproducible safetensors writer, and a reader that never runs a pickle."""

import hashlib
import json
import os
import struct
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clip_models.errors import ClipModelsError

_DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_PICKLED = (".pt", ".pth", ".bin", ".ckpt")


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `tensors` (CPU, contiguous, floating) so that `path` is either complete or untouched.

    The published writer puts the metadata in random order; here equal content gives equal bytes.
    """
    # Widest type first keeps every tensor aligned, as the format's own writer does.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _dtype_name(name, tensor), "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(struct.pack("<Q", len(head)) + head)
                for name in order:
                    file.write(_bytes_of(tensors[name]))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ClipModelsError(f"cannot write {path}: {error.strerror}; choose a writable place") from error


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {_dtype_name(name, tensor)} {list(tensor.shape)}\n".encode())
        total.update(_bytes_of(tensor))
    return total.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors on the CPU, safetensors metadata or {}) of a .safetensors file or of a PyTorch checkpoint.

    Of a checkpoint, the mapping under "state_dict" is taken if there is one. Pickles go through
    torch.load(weights_only=True) only, which builds tensors and containers and calls nothing else.
    """
    if not path.is_file():
        raise ClipModelsError(f"there is no weights file {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _PICKLED:
        return _read_pickled(path), {}
    known = ", ".join((".safetensors", *_PICKLED))
    raise ClipModelsError(f"{path} has the extension {path.suffix!r}; weights are read from {known}")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ClipModelsError(f"{path} is truncated or corrupted: {_one_line(error)}") from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or refused pickle raises whatever its first bad opcode leads to
        raise ClipModelsError(
            f"{path} is damaged or holds more than tensors, which is never unpickled: {_one_line(error)}"
        ) from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ClipModelsError(f"{path} holds no state dict but {type(loaded).__name__}")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ClipModelsError(f"{path} holds no state dict: its entry {name!r} is of type {type(value).__name__}")
    return dict(loaded)


def _dtype_name(name: str, tensor: Tensor) -> str:
    if tensor.dtype not in _DTYPE_NAMES:
        raise ClipModelsError(f"tensor {name} is {tensor.dtype}; weights are float32, float16 or bfloat16")
    return _DTYPE_NAMES[tensor.dtype]


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no detail'}"
