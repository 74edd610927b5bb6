"""Stages: steps over all units of a dataset, each with a commit record per unit."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from clip_core.config import fingerprint
from clip_core.console import progress_bar, warn
from clip_data.dataset import ACQUIRE, COMMITS, SUCCESS, UPSTREAM, Dataset, Unit
from clip_data.errors import ClipDataError
from clip_data.executors import Executor

LOW_SUCCESS = 0.1  # share of the attempted rows below which a run prints a warning
TOP_REASONS = 5


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """The result of a stage for one unit."""

    counts: Mapping[str, int]
    """rows by outcome: "success", or the code of a rejection; the sum is the number of rows of the unit"""
    files: Mapping[str, Mapping[str, Any]]
    """`bytes` and `sha256` (hex) of each written file, by its name in the dataset"""


class Stage(Protocol):
    """A step over all units. Picklable; the same unit and config give the same files on every machine."""

    @property
    def name(self) -> str:
        """Names the folder of the commit records."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Everything the files depend on, in JSON types."""

    def __call__(self, unit: Unit) -> UnitResult:
        """Writes the files of a unit. It may be called several times for a unit, even at the same time."""


@dataclass(frozen=True)
class _Work:
    """The task of an executor: runs the stage on a unit and writes its commit record."""

    dataset: str
    stage: Stage

    @property
    def name(self) -> str:
        return self.stage.name

    def __call__(self, unit: Unit) -> dict[str, Any]:
        return run_unit(self.dataset, self.stage, unit)


def run_unit(dataset: str, stage: Stage, unit: Unit) -> dict[str, Any]:
    """Runs a stage on one unit of the dataset at a URL; writes its commit record and returns it."""
    started = time.monotonic()
    result = stage(unit)
    counted = sum(result.counts.values())
    if counted != unit.rows:
        wrong = f"stage {stage.name!r} counts {counted} rows of the {unit.rows} of the unit"
        raise ClipDataError(f"{wrong}: count each row once, as {SUCCESS!r} or under the code of its rejection")
    record = {
        "unit": unit.name,
        "stage": stage.name,
        "fingerprint": fingerprint(stage.config),
        "rows": unit.rows,
        "counts": {SUCCESS: 0, **{code: count for code, count in sorted(result.counts.items()) if count}},
        "files": dict(result.files),
        "seconds": round(time.monotonic() - started, 3),
    }
    Dataset.open(dataset).commit(stage.name, unit, record)
    return record


def run_stage(
    dataset: Dataset, stage: Stage, executor: Executor, *, progress: bool = True, label: str = ""
) -> dict[str, int]:
    """Runs the units that have no commit record of the stage, and returns the rows per outcome over all units.

    The config of the stage is fixed at its first use. A run that was stopped is continued by the next one. Raises
    ClipDataError if the stage was started with another config, and if all units are done and no row has succeeded;
    their commit records stay. Prints a warning to stderr if few rows have succeeded.
    """
    dataset.open_stage(stage.name, stage.config)
    pending = dataset.pending(stage.name)
    waiting = {unit.name for unit in pending}
    records = dataset.records(stage.name, [unit for unit in dataset.units if unit.name not in waiting])
    done = sum(record["rows"] for record in records)
    good = merge_counts(records)[SUCCESS]
    bar = progress_bar(
        total=sum(unit.rows for unit in dataset.units),
        initial=done,
        desc=label or stage.name,
        unit=" samples",
        unit_scale=True,
        show=progress,
    )
    with bar:
        for unit, record in executor.run(_Work(dataset.url, stage), pending):
            records.append(record)
            done += unit.rows
            good += record["counts"][SUCCESS]
            bar.set_postfix_str(f"{good / done:.1%} success", refresh=False)
            bar.update(unit.rows)
    counts = merge_counts(records)
    if warning := low_success(stage.name, counts):
        if not counts[SUCCESS]:
            cause = ACQUIRE if counts.keys() == {SUCCESS, UPSTREAM} else stage.name
            place = f"{dataset.url}/{COMMITS}/{cause}"
            raise ClipDataError(
                f"{warning}; to try these rows again, remove {place} (for another config {place}.json too) "
                f"and run {cause} again"
            )
        warn(warning)
    return counts


def low_success(stage: str, counts: Mapping[str, int]) -> str:
    """Returns a warning of one line if few rows of a stage have succeeded, or none; else an empty string."""
    rows = sum(counts.values())
    if counts[SUCCESS] and counts[SUCCESS] >= LOW_SUCCESS * (rows - counts.get(UPSTREAM, 0)):
        return ""
    reasons = [f"{code} {count:,}" for code, count in counts.items() if code != SUCCESS and count]
    more = f" and {len(reasons) - TOP_REASONS} more reasons" if len(reasons) > TOP_REASONS else ""
    good = f"only {counts[SUCCESS]:,}" if counts[SUCCESS] else "none"
    return f"{stage}: {good} of {rows:,} rows succeeded: {', '.join(reasons[:TOP_REASONS])}{more}"


def merge_counts(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Returns the rows per outcome: successes first, then rejections, the most frequent first."""
    total: Counter[str] = Counter({SUCCESS: 0})
    for record in records:
        total.update(record["counts"])
    return dict(sorted(total.items(), key=lambda item: (item[0] != SUCCESS, -item[1], item[0])))
