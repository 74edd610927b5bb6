"""A check of every rank before the first step: products, the links between the ranks, and the storage of the run."""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from clip_train.errors import ClipTrainError
from clip_train.parallel import World

REPEATS = 5  # the median of so many counts
SIDE = {"cpu": 512, "cuda": 8192}  # of the matrices: some milliseconds for a product
SENT = 16 * 2**20  # bytes of an all-reduce
STORED = 32 * 2**20  # bytes that each rank writes and reads
Rates = dict[str, float]


def check_nodes(world: World, folder: Path, share: float) -> dict[str, Any]:
    """Measures each rank and returns `{"hosts": […], "matmul_gflops": […], …}`, in rank order.

    Raises ClipTrainError, on every rank, if a rank computes or stores wrongly, or if one of its rates is below `share`
    of the median of all ranks.
    """
    rates: Rates = {}
    problem = ""
    for probe in PROBES:
        try:
            rates |= probe(world, folder)
        except (OSError, ClipTrainError) as error:
            problem = problem or str(error)
    found = world.gather((socket.gethostname(), rates, problem))
    broken = [f"rank {rank} on {host}: {problem}" for rank, (host, _, problem) in enumerate(found) if problem]
    if broken:
        raise ClipTrainError(f"the check of the nodes failed (train.node_check): {'; '.join(broken)}")
    slow = [
        f"rank {rank} on {host} has {name} = {own[name]:.3g}, below {share:g} of the median {middle:.3g}"
        for name, middle in _medians([own for _, own, _ in found]).items()
        for rank, (host, own, _) in enumerate(found)
        if own[name] < share * middle
    ]
    if slow:
        raise ClipTrainError(
            f"the check of the nodes failed: {'; '.join(slow)}; leave that node out, or lower train.node_check"
        )
    return {"hosts": [host for host, _, _ in found]} | {
        name: [round(own[name], 3) for _, own, _ in found] for name in found[0][1]
    }


def _medians(ranks: list[Rates]) -> Rates:
    return {name: statistics.median(own[name] for own in ranks) for name in ranks[0]}


def _matmul(world: World, folder: Path) -> Rates:
    """Products as in the towers: bf16 on CUDA, fp32 on a CPU. The same product twice must have the same bits."""
    device, side = world.device, SIDE[world.device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(world.rank)
    left, right = (torch.randn(side, side, generator=generator, device=device, dtype=dtype) for _ in range(2))
    first = left @ right
    seconds: list[float] = []
    for _ in range(REPEATS):
        with _timed(seconds, device):
            again = left @ right
        if not torch.equal(first, again):
            raise ClipTrainError("two products of the same matrices differ: its processor or memory is damaged")
    return {"matmul_gflops": 2 * side**3 / statistics.median(seconds) / 1e9}


def _all_reduce(world: World, folder: Path) -> Rates:
    """Bytes that each link carries per second: 2 (W - 1) / W of the message."""
    if world.size == 1:
        return {}
    message = torch.ones(SENT // 4, device=world.device)
    seconds: list[float] = []
    for _ in range(1 + REPEATS):  # the first one connects
        message.fill_(1)
        with world.collective(), _timed(seconds, world.device):
            dist.all_reduce(message)
        if not bool((message == world.size).all()):
            raise ClipTrainError("the sum over all ranks is wrong: a network adapter or its driver is damaged")
    return {"all_reduce_mb_per_s": SENT * 2 * (world.size - 1) / world.size / statistics.median(seconds[1:]) / 1e6}


def _disk(world: World, folder: Path) -> Rates:
    """Writes a file through to the storage, drops it from memory, and reads it."""
    path, data = folder / f".node-check-{world.rank}", os.urandom(STORED)
    cpu = torch.device("cpu")
    writing: list[float] = []
    reading: list[float] = []
    try:
        with world.watch.storing(), path.open("wb+", buffering=0) as file:
            with _timed(writing, cpu):
                file.write(data)
                os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            with _timed(reading, cpu):
                found = file.read()
    finally:
        with suppress(OSError):
            path.unlink()
    if found != data:
        raise ClipTrainError(f"{path} does not hold what was written: its storage is damaged")
    return {"disk_write_mb_per_s": STORED / writing[0] / 1e6, "disk_read_mb_per_s": STORED / reading[0] / 1e6}


@contextmanager
def _timed(seconds: list[float], device: torch.device) -> Iterator[None]:
    """Appends the seconds of the block, and of what it started on the device."""
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    yield
    wait()
    seconds.append(time.perf_counter() - began)


PROBES: list[Callable[[World, Path], Rates]] = [_matmul, _all_reduce, _disk]
