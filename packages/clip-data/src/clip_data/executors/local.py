"""The local executor: processes on this machine, each of which may die without the others."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from clip_data.dataset import Unit
from clip_data.executors.base import Executor, ExecutorConfig, Outcome, Task, attempt
from clip_data.stream.worker import state_of

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
ENDING_SECONDS = 10.0  # after which an idle worker that does not end is killed
POLL_SECONDS = 1.0  # between checks of workers that do not answer
STOPPED_SECONDS = 5.0  # until a worker that someone has stopped is replaced

log = logging.getLogger(__name__)


class LocalExecutor(Executor):
    """One process per worker, each with one unit at a time, so that a death counts for the right unit.

    Processes are spawned: a script that uses this requires `if __name__ == "__main__":`.
    """

    def __init__(self, config: ExecutorConfig) -> None:
        super().__init__(config)
        self.window = config.workers or len(os.sched_getaffinity(0))
        self._task = b""
        self._running: dict[Connection, _Worker] = {}
        self._looked = 0.0

    def start(self, task: Task) -> None:
        self._task = pickle.dumps(task)

    def submit(self, unit: Unit) -> None:
        idle = next((worker for worker in self._running.values() if worker.unit is None), None)
        if idle is None:
            idle = _Worker(self._task)
            self._running[idle.connection] = idle
        idle.give(unit)

    def collect(self) -> Iterator[tuple[Unit, Outcome]]:
        self._kill_stuck()
        for ready in wait(list(self._running), POLL_SECONDS):
            assert isinstance(ready, Connection)
            worker = self._running[ready]
            unit, outcome = worker.unit, worker.take()
            if outcome is None:
                outcome = Outcome(death=self._bury(worker))
            if unit is not None:
                yield unit, outcome

    def _kill_stuck(self) -> None:
        """Kills workers that were stopped by a signal, or whose unit takes too long; they are dead at the next read."""
        now = time.monotonic()
        # Limited, since all processes may have been stopped together, as by Ctrl-Z, and continued.
        passed, self._looked = min(now - self._looked, 2 * POLL_SECONDS), now
        for worker in self._running.values():
            if worker.unit is None or worker.stuck:
                continue
            worker.busy += passed
            worker.stopped = worker.stopped + passed if state_of(worker.process.pid) == "stopped" else 0.0
            if worker.stopped > STOPPED_SECONDS:
                worker.stuck = "a stop by a signal"
            elif worker.busy > self.config.timeout:
                worker.stuck = f"no answer within {self.config.timeout:g} s (timeout)"
            if worker.stuck:
                process = worker.process
                log.warning("worker process %d, unit %s: %s; killed", process.pid, worker.unit.name, worker.stuck)
                process.kill()

    def stop(self) -> None:
        for worker in self._running.values():
            if worker.unit is None:
                worker.connection.close()  # the worker reads an end of file and ends by itself
            else:
                worker.process.kill()
        for worker in list(self._running.values()):
            self._bury(worker)

    def _bury(self, worker: _Worker) -> str:
        """Removes a worker that is dead or ending; returns how it died."""
        del self._running[worker.connection]
        worker.connection.close()
        worker.process.join(ENDING_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join(ENDING_SECONDS)
        code = worker.process.exitcode or 0
        with contextlib.suppress(ValueError):  # it waits for storage and ends later
            worker.process.close()
        if worker.stuck:
            return worker.stuck
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class _Worker:
    """The driver's end of a worker process."""

    def __init__(self, payload: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.unit: Unit | None = None
        self.busy = self.stopped = 0.0  # seconds, since it has its unit and since it was seen running
        self.stuck = ""  # why it was killed
        self.process: SpawnProcess = context.Process(
            target=_serve, args=(payload, theirs, os.getpid()), name="clip-data-worker"
        )
        self.process.start()
        theirs.close()  # only the worker has the other end: its death is an end of file

    def give(self, unit: Unit) -> None:
        self.unit, self.busy = unit, 0.0
        with contextlib.suppress(OSError):  # it died while idle, which the next read shows
            self.connection.send(unit)

    def take(self) -> Outcome | None:
        """Returns the outcome of the current unit; None if the worker is dead."""
        try:
            outcome: Outcome = self.connection.recv()
        except (EOFError, OSError):
            return None
        self.unit = None
        return outcome


def _serve(payload: bytes, connection: Connection, driver: int) -> None:
    """Runs the worker process: receives units and sends outcomes, until the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver handles Ctrl-C and ends the workers
    # The kernel kills even a worker whose C code holds Python's lock, when the thread that started it ends; that thread
    # is in `run`. It sends nothing for a driver that died before this call: its pipe still holds a unit, whose result
    # must not be committed, because what the driver kept alive, such as a server of the images, is gone too.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:
        return
    task: Task | None = None

    def run(unit: Unit) -> dict[str, Any]:
        nonlocal task
        task = task or pickle.loads(payload)
        return task(unit)

    while True:
        try:
            unit = connection.recv()
        except EOFError:
            return
        connection.send(attempt(run, unit))
