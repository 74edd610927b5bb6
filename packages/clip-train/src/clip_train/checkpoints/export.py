"""Weights of a checkpoint as one safetensors file with its description, which clip-models and OpenCLIP load."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_core.store import Store
from clip_models import CLIP, ModelSpec, save_model
from clip_models.weights.convert.prefixes import strip_marks
from clip_models.weights.fit import build_empty
from clip_models.weights.tensorfiles import write_safetensors
from clip_train.adapters import add_adapters, merged
from clip_train.checkpoints.layout import Damaged, Folder, Pieces
from clip_train.checkpoints.saver import load_state, read_description
from clip_train.checkpoints.state import RunState
from clip_train.config import FitConfig
from clip_train.errors import ClipTrainError
from clip_train.optim.averages import Ema, evaluation_weights
from clip_train.optim.build import make_optimizer
from clip_train.parallel import World

_HERE = World(0, 1, torch.device("cpu"))


def export(config: FitConfig, steps: list[int], output: str, *, ema: bool = False) -> None:
    """Writes the weights of a step, or the mean over several steps, to `output`, a path or URL of a .safetensors file.

    They are the averages of `optim.ema` if `ema` is true, and of a schedule-free optimizer its averaged weights. Means
    are computed in float64. Raises ClipError, also for a damaged checkpoint.
    """
    folder = Folder(config.run)
    total = dict[str, Tensor]()
    for step in steps:
        state, table = _described(folder, step)
        weights = _weights_of(config, folder, state, table, ema)
        for name, tensor in weights.items():
            exact = tensor.double() if tensor.is_floating_point() and len(steps) > 1 else tensor
            total[name] = total[name] + exact if name in total and tensor.is_floating_point() else exact
    if len(steps) > 1:
        total = {name: tensor / len(steps) if tensor.is_floating_point() else tensor for name, tensor in total.items()}
    extra = config.task.separate(total, state["task"])
    model = build_empty(ModelSpec.from_dict(state["model"]))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(total[name])
    made_by = {"clip_train.config": config.fingerprint(), "clip_train.steps": ",".join(map(str, steps))}
    name = output.replace("\\", "/").rsplit("/", 1)[-1]
    store = Store(output[: -len(name)] or ".")
    with store.staging() as place:
        for kind, file in extra.items():
            own = name.replace("model", kind) if "model" in name else f"{kind}-{name}"
            write_safetensors(
                place / own, {key: t.float().contiguous() for key, t in file.tensors.items()}, file.metadata
            )
            store.publish(place / own, own)
        save_model(place / name, model, model.spec, made_by)
        store.publish(place / name, name)


def _described(folder: Folder, step: int) -> tuple[dict[str, Any], dict[str, Pieces]]:
    found = read_description(folder, step)
    if isinstance(found, str):
        raise ClipTrainError(f"the checkpoint {folder.where(step)} is damaged: {found}; export another step")
    return found


def _weights_of(
    config: FitConfig, folder: Folder, state: Mapping[str, Any], table: Mapping[str, Pieces], ema: bool
) -> dict[str, Tensor]:
    """Returns the weights of one checkpoint, with adapters merged."""
    model = build_empty(ModelSpec.from_dict(state["model"]))
    if config.model.lora.rank:
        add_adapters(model, config.model.lora, seed=0)
    config.task.complete(model, state["task"])
    if ema and not any(key.startswith("ema/") for key in table):
        raise ClipTrainError(f"{folder.where(state['step'])} has no averaged weights: optim.ema.decay was 0")
    _freeze(model, table)
    optimizer = make_optimizer(model, config.optim)
    parts = {"ema": Ema(model, config.optim.ema)} if ema else {}
    read = {"model", *parts, *(["optimizer"] if hasattr(optimizer, "eval") and not ema else [])}
    wanted = {key: each for key, each in table.items() if key.partition("/")[0] in read}
    try:
        load_state(RunState(model=model, optimizer=optimizer, parts=parts), folder, state, wanted, _HERE)
    except Damaged as error:
        raise ClipTrainError(
            f"the checkpoint {folder.where(state['step'])} is damaged: {error}; export another step"
        ) from error
    context: AbstractContextManager[None] = parts["ema"].swapped() if ema else evaluation_weights(optimizer)
    with context:
        return merged({name: tensor.clone() for name, tensor in model.state_dict().items()}, config.model.lora)


def _freeze(model: CLIP, table: Mapping[str, Pieces]) -> None:
    """Freezes what the run did not train: parameters without a state of the optimizer, if others have one."""
    states = {key.removeprefix("optimizer/").rsplit("|", 1)[0] for key in table if key.startswith("optimizer/")}
    named = {strip_marks(name): parameter for name, parameter in model.named_parameters()}
    if states & named.keys():
        for name, parameter in named.items():
            parameter.requires_grad_(name in states)


def chosen_steps(folder: Folder, at: str, average: str) -> list[int]:
    """Returns the saved steps that `RUN@at` and `average`, such as last:5, name. Raises ClipTrainError."""
    saved = folder.steps()
    listed = f"saved are {', '.join(map(str, saved))}" if saved else "there is no checkpoint"
    if at and int(at) not in saved:
        raise ClipTrainError(f"{folder.store.url} has no checkpoint of step {at}: {listed}")
    if not saved:
        raise ClipTrainError(f"{folder.store.url} has no checkpoint to export")
    steps = [step for step in saved if not at or step <= int(at)]
    if not average:
        return steps[-1:]
    found = re.fullmatch(r"last:([1-9]\d*)", average)
    if not found:
        raise ClipTrainError(f"--average {average!r} must be last:N, the mean of the newest N checkpoints")
    count = int(found[1])
    if count > len(steps):
        raise ClipTrainError(
            f"--average {average} needs {count} checkpoints: {listed} (checkpoint.keep keeps the newest)"
        )
    return steps[-count:]


def default_output(run: str, steps: list[int], *, ema: bool) -> str:
    """Returns the name of an exported file in the run folder."""
    name = f"model-{steps[-1]:08d}" + (f"-mean{len(steps)}" if len(steps) > 1 else "") + ("-ema" if ema else "")
    return str(Path(run) / f"{name}.safetensors") if "://" not in run else f"{run.rstrip('/')}/{name}.safetensors"
