"""Stages and executors for tests: tasks that copy, fail or kill their own process; an executor in this process."""

import hashlib
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

from clip_data.dataset import Dataset, Unit
from clip_data.executors import Executor, ExecutorConfig
from clip_data.executors.base import attempt
from clip_data.stage import UnitResult

UNITS = [Unit(ordinal=i, source="list.parquet", row_group=0, row_start=i * 10, rows=10) for i in range(6)]


@dataclass(frozen=True)
class Deadly:
    """Kills or stops its own process `times` times on unit 2; otherwise answers. Leaves one mark per attempt."""

    folder: str
    times: int
    signal: int = signal.SIGKILL

    def __call__(self, unit: Unit) -> dict:
        marks = Path(self.folder)
        attempt = len(list(marks.glob(f"{unit.name}-*")))
        (marks / f"{unit.name}-{attempt}").touch()
        if unit.ordinal == 2 and attempt < self.times:
            os.kill(os.getpid(), self.signal)
        return {"unit": unit.name, "pid": os.getpid()}


class Untravelled(Exception):
    """Does not survive pickling: it would be built again from its one message."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fail_untravelled(unit: Unit) -> dict:
    raise Untravelled(3, 4)


@dataclass(frozen=True)
class Failing:
    error: Exception

    def __call__(self, unit: Unit) -> dict:
        if unit.ordinal == 1:
            raise self.error
        return {"unit": unit.name}


def planned(root: Path, rows: int = 5) -> Dataset:
    """A dataset of four units, with no sources behind it."""
    units = [Unit(ordinal=i, source="list.parquet", row_group=0, row_start=i * rows, rows=rows) for i in range(4)]
    return Dataset.create(str(root), units, {"sources": [], "columns": {}, "config": {}})


def folder_bytes(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@dataclass(frozen=True)
class Copy:
    """A stage that writes one file per unit; one row of each unit is rejected."""

    dataset: str
    size: int = 0
    name: str = "copy"

    @property
    def config(self) -> dict:
        return {"size": self.size}

    def __call__(self, unit: Unit) -> UnitResult:
        data = unit.name.encode() * unit.rows
        Dataset.open(self.dataset).store.write_bytes(f"copies/{unit.name}", data)
        return UnitResult(
            counts={"success": unit.rows - 1, "timeout_total" if unit.ordinal else "http_404": 1},
            files={f"copies/{unit.name}": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
        )


@dataclass(frozen=True)
class Outcomes:
    """A stage that writes nothing and reports the same counts for every unit."""

    counts: dict
    name: str = "try"
    config: dict = field(default_factory=dict)

    def __call__(self, unit: Unit) -> UnitResult:
        return UnitResult(counts=self.counts, files={})


class InLine(Executor):
    """An executor in this process that notes what it ran, and can be interrupted after some units."""

    window = 1

    def __init__(self, config: ExecutorConfig | None = None, stop_after: int = 99) -> None:
        super().__init__(config or ExecutorConfig())
        self.ran: list[int] = []
        self.stop_after = stop_after

    def start(self, task):
        self.task = task

    def submit(self, unit):
        if len(self.ran) == self.stop_after:
            raise KeyboardInterrupt
        self.ran.append(unit.ordinal)
        self.done = (unit, attempt(self.task, unit))

    def collect(self):
        return [self.done]

    def stop(self):
        self.task = None
