"""Checkpoints: one folder for each saved step, complete or absent, verified before it is loaded. No pickle.

checkpoints/step-00000100/model.safetensors      the weights with their description, as clip-models saves them
                          optimizer.safetensors  state of the optimizer, one tensor for each (parameter, quantity)
                          ema.safetensors, …     tensors of further parts of the run, such as the averaged weights
                          rng.safetensors        states of the random generators of every rank
                          state.json             step, stream, metrics, sizes and sha256 of all files; written last
checkpoints/damaged-step-00000200-01234567/      a damaged one that was set aside
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from clip_core import ClipError
from clip_core.console import warn
from clip_core.files import sha256_of, sync
from clip_core.store import TEMPORARY, Store
from clip_models.weights.tensorfiles import write_safetensors
from clip_train.errors import ClipTrainError
from clip_train.optim.state import load_optimizer, optimizer_tensors
from clip_train.parallel import World

FORMAT = 2
_STEP = "step-"
_FILES = ("model.safetensors", "optimizer.safetensors", "rng.safetensors")


@dataclass(frozen=True)
class Resumed:
    """The contents of a checkpoint without the tensors."""

    step: int
    stream: dict[str, Any]
    metrics: dict[str, float]
    damaged: tuple[dict[str, str], ...]
    """newer checkpoints that were damaged and set aside: folder, checkpoint, reason"""


class Part(Protocol):
    """A further part of a run's state."""

    def state(self) -> dict[str, Tensor]:
        """Returns named tensors."""

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what `state` returned."""


class Checkpoints:
    """The checkpoints of a run folder. `save` and `resume` are called on every rank; rank 0 writes.

    `save_weights(path)` writes the model to a safetensors file. `fingerprint` identifies the run's config. Each of the
    `parts` has a file of its name.
    """

    def __init__(
        self,
        run: Path,
        world: World,
        *,
        keep: int,
        fingerprint: str,
        save_weights: Callable[[Path], None],
        parts: Mapping[str, Part] | None = None,
    ) -> None:
        self.folder = run / "checkpoints"
        self._store = Store(self.folder)
        self._world = world
        self._keep = keep
        self._fingerprint = fingerprint
        self._save_weights = save_weights
        self._parts = {f"{name}.safetensors": part for name, part in (parts or {}).items()}
        self._files = (*_FILES, *self._parts)

    def steps(self) -> list[int]:
        """Returns the saved steps, oldest first."""
        return saved_steps(self.folder.parent)

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
        """Saves the state after `step` steps durably, then removes all checkpoints but the newest `keep`."""
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
            return  # a signal arrived in a step that is saved anyway
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(f"{TEMPORARY}*"):  # left by a process that was killed, on any machine
                shutil.rmtree(stale)
            with self._store.staging() as staging:
                building = staging / "step"
                building.mkdir()
                self._save_weights(building / _FILES[0])
                write_safetensors(building / _FILES[1], optimizer_tensors(model, optimizer), {})
                rng = {f"{rank}.{name}": state for rank, own in enumerate(generators) for name, state in own.items()}
                write_safetensors(building / _FILES[2], rng, {})
                for name, part in self._parts.items():
                    write_safetensors(building / name, {key: t.cpu() for key, t in part.state().items()}, {})
                state = {
                    "format": FORMAT,
                    "step": step,
                    "config": self._fingerprint,
                    "stream": dict(stream),
                    "metrics": dict(metrics),
                    "files": {name: _describe(building / name) for name in self._files},
                }
                Store(building).write_json("state.json", {**state, "sha256": _digest(state)})
                self._store.publish(building, self.path(step).name)
                sync(self.folder)
                for old in self.steps()[: -self._keep]:
                    # Moved first: a kill during the removal leaves no incomplete folder with a checkpoint's name.
                    self.path(old).rename(staging / str(old))
        except (OSError, ClipError) as error:
            raise ClipTrainError(f"cannot save a checkpoint in {self.folder}: {error}") from error

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Resumed | None:
        """Loads the newest intact checkpoint and renames newer, damaged ones. Returns None without a checkpoint.

        Raises ClipTrainError if all are damaged, or if the newest intact one belongs to another config.
        """
        found = self._world.lead(self._find_intact)
        if found is None:
            return None
        state, damaged = found
        path = self.path(state["step"])
        model.load_state_dict(load_file(path / _FILES[0], device=str(self._world.device)))
        load_optimizer(model, optimizer, load_file(path / _FILES[1]))
        for name, part in self._parts.items():
            part.load_state(load_file(path / name))
        _restore_generators(load_file(path / _FILES[2]), self._world)
        return Resumed(state["step"], state["stream"], state["metrics"], tuple(damaged))

    def _find_intact(self) -> tuple[dict[str, Any], list[dict[str, str]]] | None:
        """Returns (state of the newest intact checkpoint, the newer ones with their new folders and reasons)."""
        damaged: list[tuple[Path, str]] = []
        for step in reversed(self.steps()):
            path = self.path(step)
            try:
                state = self._verify(path, step)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                if isinstance(error, ClipTrainError):
                    raise
                damaged.append((path, str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"))
                continue
            return state, [self._set_aside(damaged_path, reason, step) for damaged_path, reason in damaged]
        if damaged:
            path, reason = damaged[0]
            raise ClipTrainError(
                f"no checkpoint in {self.folder} is intact; the newest, {path.name}, is damaged: {reason}. Put an "
                f"intact copy in its place, or remove {self.folder.parent} to start the run again"
            )
        return None

    def _verify(self, path: Path, step: int) -> dict[str, Any]:
        """Returns the state of an intact checkpoint. Raises ClipTrainError, or any other error for a damaged one."""
        state = json.loads((path / "state.json").read_bytes())
        if state["sha256"] != _digest(state):
            raise ValueError("state.json has changed since it was saved")
        if state["format"] != FORMAT:
            raise ClipTrainError(f"the checkpoint {path} has format {state['format']!r}; this version reads {FORMAT}")
        for name in self._files:
            if _describe(path / name) != state["files"][name]:
                raise ValueError(f"{name} has changed since it was saved")
        if state["step"] != step:
            raise ValueError(f"it holds step {state['step']}")
        if state["config"] != self._fingerprint:
            raise ClipTrainError(
                f"the checkpoint {path} belongs to another config ({state['config']}): use another run folder"
            )
        return state

    def _set_aside(self, path: Path, reason: str, instead: int) -> dict[str, str]:
        aside = path.with_name(f"damaged-{path.name}-{uuid.uuid4().hex[:8]}")
        try:
            path.rename(aside)
        except OSError as error:
            raise ClipTrainError(f"the checkpoint {path} is damaged ({reason}) and cannot be moved: {error}") from error
        warn(
            f"the checkpoint {path} is damaged: {reason}; it is now {aside.name}, and the run continues "
            f"from step {instead}"
        )
        return {"folder": str(aside), "checkpoint": path.name, "reason": reason}


def saved_steps(run: Path) -> list[int]:
    """Returns the steps in the names of a run folder's checkpoints, oldest first, without reading them."""
    numbers = (path.name.removeprefix(_STEP) for path in (run / "checkpoints").glob(f"{_STEP}*"))
    return sorted(int(number) for number in numbers if number.isdecimal() and number == f"{int(number):08d}")


def _digest(state: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a state.json without its own entry."""
    rest = {key: value for key, value in state.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _generator_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_generators(states: Mapping[str, Tensor], world: World) -> None:
    """Restores the generators of this rank. On a rank that the saved run did not have, they keep their seed."""
    if (state := states.get(f"{world.rank}.cpu")) is not None:
        torch.set_rng_state(state)
    if world.device.type == "cuda" and (state := states.get(f"{world.rank}.cuda")) is not None:
        torch.cuda.set_rng_state(state, world.device)
