"""The state of a run as named tensors: weights, optimizer, generators of all ranks, and further parts.

Names are `model/visual.proj`, `optimizer/visual.proj|exp_avg`, `rng/0.cpu`, `<part>/<name>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from clip_models.weights.convert.prefixes import strip_marks
from clip_train.checkpoints.layout import Pieces
from clip_train.checkpoints.planning import DTYPES
from clip_train.errors import ClipTrainError
from clip_train.optim.state import load_optimizer, optimizer_tensors
from clip_train.parallel import World


class Part(Protocol):
    """A further part of a run's state.

    A tensor is replicated, with the same values on all ranks, or sharded: a DTensor, for rows that each rank holds
    (`DTensor.from_local(rows, mesh, [Shard(0)], shape=…, stride=…)`). Either is restored on any number of ranks.
    """

    def state(self) -> Mapping[str, Tensor]:
        """Returns named tensors, the same names on every rank."""

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what `state` returned. Tensors with the names and shapes of `state()` have its placement."""


@dataclass(kw_only=True)
class RunState:
    """What a checkpoint holds beside its numbers."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    parts: Mapping[str, Part] = field(default_factory=dict)
    partial: bool = False
    """whether a part that a checkpoint lacks begins anew: its `begin`, if it has one, is called"""

    def tensors(self, world: World) -> dict[str, Tensor]:
        """Returns all tensors by name, on their devices."""
        found = {f"model/{name}": tensor for name, tensor in self._weights().items()}
        found |= {f"optimizer/{name}": t for name, t in optimizer_tensors(self.model, self.optimizer).items()}
        found |= {f"rng/{world.rank}.{name}": state for name, state in _generators(world.device).items()}
        for part, owner in self.parts.items():
            found |= {f"{part}/{name}": tensor for name, tensor in owner.state().items()}
        return found

    def targets(self, table: Mapping[str, Pieces], world: World) -> dict[str, Tensor]:
        """Returns the tensors that a checkpoint with this table is read into.

        The weights are those of the model; the rest is new, and sharded as the parameter that it belongs to. Raises
        ClipTrainError if the checkpoint is one of another model, or lacks a part.
        """
        weights = {f"model/{name}": tensor for name, tensor in self._weights().items()}
        _check_model(weights, table)
        parameters = {strip_marks(name): parameter for name, parameter in self.model.named_parameters()}
        likes = dict(weights)
        for part, owner in self.parts.items():
            likes |= {f"{part}/{name}": tensor for name, tensor in owner.state().items()}
            if not self.partial and not any(key.startswith(f"{part}/") for key in table):
                raise ClipTrainError(f"the checkpoint has no part {part!r}, which this config keeps")
        targets: dict[str, Tensor] = {}
        for key, each in table.items():
            kind, _, name = key.partition("/")
            if kind == "optimizer":
                likes[key] = parameters.get(name.rsplit("|", 1)[0], torch.empty(0))
            if kind == "model":
                targets[key] = weights[key]
            elif (
                kind == "optimizer" or kind in self.parts or name in [f"{world.rank}.{own}" for own in ("cpu", "cuda")]
            ):
                targets[key] = _empty(likes.get(key), each)
        return targets

    def load(self, targets: Mapping[str, Tensor], world: World) -> None:
        """Restores the state from filled targets."""
        tables: dict[str, dict[str, Tensor]] = {}
        for key, tensor in targets.items():
            kind, _, name = key.partition("/")
            tables.setdefault(kind, {})[name] = tensor
        load_optimizer(self.model, self.optimizer, tables.get("optimizer", {}))
        for part, owner in self.parts.items():
            if part in tables:
                owner.load_state(tables[part])
            elif begin := getattr(owner, "begin", None):
                begin()
        own = tables.get("rng", {})
        # On a rank that the saved run did not have, the generators keep their seed.
        if (state := own.get(f"{world.rank}.cpu")) is not None:
            torch.set_rng_state(state)
        if world.device.type == "cuda" and (state := own.get(f"{world.rank}.cuda")) is not None:
            torch.cuda.set_rng_state(state, world.device)

    def _weights(self) -> dict[str, Tensor]:
        return {strip_marks(name): tensor for name, tensor in self.model.state_dict().items()}


def _check_model(weights: Mapping[str, Tensor], table: Mapping[str, Pieces]) -> None:
    saved = {key: each.shape for key, each in table.items() if key.startswith("model/")}
    own = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    for key in sorted(saved.keys() | own.keys()):
        if saved.get(key) != own.get(key):
            name = key.removeprefix("model/")
            raise ClipTrainError(
                f"it is a checkpoint of another model: {name} has the shape {saved.get(key, 'of no parameter')} there "
                f"and {own.get(key, 'of no parameter')} here"
            )


def _empty(like: Any, each: Pieces) -> Tensor:
    """Returns a tensor for a saved one, placed as `like` if the shapes are equal, else on the CPU."""
    if like is not None and tuple(like.shape) == each.shape:
        return torch.empty_like(like, dtype=DTYPES[each.dtype], requires_grad=False)
    return torch.empty(each.shape, dtype=DTYPES[each.dtype])


def _generators(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states
