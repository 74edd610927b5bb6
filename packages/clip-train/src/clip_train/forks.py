"""A run that starts from a checkpoint of another one (`parent`), with another config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clip_core.files import sha256_of
from clip_core.store import Store
from clip_train.checkpoints.layout import Damaged, Folder
from clip_train.checkpoints.names import split_run
from clip_train.checkpoints.openclip import is_openclip, load_openclip
from clip_train.checkpoints.saver import Checkpoints, Resumed
from clip_train.config import FitConfig
from clip_train.errors import ClipTrainError
from clip_train.parallel import World
from clip_train.runfolder import read_run

FORK = "fork.json"
_Begin = tuple[int, int, dict[str, Any]]


def fork(config: FitConfig, checkpoints: Checkpoints, stream: Any, steps: int, world: World, samples: int) -> Resumed:
    """Loads the parent's checkpoint and writes fork.json. Returns where the run begins.

    A fork begins at the samples that the parent has seen: with another batch size its step has another number. Those of
    OpenCLIP's epoch_N.pt are N times `samples`, an epoch. Its stream begins after the samples that the parent has read,
    which are more if it has gone back from a spike. Raises ClipTrainError if the parent does not fit.
    """
    seen, read, record = (_openclip if is_openclip(config.parent) else _parent)(config, checkpoints, world, samples)
    batch = config.train.batch_size
    begin = seen // batch
    if begin >= steps:
        raise ClipTrainError(
            f"parent = {config.parent!r} is at step {begin}, and the run ends at step {steps}: raise its length"
        )
    ahead = -(-(read - seen) // batch)  # what a rewound parent has read besides, in whole batches
    stream.load_state_dict({**stream.state_dict(), "step": begin + ahead})
    world.lead(lambda: Store(config.run).write_json(FORK, {**record, "begins_at": begin}))
    # From here on the parent is not needed: it may remove this checkpoint.
    checkpoints.save(begin, stream.state_dict(), {})
    checkpoints.wait()
    return Resumed(begin, {}, {})


def _parent(config: FitConfig, checkpoints: Checkpoints, world: World, samples: int) -> _Begin:
    """Loads a checkpoint of a run. Returns (samples seen, samples read, the record for fork.json)."""
    run, at = split_run(config.parent)
    parent = world.lead(lambda: _checked(config, run))
    step = int(at) if at else max(world.lead(Folder(run).steps), default=0)
    seen, batch = step * parent.train.batch_size, config.train.batch_size
    if seen % batch:
        raise ClipTrainError(
            f"parent = {config.parent!r} has seen {seen:,} samples, which are no whole number of steps of "
            f"train.batch_size = {batch}: choose a step or a batch size that divides"
        )
    try:
        state = checkpoints.load_from(Folder(run), step)
    except Damaged as error:
        raise ClipTrainError(f"parent = {config.parent!r} is damaged: {error}; choose another step") from error
    read = state["stream"]["step"] * parent.train.batch_size
    return seen, read, {"run": run, "step": step, "config": parent.fingerprint(), "state": state["sha256"]}


def _openclip(config: FitConfig, checkpoints: Checkpoints, world: World, samples: int) -> _Begin:
    """Loads a checkpoint of OpenCLIP, on every rank. Returns the same as `_parent`."""
    if config.optim.name != "adamw":
        raise ClipTrainError(f"parent = {config.parent!r} has AdamW's state: set optim.name = 'adamw'")
    path = Path(config.parent)
    epoch = load_openclip(checkpoints.state, path)
    record = {"run": config.parent, "epoch": epoch, "sha256": world.lead(lambda: sha256_of(path))}
    return epoch * samples, epoch * samples, record


def _checked(config: FitConfig, run: str) -> FitConfig:
    parent = read_run(run)
    for name in ("name", "options"):
        theirs, ours = getattr(parent.optim, name), getattr(config.optim, name)
        if theirs != ours:
            raise ClipTrainError(
                f"optim.{name} = {ours!r} cannot take over the state of the parent's {theirs!r}: keep it, or start "
                f"from weights alone with 'clip-train export {config.parent}' and model.pretrained"
            )
    return parent
