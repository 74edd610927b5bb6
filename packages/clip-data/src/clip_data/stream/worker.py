"""A worker process: makes slices of batches until its parent is gone.

It is started as a fresh interpreter rather than by multiprocessing, whose spawn would import the user's main script,
and torch with it, in every worker.
"""

import json
import mmap
import os
import pickle
import signal
import subprocess
import sys
import traceback
import weakref
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from clip_core import ClipError
from clip_data.errors import ClipDataError

START = "import json,sys; sys.path[:]=json.loads(sys.argv[1]); from clip_data.stream.worker import main; main()"
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
STATES = {"R": "running", "S": "sleeping", "D": "waiting for storage", "T": "stopped", "t": "traced", "Z": "dead"}
IMPORTABLE = "define it in a module that can be imported, or use workers=0"
POLL = 1.0  # seconds between checks of the parent, since a fork of it may keep the pipe open

_started: weakref.WeakSet[subprocess.Popen[bytes]] = weakref.WeakSet()


class ParentGone(BaseException):
    """The parent has closed the stream, or died."""


def start(pipe: int, memory: int, plan: int, low: int, high: int) -> subprocess.Popen[bytes]:
    """Starts a worker that makes samples [low, high) of batches.

    It communicates over the descriptor `pipe`, writes to the memory of `memory` and reads (Plan, slots) from `plan`.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", START, json.dumps(sys.path), *map(str, (pipe, memory, plan, os.getpid(), low, high))],
        pass_fds=(pipe, memory, plan),
        stdin=subprocess.DEVNULL,
        env={**os.environ, **ONE_THREAD},
    )
    _started.add(process)
    return process


def kill_workers() -> None:
    """Kills all workers of this process without waiting for their end; a stopped worker would outlive it."""
    for process in list(_started):
        process.kill()


def state_of(pid: int | None) -> str:
    """Returns the state of a process, such as "running" or "stopped"."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return STATES.get(file.read().rpartition(")")[2].split()[0], "in an unknown state")
    except OSError:
        return "in an unknown state"


def main() -> None:
    """Answers (batch, slot) with ("done", Slice), or with ("error" | "bug", message) and then ends."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        # The parent handles signals to the whole job, and still needs the batches under way.
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    pipe, memory, plan, parent, low, high = map(int, sys.argv[2:8])
    connection = Connection(pipe)
    with suppress(ParentGone):
        try:
            _serve(connection, memory, plan, parent, low, high)
        except ClipError as error:
            _send(connection, "error", str(error))
        except Exception:
            _send(connection, "bug", traceback.format_exc())


def _serve(connection: Connection, memory: int, task: int, parent: int, low: int, high: int) -> None:
    from clip_data.stream.batches import BatchMaker
    from clip_data.stream.ring import Ring

    try:
        with mmap.mmap(task, 0, access=mmap.ACCESS_READ) as file:
            plan, slots = pickle.loads(file)
    except (AttributeError, ImportError) as error:
        raise ClipDataError(f"a worker process cannot load the tokenizer ({error}): {IMPORTABLE}") from error
    maker = BatchMaker(plan)
    ring = Ring(plan, slots, memory)
    while True:
        batch, slot = pickle.loads(_receive(connection, parent))
        images, texts = ring.arrays(slot)
        _send(connection, "done", maker.make(batch, low, high, images[low:high], texts[low:high]))


def _receive(connection: Connection, parent: int) -> bytes:
    try:
        while not connection.poll(POLL):
            if os.getppid() != parent:
                raise ParentGone
        return connection.recv_bytes()
    except (EOFError, OSError) as error:
        raise ParentGone from error


def _send(connection: Connection, kind: str, answer: Any) -> None:
    try:
        connection.send((kind, answer))
    except OSError as error:
        raise ParentGone from error
