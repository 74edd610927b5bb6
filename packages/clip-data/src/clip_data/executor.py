"""Executors: where the units of a stage run. The local one is a set of processes that survive each other's death."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Protocol, Self

from clip_core import ClipError
from clip_core.registry import Registry
from clip_data.dataset import Unit
from clip_data.errors import ClipDataError
from clip_data.stream.worker import state_of

Task = Callable[[Unit], dict[str, Any]]
"""Picklable; does one unit, writes its files and then its commit record, and returns that record."""


PR_SET_PDEATHSIG = 1  # of linux/prctl.h
ENDING_SECONDS = 10.0  # what an idle worker may take to end before it is killed
POLL_SECONDS = 1.0  # between looks at workers that give no answer
STOPPED_SECONDS = 5.0  # until a worker that someone has stopped is replaced

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExecutorConfig:
    """Where the units of a stage run."""

    kind: str = "local"
    """local: processes on this machine; ray: tasks on a Ray cluster, or on a local Ray if no address is given;
    package.module:Class: one of your own"""
    workers: int = 0
    """units worked on at the same time; 0: one per CPU"""
    ray_address: str = ""
    """address of a running Ray cluster; empty: $RAY_ADDRESS if set, else a Ray of its own on this machine"""
    retries: int = 3
    """how often a unit is tried again after its worker died; an error that a unit raises is not retried"""
    timeout: float = 21_600.0
    """seconds that one unit may take: its worker is then killed (local), or the run ends (ray), with the unit named"""

    def __post_init__(self) -> None:
        EXECUTORS.check(self.kind)
        if self.timeout <= 0:
            raise ClipDataError(f"timeout = {self.timeout} must be above 0")
        for name in ("workers", "retries"):
            if getattr(self, name) < 0:
                raise ClipDataError(f"{name} = {getattr(self, name)} must not be negative")
        if self.ray_address and self.kind != "ray":
            raise ClipDataError(f"ray_address = {self.ray_address!r} needs kind = 'ray'")


class Executor(Protocol):
    """Runs a task over units; a context manager."""

    def run(self, task: Task, units: Sequence[Unit]) -> Iterator[tuple[Unit, dict[str, Any]]]:
        """Yields (unit, the task's answer) as units are done, in any order, with a bounded number under way.

        An error that the task raises is raised here, with the unit named, after the units under way are done. A unit
        whose worker dies is tried again; if it keeps dying, ClipDataError names it after all other units are done.
        """
        ...

    def close(self) -> None:
        """Ends the workers."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


EXECUTORS: Registry[Callable[[ExecutorConfig], Executor]] = Registry(
    "executor", {"local": "clip_data.executor:LocalExecutor", "ray": "clip_data.executor_ray:RayExecutor"}
)


def make_executor(config: ExecutorConfig) -> Executor:
    """The executor that the config describes."""
    return EXECUTORS.get(config.kind)(config)


@dataclass(frozen=True)
class Outcome:
    """What came of a unit's task: an answer, or an error with the worker's traceback. Picklable."""

    answer: dict[str, Any] | None = None
    error: Exception | None = None
    trace: str = ""

    def unwrap(self, unit: Unit) -> dict[str, Any]:
        """The answer; or raises the task's error, with the unit named."""
        if self.error is None:
            assert self.answer is not None
            return self.answer
        if isinstance(self.error, ClipError):
            raise ClipDataError(f"unit {unit.name}: {self.error}") from self.error
        self.error.add_note(f"in unit {unit.name} ({unit.rows} rows of {unit.source}); in the worker:\n{self.trace}")
        raise self.error


def attempt(task: Task, unit: Unit) -> Outcome:
    """Runs the task in a worker; an exception becomes part of the outcome."""
    try:
        return Outcome(answer=task(unit))
    except Exception as error:
        trace = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an exception class of the task's that does not travel
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return Outcome(error=error, trace=trace)


def dead_unit(unit: Unit, attempts: int, how: str) -> ClipDataError:
    """The error for a unit whose worker died each time."""
    return ClipDataError(
        f"unit {unit.name} ({unit.rows} rows of {unit.source}) killed its worker {attempts} times, the last time with "
        f"{how}; all other units are done: give the workers more memory, or look at this unit's rows, and run again"
    )


class LocalExecutor:
    """One process per worker, each with one unit at a time, so that a death is charged to the right unit.

    Processes are spawned: a script that uses this needs the usual `if __name__ == "__main__":`.
    """

    def __init__(self, config: ExecutorConfig) -> None:
        self.workers = config.workers or len(os.sched_getaffinity(0))
        self.retries = config.retries
        self.timeout = config.timeout
        self._running: dict[Connection, _Worker] = {}
        self._looked = 0.0

    def run(self, task: Task, units: Sequence[Unit]) -> Iterator[tuple[Unit, dict[str, Any]]]:
        payload = pickle.dumps(task)
        waiting = deque(units)
        deaths: dict[int, int] = {}
        lost: list[ClipDataError] = []
        failed: tuple[Unit, Outcome] | None = None
        try:
            while True:
                idle = [worker for worker in self._running.values() if worker.unit is None]
                while waiting and failed is None and (idle or len(self._running) < self.workers):
                    worker = idle.pop() if idle else self._spawn(payload)
                    worker.give(waiting.popleft())
                if all(worker.unit is None for worker in self._running.values()):
                    break
                self._kill_stuck()
                for ready in wait(list(self._running), POLL_SECONDS):
                    assert isinstance(ready, Connection)
                    worker = self._running[ready]
                    unit, outcome = worker.unit, worker.take()
                    if outcome is None:
                        how = self._bury(worker)
                        if unit is None:
                            continue
                        deaths[unit.ordinal] = deaths.get(unit.ordinal, 0) + 1
                        if deaths[unit.ordinal] <= self.retries:
                            waiting.append(unit)
                        else:
                            lost.append(dead_unit(unit, deaths[unit.ordinal], how))
                    elif unit is not None and outcome.error is not None:
                        failed = failed or (unit, outcome)
                    elif unit is not None:
                        yield unit, outcome.unwrap(unit)
            if failed:
                failed[1].unwrap(failed[0])
            if lost:
                raise lost[0]
        finally:
            self.close()

    def _kill_stuck(self) -> None:
        """Kills workers that someone has stopped, or whose unit takes too long: they read as dead afterwards."""
        now = time.monotonic()
        # Not more than was looked at: all of us may have been stopped, as by Ctrl-Z, and go on together.
        passed, self._looked = min(now - self._looked, 2 * POLL_SECONDS), now
        for worker in self._running.values():
            if worker.unit is None or worker.stuck:
                continue
            worker.busy += passed
            worker.stopped = worker.stopped + passed if state_of(worker.process.pid) == "stopped" else 0.0
            if worker.stopped > STOPPED_SECONDS:
                worker.stuck = "a stop by a signal"
            elif worker.busy > self.timeout:
                worker.stuck = f"no answer within {self.timeout:g} s (timeout)"
            if worker.stuck:
                log.warning(
                    "worker process %d, unit %s: %s; killed", worker.process.pid, worker.unit.name, worker.stuck
                )
                worker.process.kill()

    def close(self) -> None:
        for worker in self._running.values():
            if worker.unit is None:
                worker.connection.close()  # an end of file: it ends by itself, and what its task holds with it
            else:
                worker.process.kill()
        for worker in list(self._running.values()):
            self._bury(worker)

    def _spawn(self, payload: bytes) -> _Worker:
        worker = _Worker(payload)
        self._running[worker.connection] = worker
        return worker

    def _bury(self, worker: _Worker) -> str:
        """Forgets a worker that is dead or ending; says how it died."""
        del self._running[worker.connection]
        worker.connection.close()
        worker.process.join(ENDING_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join(ENDING_SECONDS)
        code = worker.process.exitcode or 0
        with contextlib.suppress(ValueError):  # it waits for storage, and ends when that answers
            worker.process.close()
        if worker.stuck:
            return worker.stuck
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Worker:
    """The driver's end of a worker process."""

    def __init__(self, payload: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.unit: Unit | None = None
        self.busy = self.stopped = 0.0  # seconds, since it has its unit and since it was seen running
        self.stuck = ""  # why it was killed
        self.process: SpawnProcess = context.Process(target=_serve, args=(payload, theirs), name="clip-data-worker")
        self.process.start()
        theirs.close()  # the worker has the only other end: its death reads as an end of file

    def give(self, unit: Unit) -> None:
        self.unit, self.busy = unit, 0.0
        with contextlib.suppress(OSError):  # it died while idle: reading from it says so
            self.connection.send(unit)

    def take(self) -> Outcome | None:
        """The outcome of the unit at hand; None if the worker is dead."""
        try:
            outcome = self.connection.recv()
        except (EOFError, OSError):
            return None
        self.unit = None
        return outcome


def _serve(payload: bytes, connection: Connection) -> None:
    """The worker process: units in, outcomes out, until the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends the workers
    if sys.platform == "linux":
        # The kernel kills even a worker whose C code keeps Python's lock. It goes by the thread that started the
        # worker, which is the one that is in `run`.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_follow_parent, daemon=True).start()
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


def _follow_parent() -> None:
    """Ends this process when the driver dies, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
