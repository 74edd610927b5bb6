"""Running a stage: its pending units through an executor, with a progress bar."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from clip_data.dataset import SUCCESS, Dataset, Unit
from clip_data.executor import Executor, Task

RECORD_READERS = 16  # threads that read commit records: on an object store each is one round trip


def run_stage(
    dataset: Dataset,
    stage: str,
    config: Any,
    task: Task,
    executor: Executor,
    *,
    progress: bool = True,
    label: str = "",
) -> dict[str, int]:
    """Runs the units that lack a commit record of `stage`, and returns the rows per outcome over all units.

    `config` (JSON-able) is what the stage is fixed to at its first use; another one later is refused with
    ClipDataError. `task` commits each unit itself, so whatever stops the run, the next one continues from there.
    """
    from tqdm import tqdm

    dataset.open_stage(stage, config)
    pending = dataset.pending(stage)
    waiting = {unit.name for unit in pending}
    records = read_records(dataset, stage, [unit for unit in dataset.units if unit.name not in waiting])
    done = sum(record["rows"] for record in records)
    good = merge_counts(records)[SUCCESS]
    bar = tqdm(
        total=sum(unit.rows for unit in dataset.units),
        initial=done,
        desc=label or stage,
        unit=" samples",
        unit_scale=True,
        disable=not progress,
        mininterval=0.2 if sys.stderr.isatty() else 30,  # a log file keeps every line
    )
    with bar:
        for unit, record in executor.run(task, pending):
            assert record["rows"] == unit.rows == sum(record["counts"].values()), f"record of unit {unit.name}"
            records.append(record)
            done += unit.rows
            good += record["counts"].get(SUCCESS, 0)
            bar.set_postfix_str(f"{good / done:.1%} success", refresh=False)
            bar.update(unit.rows)
    return merge_counts(records)


def read_records(dataset: Dataset, stage: str, units: Iterable[Unit]) -> list[dict[str, Any]]:
    """The commit records of these units, in their order."""
    with ThreadPoolExecutor(RECORD_READERS) as pool:
        return list(pool.map(lambda unit: dataset.record(stage, unit), units))


def merge_counts(records: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Rows per outcome: success first, then the rejections, most frequent first."""
    total: Counter[str] = Counter({SUCCESS: 0})
    for record in records:
        total.update(record["counts"])
    return dict(sorted(total.items(), key=lambda item: (item[0] != SUCCESS, -item[1], item[0])))
