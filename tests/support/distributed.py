"""Runs functions in real processes that form a gloo group on loopback."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

TIMEOUT_S = 120
IMPORTED = [
    *("clip_train.trainer", "clip_train.commands.fit", "clip_train.tasks.coca", "clip_train.tasks.classifier"),
    *("torch._dynamo", "torch.distributed.checkpoint.default_planner", "torch.utils.tensorboard"),
]


def free_port() -> int:
    """A TCP port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets, for ranks of one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }


def forking() -> ForkServerContext:
    """Processes that are forked from a server that has imported what takes seconds, once for all tests of a process.

    The server has no threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def run_ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What `function(*args)` returns on each of `size` ranks, in rank order.

    Function, arguments and results are pickled: the function stands at the top of a module, results hold no tensors.
    """
    context = forking()
    port = free_port()
    pipes, processes = [], []
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(theirs, rank_environment(rank, size, port), function, args))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        answers = []
        for rank, pipe in enumerate(pipes):
            assert pipe.poll(TIMEOUT_S), f"rank {rank} gave no answer in {TIMEOUT_S} s"
            answers.append(pipe.recv())
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
    failures = [f"rank {rank}:\n{error}" for rank, (_, error) in enumerate(answers) if error]
    assert not failures, "\n".join(failures)
    return [result for result, _ in answers]


def _serve(pipe: Any, environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    try:
        pipe.send((function(*args), ""))
    except BaseException:
        pipe.send((None, traceback.format_exc()))
        raise
