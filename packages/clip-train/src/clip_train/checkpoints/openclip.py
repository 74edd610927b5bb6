"""Reads the checkpoints of OpenCLIP's training, epoch_N.pt: weights, AdamW's state, epoch. No code of the file is run.

OpenCLIP numbers the optimizer's state by its two groups: vectors, biases and norms first, then all other parameters,
each in the order of the model. Its scaler and its position within an epoch are not carried over.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_core.console import warn
from clip_models.weights.convert.prefixes import plain_names, strip_marks
from clip_models.weights.tensorfiles import read_tensors
from clip_train.checkpoints.state import RunState
from clip_train.errors import ClipTrainError
from clip_train.optim.state import load_optimizer
from clip_train.parallelize.shards import scatter

_QUANTITIES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step")


def is_openclip(path: str) -> bool:
    """Returns whether `parent` names a file of OpenCLIP, not a run."""
    return path.endswith(".pt")


def load_openclip(run: RunState, path: Path) -> int:
    """Loads weights and optimizer into a run. Returns the number of epochs that were trained.

    Raises ClipTrainError for a file of another model, or without an epoch.
    """
    content, _ = read_tensors(path)
    epoch = content.get("epoch")
    if not isinstance(epoch, int):
        raise ClipTrainError(
            f"{path} has no number of epochs, so it is not a checkpoint of OpenCLIP's training: for weights alone set "
            "model.pretrained"
        )
    saved = {name.removeprefix("state_dict."): each for name, each in content.items() if name.startswith("state_dict.")}
    weights = plain_names(saved, str(path))
    parameters = {strip_marks(name): parameter for name, parameter in run.model.named_parameters()}
    _load_weights(run, weights, path)
    state = _optimizer_state(content, weights, parameters, path)
    load_optimizer(run.model, run.optimizer, state)
    for part in run.parts.values():
        if begin := getattr(part, "begin", None):
            begin()
    dropped = sorted({name.partition(".")[0] for name in content} - {"state_dict", "optimizer", "epoch", "name"})
    warn(
        f"{path}: weights{', optimizer' if state else ''} and epoch {epoch} taken; not carried over: "
        f"{', '.join([*dropped, *([] if state else ['optimizer']), 'generators'])}"
    )
    return epoch


def _load_weights(run: RunState, weights: Mapping[str, Tensor], path: Path) -> None:
    own = {strip_marks(name): tensor for name, tensor in run.model.state_dict().items()}
    for name in sorted(own.keys() | weights.keys()):
        shapes = [tuple(table[name].shape) if name in table else None for table in (weights, own)]
        if shapes[0] != shapes[1]:
            raise ClipTrainError(
                f"{path} is of another model: {name} has the shape {shapes[0] or 'of no parameter'} there and "
                f"{shapes[1] or 'of no parameter'} here"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(scatter(weights[name].to(tensor.dtype), tensor))


def _optimizer_state(
    content: Mapping[str, Any], weights: Mapping[str, Tensor], parameters: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Returns the state by the names of `optimizer_tensors`; {} if it is not AdamW's of the same parameters."""
    prefix = "optimizer.state."
    by_number: dict[int, dict[str, Tensor]] = {}
    for key, value in content.items():
        number, _, quantity = key.removeprefix(prefix).partition(".")
        if key.startswith(prefix) and number.isdecimal() and quantity in _QUANTITIES and isinstance(value, Tensor):
            by_number.setdefault(int(number), {})[quantity] = value
    trained = [name for name in weights if name in parameters and parameters[name].requires_grad]
    order = sorted(trained, key=lambda name: not _in_first_group(name, weights[name]))  # stable: model order within
    if len(by_number) != len(order):
        return {}
    state = {}
    for place, name in enumerate(order):
        for quantity, value in by_number[place].items():
            if quantity != "step" and value.shape != weights[name].shape:
                raise ClipTrainError(
                    f"{path}: the optimizer's {quantity} number {place} has the shape {tuple(value.shape)}, {name} "
                    f"{tuple(weights[name].shape)}: its parameters are in another order"
                )
            state[f"{name}|{quantity}"] = value if quantity == "step" else scatter(value, parameters[name])
    return state


def _in_first_group(name: str, weight: Tensor) -> bool:
    return weight.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
