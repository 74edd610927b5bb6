"""A run that goes on to a greater length (`extend`), from the last checkpoint on which both lengths agree."""

from __future__ import annotations

from clip_core.store import Store
from clip_train.checkpoints.layout import Damaged, Folder
from clip_train.config import FitConfig, plan_of
from clip_train.errors import ClipTrainError
from clip_train.optim.build import learning_rate
from clip_train.optim.plan import Plan


def stable_step(plan: Plan, batch_size: int) -> int:
    """Returns the last step before the cooldown, from which a longer run can go on; -1 without a cooldown."""
    return (plan.total - plan.cooldown) // batch_size if plan.cooldown else -1


def go_on(config: FitConfig, steps: int, samples: int) -> None:
    """Prepares the folder of a run that was `steps` long or shorter. Changes nothing if the length is the same.

    Checkpoints after the one that both lengths have in common, such as those of the cooldown, are set aside as
    replaced-…, and the final weights are renamed. `samples` is the size of an epoch. Raises ClipTrainError if there is
    no such checkpoint, or if the run would become shorter.
    """
    folder = Folder(config.run)
    before = _length(folder)
    if before is None or before == steps:
        return
    if before > steps:
        raise ClipTrainError(
            f"{config.run} is a run of {before} steps, and {steps} are fewer: a run can only be made longer; start a "
            "shorter one with --from in another folder"
        )
    saved = folder.steps()
    agreed = _agreed(config, before, steps, samples, most=saved[-1])
    common = [step for step in saved if step <= agreed]
    if not common:
        raise ClipTrainError(
            f"{config.run} cannot go on from {before} to {steps} steps: optim.schedule = {config.optim.schedule!r} has "
            f"other learning rates from step {agreed + 1} on if the run is longer, and no checkpoint is that early; "
            f"choose another run folder and --from {config.run}@{saved[-1]}, which records the change"
        )
    for step in saved:
        if step > common[-1]:
            folder.set_aside(step, "replaced")
    store = Store(config.run)
    store.remove("done.json")
    for name in ("model", "model-ema"):
        if store.exists(f"{name}.safetensors"):
            with store.trying("rename", name):
                kept = store.full(f"{name}-{before:08d}.safetensors")
                store.fs.mv(store.full(f"{name}.safetensors"), kept)


def _length(folder: Folder) -> int | None:
    """Returns the length in steps that the newest checkpoint was saved for; None without a readable one."""
    for step in reversed(folder.steps()):
        try:
            return int(folder.read_state(step)["steps"])
        except Damaged:
            continue
    return None


def _agreed(config: FitConfig, before: int, steps: int, samples: int, most: int) -> int:
    """Returns the number of steps, at most `most`, in which both lengths have the same learning rates."""
    batch = config.train.batch_size
    old, new = (learning_rate(config.optim, plan_of(config, length, samples), batch) for length in (before, steps))
    return next((step for step in range(most) if old(step) != new(step)), most)
