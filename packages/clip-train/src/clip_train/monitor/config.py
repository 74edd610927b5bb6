"""The config of what is measured of a run, and where it is shown. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from clip_train.errors import ClipTrainError


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Where the log goes beside log.jsonl, TensorBoard and live.html, and what it is compared with."""

    wandb: str = ""
    """project of Weights & Biases to log to; WANDB_MODE, WANDB_ENTITY and the like are its own variables"""
    mlflow: str = ""
    """experiment of MLflow to log to, at MLFLOW_TRACKING_URI, by default in the run folder"""
    peak_tflops: float = 0.0
    """10¹² operations a second that one device can do in `train.precision`, for `mfu`; 0 takes those of a table, or
    measures a product of matrices on a device that is not in it"""

    def check(self) -> None:
        """Raises ClipTrainError for a value that is not valid, and for a library that is not installed."""
        if self.peak_tflops < 0:
            raise ClipTrainError(f"log.peak_tflops = {self.peak_tflops} must be at least 0")
        for name in ("wandb", "mlflow"):
            project = getattr(self, name)
            if project and find_spec(name) is None:
                raise ClipTrainError(
                    f"log.{name} = {project!r} needs {name}, which is not installed; pip install 'clip-train[{name}]'"
                )


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A window of steps that torch.profiler records, to a Chrome trace of each rank in the folder `profile`."""

    start: int = 0
    """first step of the window, from 1; 0 records nothing. The first steps of a process are slower than the rest"""
    steps: int = 3
    """steps of the window"""
    memory: bool = False
    """also write the history of CUDA's memory in the window, for https://docs.pytorch.org/memory_viz"""

    def check(self, device: str, run: str) -> None:
        """Raises ClipTrainError for a value that is not valid or has no effect."""
        if self.start < 0:
            raise ClipTrainError(f"profile.start = {self.start} must be at least 0")
        if self.start and "://" in run:
            raise ClipTrainError(f"profile.start writes traces to local files, but run = {run!r} is a URL: omit it")
        if self.steps < 1:
            raise ClipTrainError(f"profile.steps = {self.steps} must be at least 1")
        if self.memory and not self.start:
            raise ClipTrainError("profile.memory requires profile.start")
        if self.memory and device == "cpu":
            raise ClipTrainError("profile.memory is the history of CUDA's memory, but train.device = 'cpu': omit it")
