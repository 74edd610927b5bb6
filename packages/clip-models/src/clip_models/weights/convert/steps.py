"""The steps of the converters, which are read in both directions and lose no tensor."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """The tensors `theirs`, one after the other along the first axis, are the tensors `ours`."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    to_ours: Change | None = None
    """Done to each of theirs before they are joined."""
    to_theirs: Change | None = None
    """Its inverse."""
    ratio: tuple[int, ...] = (1,)
    """Relative lengths of `ours`; theirs are equal."""


def move(theirs: str, ours: str, to_ours: Change | None = None, to_theirs: Change | None = None) -> Step:
    return Step((theirs,), (ours,), to_ours, to_theirs)


def move_layer(theirs: str, ours: str) -> list[Step]:
    """Weight and bias under the same names."""
    return [move(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in ("weight", "bias")]


def transpose(tensor: Tensor) -> Tensor:
    return tensor.T


def to_scalar(value: Tensor) -> Tensor:
    return value.reshape(())


def convert_to_ours(steps: Iterable[Step], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Applies the steps. A step whose tensors are not all there is skipped, and a tensor without a step keeps its name:
    the comparison with the model names both."""
    rest = dict(tensors)
    done: dict[str, Tensor] = {}
    for step in steps:
        if all(name in rest for name in step.theirs):
            parts = [rest.pop(name) for name in step.theirs]
            parts = [step.to_ours(part) for part in parts] if step.to_ours else parts
            whole = torch.cat(parts) if len(parts) > 1 else parts[0]
            done.update(zip(step.ours, _cut(whole, step.ratio), strict=True))
    return rest | done


def convert_to_theirs(steps: Iterable[Step], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Applies the inverse of the steps."""
    rest = dict(tensors)
    done: dict[str, Tensor] = {}
    for step in steps:
        if all(name in rest for name in step.ours):
            parts = [rest.pop(name) for name in step.ours]
            whole = torch.cat(parts) if len(parts) > 1 else parts[0]
            cut = _cut(whole, (1,) * len(step.theirs))
            cut = [step.to_theirs(part) for part in cut] if step.to_theirs else cut
            done.update(zip(step.theirs, cut, strict=True))
    return rest | done


def count_blocks(pattern: str, names: Iterable[str]) -> int:
    """Returns one more than the highest number in the group of `pattern`, which matches the start of a name."""
    found = (re.match(pattern, name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _cut(whole: Tensor, ratio: tuple[int, ...]) -> list[Tensor]:
    if len(ratio) == 1:
        return [whole]
    unit = whole.shape[0] // sum(ratio)
    return list(whole.split([unit * part for part in ratio[:-1]] + [whole.shape[0] - unit * sum(ratio[:-1])]))
