"""Exact contrastive training with checkpoints that resume to the bit."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_train.config import (
        CheckpointConfig,
        DataConfig,
        FitConfig,
        ModelConfig,
        OptimConfig,
        Source,
        TrainConfig,
        ValConfig,
    )
    from clip_train.errors import ClipTrainError, Requeue
    from clip_train.fitting import fit
    from clip_train.loss import contrastive_loss
    from clip_train.runfolder import FitResult

_MODULE_OF = {
    "CheckpointConfig": "config",
    "ClipTrainError": "errors",
    "DataConfig": "config",
    "FitConfig": "config",
    "FitResult": "runfolder",
    "ModelConfig": "config",
    "OptimConfig": "config",
    "Requeue": "errors",
    "Source": "config",
    "TrainConfig": "config",
    "ValConfig": "config",
    "contrastive_loss": "loss",
    "fit": "fitting",
}

__all__ = [
    "CheckpointConfig",
    "ClipTrainError",
    "DataConfig",
    "FitConfig",
    "FitResult",
    "ModelConfig",
    "OptimConfig",
    "Requeue",
    "Source",
    "TrainConfig",
    "ValConfig",
    "contrastive_loss",
    "fit",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
