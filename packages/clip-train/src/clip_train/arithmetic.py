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
_LEVELS: tuple[Deterministic, ...] = ("off", "warn", "strict")  # by the number that PyTorch gives them


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
    before = torch.get_deterministic_debug_mode()
    with torch.random.fork_rng(devices=[world.device] if cuda else []):
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(int(fingerprint(["train", config.seed, world.rank])[:15], 16))
        if cuda and mode != "off":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        _choose_algorithms(_LEVELS.index(mode), config.compile != "off")
        # Filling every new tensor costs a pass over the memory, and nothing here reads what it has not written.
        kernels.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            _choose_algorithms(before, config.compile != "off")
            kernels.fill_uninitialized_memory = filling


def _choose_algorithms(level: int, compiled: bool) -> None:
    if compiled:  # tells the compiler too, which takes a second to import
        torch.use_deterministic_algorithms(level > 0, warn_only=level == 1)
    else:
        torch.set_deterministic_debug_mode(level)
