"""Checkpoints: one folder for each saved step, complete or absent, checked before it is believed. No pickle.

checkpoints/step-00000100/model.safetensors      the weights with their description, as clip-models saves them
                          optimizer.safetensors  AdamW's state, one tensor for each (parameter, quantity)
                          rng.safetensors        states of the random generators of every rank
                          state.json             step, stream, metrics, and size and sha256 of the files; written last
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clip_train.errors import ClipTrainError
from clip_train.files import sha256_of, sync
from clip_train.parallel import World

FORMAT = 1
_STEP = "step-"
_TEMPORARY = ".tmp-"
_FILES = ("model.safetensors", "optimizer.safetensors", "rng.safetensors")


@dataclass(frozen=True)
class Resumed:
    """What a checkpoint says beside the tensors."""

    step: int
    stream: dict[str, Any]
    metrics: dict[str, float]


class Checkpoints:
    """The checkpoints of a run folder. Every method is called on every rank; rank 0 writes.

    `save_weights(path)` writes the model to a safetensors file. `fingerprint` names the run's config.
    """

    def __init__(
        self, run: Path, world: World, *, keep: int, fingerprint: str, save_weights: Callable[[Path], None]
    ) -> None:
        self.folder = run / "checkpoints"
        self._world = world
        self._keep = keep
        self._fingerprint = fingerprint
        self._save_weights = save_weights

    def steps(self) -> list[int]:
        """The saved steps, oldest first."""
        names = [path.name for path in self.folder.glob(f"{_STEP}*")]
        return sorted(int(name.removeprefix(_STEP)) for name in names if name.removeprefix(_STEP).isdigit())

    def path(self, step: int) -> Path:
        return self.folder / f"{_STEP}{step:08d}"

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        stream: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        """Makes the state after `step` steps durable, then removes what is older than the newest `keep`."""
        generators = self._world.gather(_generator_states(self._world.device))
        self._world.lead(lambda: self._write(step, model, optimizer, generators, stream, metrics))

    def _write(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        generators: list[dict[str, Tensor]],
        stream: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        if self.path(step).exists():
            return  # a signal came in the step that was saved anyway
        building = self.folder / f"{_TEMPORARY}{uuid.uuid4().hex}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(f"{_TEMPORARY}*"):  # left by a run that was killed
                shutil.rmtree(stale)
            building.mkdir()
            self._save_weights(building / _FILES[0])
            save_file(_optimizer_tensors(model, optimizer), building / _FILES[1])
            rng = {f"{rank}.{name}": state for rank, states in enumerate(generators) for name, state in states.items()}
            save_file(rng, building / _FILES[2])
            state = {
                "format": FORMAT,
                "step": step,
                "config": self._fingerprint,
                "stream": dict(stream),
                "metrics": dict(metrics),
                "files": {name: _describe(building / name) for name in _FILES},
            }
            (building / "state.json").write_text(json.dumps(state, indent=1, sort_keys=True) + "\n")
            for path in (*(building / name for name in (*_FILES, "state.json")), building):
                sync(path)
            building.rename(self.path(step))
            sync(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(building, ignore_errors=True)
            raise ClipTrainError(f"cannot save a checkpoint in {self.folder}: {error}") from error
        for old in self.steps()[: -self._keep]:
            # Out of its name first: killed half-way, nothing incomplete stands under a checkpoint's name.
            doomed = self.path(old).rename(self.folder / f"{_TEMPORARY}{uuid.uuid4().hex}")
            shutil.rmtree(doomed)

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Resumed | None:
        """Loads the newest checkpoint; None when there is none. ClipTrainError when it is damaged or another run's."""
        step = self._world.lead(self._verify_newest)
        if step is None:
            return None
        path = self.path(step)
        model.load_state_dict(load_file(path / _FILES[0], device=str(self._world.device)))
        _load_optimizer(model, optimizer, load_file(path / _FILES[1]))
        _restore_generators(load_file(path / _FILES[2]), self._world)
        state = json.loads((path / "state.json").read_text())
        return Resumed(step, state["stream"], state["metrics"])

    def _verify_newest(self) -> int | None:
        steps = self.steps()
        if not steps:
            return None
        path = self.path(steps[-1])
        fallback = f"continue from step {steps[-2]}" if len(steps) > 1 else "start again from the first step"
        try:
            state = json.loads((path / "state.json").read_text())
            version, config = state["format"], state["config"]
            wrong = [name for name in _FILES if _describe(path / name) != state["files"][name]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ClipTrainError(
                f"the checkpoint {path} is damaged ({type(error).__name__}: {error}); delete that folder to {fallback}"
            ) from error
        if wrong:
            raise ClipTrainError(
                f"the checkpoint {path} is damaged: {wrong[0]} is not what was saved; delete that folder to {fallback}"
            )
        if version != FORMAT:
            raise ClipTrainError(f"the checkpoint {path} has format {version!r}; this version reads {FORMAT}")
        if config != self._fingerprint:
            raise ClipTrainError(f"the checkpoint {path} is of another config ({config}): use another run folder")
        return steps[-1]


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """{"<parameter>|<quantity>": tensor} on the CPU."""
    return {
        f"{name}|{quantity}": value.detach().cpu()
        for name, parameter in model.named_parameters()
        for quantity, value in optimizer.state.get(parameter, {}).items()
    }


def _load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, quantity = key.rsplit("|", 1)
        states.setdefault(name, {})[quantity] = value
    order = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    saved = optimizer.state_dict()
    saved["state"] = {order[id(parameters[name])]: state for name, state in states.items()}
    optimizer.load_state_dict(saved)


def _generator_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_generators(states: Mapping[str, Tensor], world: World) -> None:
    """On a rank that the saving run did not have, the generators stay as the seed set them."""
    if (state := states.get(f"{world.rank}.cpu")) is not None:
        torch.set_rng_state(state)
    if world.device.type == "cuda" and (state := states.get(f"{world.rank}.cuda")) is not None:
        torch.cuda.set_rng_state(state, world.device)
