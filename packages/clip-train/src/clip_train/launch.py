"""The environment variables that torchrun sets for each rank."""

from __future__ import annotations

import os
from dataclasses import dataclass

from clip_train.errors import ClipTrainError

_ADVICE = "start the ranks with torchrun or train.sbatch, or unset RANK and WORLD_SIZE to train in one process"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The rank of this process, and the address where the ranks meet."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """LOCAL_RANK: the rank on its machine"""
    host: str = ""
    """MASTER_ADDR; empty for a single process"""
    port: int = 0
    """MASTER_PORT"""


def read_launch() -> Launch:
    """Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Raises ClipTrainError for an invalid value."""
    size = _integer("WORLD_SIZE", "1", least=1)
    rank = _integer("RANK", "0" if size == 1 else "")
    local = _integer("LOCAL_RANK", "0")
    if rank >= size:
        raise ClipTrainError(f"RANK = {rank} must be below WORLD_SIZE = {size}; {_ADVICE}")
    if size == 1:
        return Launch(local=local)
    host = os.environ.get("MASTER_ADDR", "")
    if not host:
        raise ClipTrainError(f"MASTER_ADDR, the host of rank 0, is not set; {_ADVICE}")
    port = _integer("MASTER_PORT", "", least=1, most=65_535)
    return Launch(rank=rank, size=size, local=local, host=host, port=port)


def _integer(name: str, default: str, least: int = 0, most: int = 1_000_000) -> int:
    text = os.environ.get(name, default)
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        found = f"= {text!r}" if name in os.environ else "is not set and"
        raise ClipTrainError(f"{name} {found} must be an integer from {least} to {most}; {_ADVICE}")
    return int(text)
