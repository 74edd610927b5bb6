"""NumPy archives, the form of big_vision's weights."""

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from clip_models.errors import ClipModelsError, first_line

_HIGHEST_RATIO = 50
"""Unpacked over packed size: float weights hardly shrink, and zeros shrink a thousandfold."""
_SMALL = 1 << 24


def read_npz(path: Path) -> dict[str, Tensor]:
    """Returns all arrays as tensors; float64 becomes float32, JAX's two-byte void becomes bfloat16.

    Each header is compared with the size of its member before memory is allocated. Object arrays are refused.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            if unpacked > max(_SMALL, _HIGHEST_RATIO * path.stat().st_size):
                raise ClipModelsError(
                    f"{path} would unpack to {unpacked} bytes from {path.stat().st_size}; this is not a file of weights"
                )
            tensors = {}
            for member in members:
                with archive.open(member) as file:
                    tensors[member.filename.removesuffix(".npy")] = _read_array(file, member)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, zlib.error) as error:
        raise ClipModelsError(f"{path} is truncated or corrupted: {first_line(error)}") from error
    if not tensors:
        raise ClipModelsError(f"{path} holds no arrays")
    return tensors


def _read_array(file: IO[bytes], member: zipfile.ZipInfo) -> Tensor:
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in readers:
        raise ValueError(f"{member.filename} is of npy version {version}")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError(f"{member.filename} holds Python objects, which are never unpickled")
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{member.filename} declares {list(shape)} {dtype}, which is more than it holds")
    data = file.read(math.prod(shape) * dtype.itemsize)
    array = np.frombuffer(data, dtype).reshape(shape[::-1] if fortran else shape)
    array = (array.T if fortran else array).copy()
    if dtype.kind == "V" and dtype.itemsize == 2:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if dtype.kind not in "fiub":
        raise ValueError(f"{member.filename} is of type {dtype}")
    return torch.from_numpy(array.astype(np.float32) if dtype == np.float64 else array)
