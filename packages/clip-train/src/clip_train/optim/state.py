"""The state of an optimizer as named tensors, for checkpoints.

Keys are "<parameter>|<quantity>" and, for what the optimizer counts in its groups, "group <index>|<quantity>". A Python
number is an int64 of one element, and its key ends with its type: "weight|use_muon:bool".
"""

from __future__ import annotations

import inspect
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clip_models.weights.convert.prefixes import strip_marks
from clip_train.errors import ClipTrainError
from clip_train.optim.groups import OWN_KEYS

_FLOAT, _INT = struct.Struct("<d"), struct.Struct("<q")
_NUMBERS: dict[str, tuple[Callable[[Any], int], Callable[[int], Any]]] = {
    "bool": (int, bool),
    "int": (int, int),
    # Weights files do not hold float64: its bits are those of an int64.
    "float": (
        lambda value: _INT.unpack(_FLOAT.pack(value))[0],
        lambda bits: _FLOAT.unpack(_INT.pack(bits))[0],
    ),
}
"""Types of numbers: to an int64, and back."""


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the state on its devices, by the plain names of the parameters.

    Raises ClipTrainError for a quantity that is neither a tensor nor a number.
    """
    tensors: dict[str, Tensor] = {}
    for owner, quantity, value in _quantities(model, optimizer):
        kind = type(value).__name__
        if isinstance(value, Tensor):
            tensors[f"{owner}|{quantity}"] = value.detach()
        elif kind in _NUMBERS:
            tensors[f"{owner}|{quantity}:{kind}"] = torch.tensor(_NUMBERS[kind][0](value), dtype=torch.int64)
        else:
            raise ClipTrainError(
                f"the optimizer keeps a {kind}, {quantity}, for {owner}: checkpoints hold tensors and numbers; choose "
                "another optim.name"
            )
    return tensors


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restores the state that `optimizer_tensors` returned, to the bit."""
    parameters = {strip_marks(name): parameter for name, parameter in model.named_parameters()}
    order = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    groups = {f"group {index}": group for index, group in enumerate(optimizer.param_groups)}
    counted: list[tuple[str, str, Any]] = []
    states: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        owner, label = key.rsplit("|", 1)
        quantity, _, kind = label.partition(":")
        value = _NUMBERS[kind][1](int(tensor)) if kind else tensor
        if owner.startswith("group "):
            if owner not in groups:
                raise ClipTrainError(
                    f"the saved optimizer has a {owner}, and this one {len(groups)} groups: keep its keys"
                )
            counted.append((owner, quantity, value))
        elif id(parameters[owner]) in order:  # a fork may lock what its parent has trained
            states.setdefault(order[id(parameters[owner])], {})[quantity] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    for parameter in parameters.values():
        own = optimizer.state.get(parameter, {})
        for quantity, value in own.items():
            saved = states[order[id(parameter)]][quantity]
            if isinstance(value, Tensor):  # torch has cast it to the type of the parameter
                own[quantity] = saved.to(value.device)
    for owner, quantity, value in counted:
        # After the load, which gives the optimizer new groups.
        optimizer.param_groups[int(owner.split()[1])][quantity] = value


def _quantities(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, str, Any]]:
    """Yields (owner, quantity, value). What the constructor takes is config, and the rest of a group is state."""
    for name, parameter in model.named_parameters():
        for quantity, value in optimizer.state.get(parameter, {}).items():
            yield strip_marks(name), quantity, value
    config = {*inspect.signature(type(optimizer)).parameters, *OWN_KEYS}
    for index, group in enumerate(optimizer.param_groups):
        for quantity, value in group.items():
            if quantity not in config and value is not None:
                yield f"group {index}", quantity, value
