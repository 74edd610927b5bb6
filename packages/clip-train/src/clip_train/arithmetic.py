"""Threads, generators and kernels of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch

from clip_core.config import fingerprint
from clip_train.parallel import World

if TYPE_CHECKING:
    from clip_train.config import TrainConfig

Deterministic = Literal["off", "warn", "strict"]


def deterministic_mode(config: TrainConfig, device: torch.device) -> Deterministic:
    """Returns the mode that "auto" stands for: strict on a CPU, where it costs nothing, and off on CUDA."""
    if config.deterministic == "auto":
        return "strict" if device.type == "cpu" else "off"
    return config.deterministic


@contextmanager
def arithmetic(config: TrainConfig, world: World) -> Iterator[None]:
    """Sets threads, generators and kernels as the config says, and restores the caller's at the end.

    Under strict, equal runs have equal bits, and an operation that cannot promise it raises an error.
    """
    mode, cuda = deterministic_mode(config, world.device), world.device.type == "cuda"
    kernels: Any = torch.utils.deterministic
    threads, filling = torch.get_num_threads(), kernels.fill_uninitialized_memory
    algorithms = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[world.device] if cuda else []):
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(int(fingerprint(["train", config.seed, world.rank])[:15], 16))
        if cuda and mode != "off":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(mode != "off", warn_only=mode == "warn")
        # Filling every new tensor costs a pass over the memory, and nothing here reads what it has not written.
        kernels.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(algorithms, warn_only=only_warns)
            kernels.fill_uninitialized_memory = filling
