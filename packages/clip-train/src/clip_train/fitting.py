"""One training run, from its config to its weights."""

from __future__ import annotations

from clip_train.config import FitConfig, resolve
from clip_train.runfolder import FitResult, RunFolder


def fit(config: FitConfig) -> FitResult:
    """Trains, or continues a run that was stopped, or returns the result of a finished one.

    Under torchrun every rank calls it. Raises ClipError; inputs are checked before the first
    write. SIGTERM and SIGUSR1 save a checkpoint and raise Requeue, which a script lets pass: it ends
    the process with exit code 75.
    """
    folder = RunFolder(resolve(config))
    if result := folder.finished():
        return result
    # torch, and what stands on it, only after the config and the folder have passed.
    from clip_train.trainer import train

    return train(config, folder)
