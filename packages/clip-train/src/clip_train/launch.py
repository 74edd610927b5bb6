"""The variables with which a launcher tells each process its rank: torchrun, srun, mpirun, or the user."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from clip_train.errors import ClipTrainError

_ADVICE = "start the ranks with torchrun, srun or 'clip-train submit', or unset RANK and WORLD_SIZE for one process"
# Below the ports that Linux hands out to clients (32,768 and up).
_FIRST_PORT, _PORTS = 20_000, 12_500
_JOB_STRIDE = 127  # a prime: the steps of one job come to lie between those of its neighbours


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The rank of this process, and the address where the ranks meet."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """the rank on its machine"""
    host: str = ""
    """host of rank 0: MASTER_ADDR, or what the launcher says; empty for a single process"""
    port: int = 0
    """MASTER_PORT, or a port derived from the SLURM job and step; 0 for a single process"""


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """The names of the variables of one launcher."""

    name: str
    mark: str
    """the variable by which the launcher is recognised"""
    not_marks: frozenset[str] = frozenset()
    """values of the mark that belong to something else"""
    rank: str
    size: str
    local: str


PLAIN = Launcher(name="the environment", mark="WORLD_SIZE", rank="RANK", size="WORLD_SIZE", local="LOCAL_RANK")
LAUNCHERS = (
    # One that starts the processes of its own machine comes before one that may have started it there.
    Launcher(name="torchrun", mark="TORCHELASTIC_RUN_ID", rank="RANK", size="WORLD_SIZE", local="LOCAL_RANK"),
    Launcher(
        name="mpirun (Open MPI)",
        mark="OMPI_COMM_WORLD_RANK",
        rank="OMPI_COMM_WORLD_RANK",
        size="OMPI_COMM_WORLD_SIZE",
        local="OMPI_COMM_WORLD_LOCAL_RANK",
    ),
    Launcher(
        name="mpirun (MPICH, Intel MPI)",
        mark="MPI_LOCALRANKID",
        rank="PMI_RANK",
        size="PMI_SIZE",
        local="MPI_LOCALRANKID",
    ),
    # A batch script and the shell of salloc know a number of tasks, but they are no step: each is one process.
    Launcher(
        name="srun",
        mark="SLURM_STEP_ID",
        not_marks=frozenset({"4294967290", "4294967291"}),  # slurm.h: SLURM_INTERACTIVE_STEP, SLURM_BATCH_SCRIPT
        rank="SLURM_PROCID",
        size="SLURM_STEP_NUM_TASKS",
        local="SLURM_LOCALID",
    ),
)


def read_launch() -> Launch:
    """Reads the variables of the launcher that started this process; a single process if there is none.

    MASTER_ADDR and MASTER_PORT, where they are set, say where the ranks meet. Under srun this is the first host of the
    step and a port of the step's own. Raises ClipTrainError for an invalid value, and for RANK and WORLD_SIZE that
    contradict those of the launcher.
    """
    launcher = next(
        (known for known in LAUNCHERS if os.environ.get(known.mark, "") not in {"", *known.not_marks}), PLAIN
    )
    rank, size = _place(launcher)
    if size == 1 and launcher is not PLAIN:  # the only task of a step may hold ranks that were started by other means
        launcher = PLAIN
        rank, size = _place(launcher)
    if launcher.rank != PLAIN.rank:
        _refuse_contradiction(launcher, rank, size)
    local = _integer(launcher.local, "0")
    if size == 1:
        return Launch(local=local)
    step = launcher.name == "srun"
    host = os.environ.get("MASTER_ADDR", _first_host(os.environ.get("SLURM_STEP_NODELIST", "")) if step else "")
    if not host:
        raise ClipTrainError(f"MASTER_ADDR, the host of rank 0, is not set; {_ADVICE}")
    port = _integer("MASTER_PORT", str(_port_of_step()) if step else "", least=1, most=65_535)
    return Launch(rank=rank, size=size, local=local, host=host, port=port)


def _place(launcher: Launcher) -> tuple[int, int]:
    """Returns (rank, size)."""
    size = _integer(launcher.size, "1" if launcher is PLAIN else "", least=1)
    rank = _integer(launcher.rank, "0" if size == 1 else "")
    if rank >= size:
        raise ClipTrainError(f"{launcher.rank} = {rank} must be below {launcher.size} = {size}; {_ADVICE}")
    return rank, size


def _refuse_contradiction(launcher: Launcher, rank: int, size: int) -> None:
    found = {name: os.environ[name] for name in (PLAIN.rank, PLAIN.size) if name in os.environ}
    wanted = {PLAIN.rank: str(rank), PLAIN.size: str(size)}
    if any(wanted[name] != value for name, value in found.items()):
        ours = " and ".join(f"{name} = {value}" for name, value in found.items())
        raise ClipTrainError(
            f"{ours} contradict {launcher.rank} = {rank} and {launcher.size} = {size} of {launcher.name}: "
            f"unset {' and '.join(found)}, or start the ranks in another way than with {launcher.name}"
        )


def _first_host(nodes: str) -> str:
    """Returns the first host of a SLURM list: gpu-a03-ib of `gpu-a[03-05,09]-ib,gpu-b1`."""
    if os.environ.get("SLURM_STEP_NUM_NODES") == "1":
        return "localhost"  # names of nodes need not be in the name service
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0] if first else "")


def _port_of_step() -> int:
    """Returns a port that differs between the steps of a job, and between jobs with near numbers."""
    job, step = _integer("SLURM_JOB_ID", "", most=2**32), _integer("SLURM_STEP_ID", "", most=2**32)
    return _FIRST_PORT + (_JOB_STRIDE * job + step) % _PORTS


def _integer(name: str, default: str, least: int = 0, most: int = 1_000_000) -> int:
    text = os.environ.get(name, default)
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        found = f"= {text!r}" if name in os.environ else "is not set and"
        raise ClipTrainError(f"{name} {found} must be an integer from {least} to {most}; {_ADVICE}")
    return int(text)
