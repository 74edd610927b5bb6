"""Reads pickles of training programs without running or importing anything that they name.

torch.load(weights_only=True) builds tensors and containers, and calls only its own list of functions. For each other
class in a training checkpoint (its arguments, counters of NumPy, a scheduler) torch gets a stub of that name, which
keeps the arguments of the call.
"""

import math
import pickletools
import re
import sys
import threading
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

_HARMLESS = re.compile(
    r"""_codecs\.encode | argparse\.Namespace | collections\.\w+ | copyreg\._reconstructor | datetime\.\w+
    | decimal\.Decimal | enum\.\w+ | fractions\.Fraction | functools\.partial | pathlib\.(_local\.)?\w*Path
    | random\.Random | types\.SimpleNamespace | uuid\.UUID
    | builtins\.(bool|bytes|complex|dict|float|frozenset|int|list|object|range|slice|str)
    | numpy\._?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)
    | numpy\.(dtype|ndarray|bool_?|str_|bytes_|u?int\w*|float\w*|complex\w*|u?longlong|double|dtypes\.\w+)
    | numpy\.random\.\w+(\.\w+)?
    | torch\.optim\..+ | torch\.(cuda\.)?amp\..+ | torch\._C\.Generator | torch\.torch_version\.TorchVersion""",
    re.VERBOSE,
)
"""Names of the standard library, NumPy and torch that get a stub. A file with another name of these three, as attacks
have, is refused. Names of every other package get a stub."""
_TABLE = re.compile(r".*([dD]ict|\.CfgNode|\.Munch|\.Box)")
"""Classes that are filled as a dict is."""
_STREAMS = 4
"""Pickles at the start of a file of the old format, before the storages."""
_lock = threading.Lock()  # torch's list of safe classes is one for the process


class Inert:
    """An object that a pickle describes and that is not built."""

    origin = ""
    """Name of its class or function."""
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> "Inert":
        made = object.__new__(cls)
        made.args, made.state = args, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Table:
    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


class _List:
    def __new__(cls, *args: Any) -> Any:
        return []


def load_inert(path: Path, is_zip: bool) -> Any:
    """Returns the content of a file of torch.save on the CPU. Raises any exception of torch.load."""
    strict = {*sys.stdlib_module_names, "numpy", "torch"}
    names = (
        name for name in _names_in(path, is_zip) if name.partition(".")[0] not in strict or _HARMLESS.fullmatch(name)
    )
    stubs: list[Any] = [_stub(name) for name in sorted(names)]
    with _lock, torch.serialization.safe_globals(stubs):
        # Mapped, not read: every tensor is copied later.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def describe(value: Any) -> str:
    """Returns the type of a value, or the class of an inert one."""
    return value.origin if isinstance(value, Inert) else type(value).__name__


def array_to_tensor(value: Any) -> Any:
    """Returns a NumPy array or scalar of a pickle as a tensor, and any other value unchanged."""
    match value:
        case Inert(args=(Inert(origin="numpy.dtype") as dtype, bytes() as data), state=None):
            return _decode(value, dtype, (), False, data)
        case Inert(state=(_, tuple() as shape, Inert(origin="numpy.dtype") as dtype, fortran, data)):
            return _decode(value, dtype, shape, bool(fortran), data if isinstance(data, bytes) else b"")
    return value


def _decode(value: Inert, dtype: Inert, shape: tuple[Any, ...], fortran: bool, data: bytes) -> Any:
    code, order = str(dtype.args[:1]), str(dtype.state)
    known = re.fullmatch(r"\('(b1|[iu][1248]|f[248])',\)", code)
    if not known or not all(type(side) is int and side >= 0 for side in shape):
        return value
    kind = np.dtype(known[1]).newbyteorder(">" if "'>'" in order else "<")
    if math.prod(shape) * kind.itemsize != len(data):
        return value
    array = np.frombuffer(data, kind).reshape(shape[::-1] if fortran else shape)
    return torch.from_numpy((array.T if fortran else array).astype(known[1]))


def _names_in(path: Path, is_zip: bool) -> set[str]:
    """Returns module.name of all classes and functions in the pickle, or in the undamaged part of it."""
    names: set[str] = set()
    try:
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                [member] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                with archive.open(member) as file:
                    names.update(_scan(file))
        else:
            with open(path, "rb") as file:
                for _ in range(_STREAMS):
                    names.update(_scan(file))
    except Exception:  # torch.load reports the damage
        pass
    return names


def _scan(file: IO[bytes]) -> Iterable[str]:
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            # torch.save writes names of Python 2, such as __builtin__ long, which torch.load translates like this.
            python_3 = NAME_MAPPING.get((module, name)) or (IMPORT_MAPPING.get(module, module), name)
            yield ".".join(python_3)


def _stub(name: str) -> tuple[Any, str]:
    """Returns torch's form of a safe class: a stub and its name."""
    if name == "collections.deque":
        return _List, name
    return _Table if _TABLE.fullmatch(name) else type("Inert", (Inert,), {"origin": name}), name
