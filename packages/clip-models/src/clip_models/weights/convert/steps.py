"""Converts tensors by the tables of data/conversions.toml, which are read in both directions and lose no tensor."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from clip_models.tables import read_table

_CHANGES: Mapping[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "transpose": (lambda matrix_IO: matrix_IO.T, lambda matrix_OI: matrix_OI.T),
    "to_scalar": (lambda value_1: value_1.reshape(()), lambda value: value.reshape(1)),
    "add_axis": (lambda table_LD: table_LD[None], lambda table_1LD: table_1LD[0]),
    "drop_axis": (lambda table_1LD: table_1LD[0],),
    "convolution": (lambda kernel_RCIO: kernel_RCIO.permute(3, 2, 0, 1),),
    "from_heads": (lambda kernel_DHC: kernel_DHC.flatten(1).T,),
    "to_heads": (lambda kernel_HCD: kernel_HCD.flatten(0, 1).T,),
    "flatten": (lambda bias_HC: bias_HC.reshape(-1),),
}
"""The change of each of their tensors before they are joined, and its inverse where a table is read backwards."""


def convert_to_ours(table: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts the names of a table to OpenCLIP's.

    A row whose tensors are not all there is skipped, and a tensor without a row keeps its name: the comparison with the
    model names both.
    """
    return _convert(table, tensors, 0)


def convert_to_theirs(table: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Applies the inverse of `convert_to_ours`."""
    return _convert(table, tensors, 1)


def _convert(table: str, tensors: Mapping[str, Tensor], source: int) -> dict[str, Tensor]:
    """`source`: the column of the names in `tensors`."""
    rest, done = dict(tensors), dict[str, Tensor]()
    blocks = sorted({number for name in tensors for number in re.findall(r"(?<=[._])\d+(?=[./])", name)})
    for row in read_table("conversions")[table]:
        names, changes = row[:2], [_CHANGES[change][source] for change in row[2:]]
        kinds = ["weight", "bias"] if "*" in names[0] else [""]
        for kind, block in itertools.product(kinds, blocks if "#" in names[0] else [""]):
            sides = [_alternatives(name.replace("*", kind).replace("#", block)) for name in names]
            old, new = sides[source], sides[1 - source]
            if all(name in rest for name in old):
                parts = [rest.pop(name) for name in old]
                for change in changes:
                    parts = [change(part) for part in parts]
                done.update(zip(new, _cut(torch.cat(parts) if len(parts) > 1 else parts[0], new), strict=True))
    return rest | done


def _alternatives(name: str) -> list[str]:
    """Returns the names that `{a,b}` stands for."""
    before, _, rest = name.partition("{")
    inside, _, after = rest.partition("}")
    return [f"{before}{choice}{after}" for choice in inside.split(",")]


def _cut(whole: Tensor, names: Sequence[str]) -> Sequence[Tensor]:
    """Returns the tensors of `names`, one after the other in `whole`: equal ones, but `kv` is two in one."""
    if len(names) == 1:
        return [whole]
    shares = [2 if ".kv." in name else 1 for name in names]
    lengths = [whole.shape[0] // sum(shares) * share for share in shares]
    lengths[-1] += whole.shape[0] - sum(lengths)
    return list(whole.split(lengths))
