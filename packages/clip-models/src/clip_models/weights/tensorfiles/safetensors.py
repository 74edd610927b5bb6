"""safetensors: one file, or several with an index."""

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clip_core.store import Store
from clip_models.errors import ClipModelsError, first_line

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The types of tensors that are written, in the words of the format."""


class SupportsWrite(Protocol):
    """A file that takes bytes."""

    def write(self, data: Any, /) -> object:
        """Writes all of the data."""


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes `tensors` (CPU, contiguous) atomically. Equal content gives equal bytes, unlike in the library."""
    store = Store(path.parent)
    with store.trying("write", path.name), store.writing(path.name) as file:
        dump_safetensors(file, tensors, metadata)


def dump_safetensors(file: SupportsWrite, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes `tensors` (CPU, contiguous) to an open file. Equal content gives equal bytes."""
    # Widest type first keeps every tensor aligned, as the library does.
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
    file.write(struct.pack("<Q", len(head)) + head)
    for name in order:
        file.write(_bytes_of(tensors[name]))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 over names, types, shapes and values."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {_dtype_name(name, tensor)} {list(tensor.shape)}\n".encode())
        total.update(_bytes_of(tensor))
    return total.hexdigest()


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns (tensors, metadata). The library refuses headers that do not agree with the size of the file."""
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_header(path: Path) -> tuple[list[str], dict[str, str]]:
    """Returns (names of the tensors, metadata)."""
    with _open(path) as file:
        return list(file.keys()), file.metadata() or {}


def read_index(path: Path) -> dict[str, str]:
    """Returns the file name of each tensor."""
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClipModelsError(f"{path} is not an index of weights files: it has no table 'weight_map'") from error
    if not isinstance(places, dict) or not all(isinstance(part, str) for part in places.values()):
        raise ClipModelsError(f"{path} is not an index of weights files: its 'weight_map' names no files")
    return places


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ClipModelsError(
            f"{path} is truncated or corrupted: {type(error).__name__}: {first_line(error)}"
        ) from error


def read_shards(
    index: Path, read: Callable[[Path], tuple[Mapping[str, Tensor], Mapping[str, str]]]
) -> dict[str, Tensor]:
    """Returns the tensors of all files in the list of `index`, which are beside it."""
    places = read_index(index)
    parts = sorted(set(places.values()))
    tensors: dict[str, Tensor] = {}
    for part in parts:
        if Path(part).name != part or part.endswith(".json"):
            raise ClipModelsError(f"{index} lists {part!r}, which is not the name of a weights file beside it")
        if not index.with_name(part).is_file():
            raise ClipModelsError(f"{index} lists {part}, which is missing; fetch all {len(parts)} parts")
        held, _ = read(index.with_name(part))
        expected = {name for name, place in places.items() if place == part}
        if held.keys() != expected:
            odd = sorted(held.keys() ^ expected)
            raise ClipModelsError(f"{index.with_name(part)} and its index differ in {len(odd)} tensors ({odd[0]}, …)")
        tensors.update(held)
    return tensors


def _dtype_name(name: str, tensor: Tensor) -> str:
    if tensor.dtype not in DTYPE_NAMES:
        raise ClipModelsError(f"tensor {name} is {tensor.dtype}; weights are float32, float16 or bfloat16")
    return DTYPE_NAMES[tensor.dtype]


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
