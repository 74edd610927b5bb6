"""A worker process: fills slices of batches until its parent is gone.

It is started as a fresh interpreter rather than by multiprocessing, whose spawn would import the user's main script,
and torch with it, in every worker.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from clip_data.errors import ClipDataError

START = "import json,sys; sys.path[:]=json.loads(sys.argv[1]); from clip_data.stream.worker import main; main()"
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
POLL = 1.0  # seconds between looks at the parent, for the case that a fork of it keeps our pipe open


class ParentGone(Exception):
    """The parent has closed the stream, or died."""


def start(pipe: int, memory: int) -> subprocess.Popen[bytes]:
    """Starts a worker that talks through the descriptor `pipe` and writes to the memory behind `memory`."""
    arguments = [json.dumps(sys.path), str(pipe), str(memory), str(os.getpid())]
    return subprocess.Popen(
        [sys.executable, "-c", START, *arguments],
        pass_fds=(pipe, memory),
        stdin=subprocess.DEVNULL,
        env={**os.environ, **ONE_THREAD},
    )


def main() -> None:
    """Answers (batch, slot) with ("done", Slice), or with ("error" | "bug", message) and leaves."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        # A signal for the whole job is the parent's to answer: it still wants the batches under way.
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    pipe, memory, parent = map(int, sys.argv[2:5])
    connection = Connection(pipe)
    with suppress(ParentGone):
        try:
            _serve(connection, memory, parent)
        except ParentGone:
            raise
        except ClipDataError as error:
            _send(connection, "error", str(error))
        except Exception:
            _send(connection, "bug", traceback.format_exc())


def _serve(connection: Connection, memory: int, parent: int) -> None:
    from clip_data.stream.batches import BatchMaker
    from clip_data.stream.ring import Ring

    message = _receive(connection, parent)
    try:
        plan, slots, low, high = pickle.loads(message)
    except (AttributeError, ImportError) as error:
        raise ClipDataError(
            f"a worker process cannot load the tokenizer: {error}; "
            "define it in a module that can be imported, or use workers=0"
        ) from error
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
