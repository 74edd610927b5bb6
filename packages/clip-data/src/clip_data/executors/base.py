"""The driver's loop, which all executors share, and the registry of executors."""

import pickle
import traceback
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from clip_core import ClipError
from clip_core.registry import Registry
from clip_data.dataset import Unit
from clip_data.errors import ClipDataError

Task = Callable[[Unit], dict[str, Any]]
"""Picklable; does one unit and returns its commit record."""


@dataclass(frozen=True, kw_only=True)
class ExecutorConfig:
    """Where the units of a stage run."""

    kind: str = "local"
    """local: processes on this machine; ray: tasks on a Ray cluster, or on a local Ray without an address;
    package.module:Class: a user-defined executor"""
    workers: int = 0
    """units that run at the same time; 0: one per CPU"""
    ray_address: str = ""
    """address of a running Ray cluster; empty: $RAY_ADDRESS if set, else a new local Ray"""
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


@dataclass(frozen=True)
class Outcome:
    """The outcome of a unit: an answer, an error with the worker's traceback, or its worker's death. Picklable."""

    answer: dict[str, Any] | None = None
    error: Exception | None = None
    trace: str = ""
    death: str = ""
    """how the worker died"""


class Executor(ABC):
    """Runs a task over units, with a bounded number of them under way. A context manager.

    A subclass is made from an ExecutorConfig. It sets `window`, the number of units under way, and implements `start`,
    `submit`, `collect` and `stop`.
    """

    window: int

    def __init__(self, config: ExecutorConfig) -> None:
        self.config = config

    @abstractmethod
    def start(self, task: Task) -> None:
        """Prepares for a task. Called once for each run."""

    @abstractmethod
    def submit(self, unit: Unit) -> None:
        """Begins a unit. Returns without waiting for it."""

    @abstractmethod
    def collect(self) -> Iterable[tuple[Unit, Outcome]]:
        """Waits for submitted units for a limited time; returns those that have ended."""

    @abstractmethod
    def stop(self) -> None:
        """Ends the run: abandons what is under way, and releases what `start` and `submit` have acquired."""

    def close(self) -> None:
        """Ends a run that is under way, and releases what the executor holds between runs."""
        self.stop()

    def run(self, task: Task, units: Sequence[Unit]) -> Iterator[tuple[Unit, dict[str, Any]]]:
        """Yields (unit, the task's answer) as units are done, in any order.

        An error that the task raises is raised here, with the unit named, after the units under way are done. A unit
        whose worker dies is tried again; if it keeps dying, ClipDataError names it after all other units are done.
        """
        waiting = deque(units)
        under_way = 0
        deaths: Counter[int] = Counter()
        lost: ClipDataError | None = None
        failed: tuple[Unit, Outcome] | None = None
        self.start(task)
        try:
            while True:
                while waiting and failed is None and under_way < self.window:
                    self.submit(waiting.popleft())
                    under_way += 1
                if not under_way:
                    break
                for unit, outcome in self.collect():
                    under_way -= 1
                    if outcome.death:
                        deaths[unit.ordinal] += 1
                        if deaths[unit.ordinal] <= self.config.retries:
                            waiting.append(unit)
                        else:
                            lost = lost or _lost(unit, deaths[unit.ordinal], outcome.death)
                    elif outcome.error is not None:
                        failed = failed or (unit, outcome)
                    else:
                        assert outcome.answer is not None
                        yield unit, outcome.answer
            if failed:
                _raise(*failed)
            if lost:
                raise lost
        finally:
            self.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


EXECUTORS: Registry[Callable[[ExecutorConfig], Executor]] = Registry(
    "executor", {"local": "clip_data.executors.local:LocalExecutor", "ray": "clip_data.executors.ray:RayExecutor"}
)


def make_executor(config: ExecutorConfig) -> Executor:
    """Returns the executor that the config describes."""
    return EXECUTORS.get(config.kind)(config)


def attempt(task: Task, unit: Unit) -> Outcome:
    """Runs the task in a worker; an exception becomes part of the outcome."""
    try:
        return Outcome(answer=task(unit))
    except Exception as error:
        trace = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # a class that cannot be pickled
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return Outcome(error=error, trace=trace)


def _raise(unit: Unit, outcome: Outcome) -> None:
    """Raises the error of a task, with the unit named."""
    assert outcome.error is not None
    if isinstance(outcome.error, ClipError):
        raise ClipDataError(f"unit {unit.name}: {outcome.error}") from outcome.error
    where = f"in unit {unit.name} ({unit.rows} rows of {unit.source}); in the worker:\n{outcome.trace}"
    outcome.error.add_note(where)
    raise outcome.error


def _lost(unit: Unit, attempts: int, death: str) -> ClipDataError:
    """Returns the error for a unit whose worker died each time."""
    return ClipDataError(
        f"unit {unit.name} ({unit.rows} rows of {unit.source}) killed its worker {attempts} times, the last time with "
        f"{death}; all other units are done: give the workers more memory, or look at this unit's rows, and run again"
    )
