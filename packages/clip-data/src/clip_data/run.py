"""Running a stage: its pending units through an executor, with a progress bar."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from clip_core.console import progress_bar, warn
from clip_data.dataset import SUCCESS, UPSTREAM, Dataset, Unit
from clip_data.errors import ClipDataError
from clip_data.executor import Executor, Task

LOW_SUCCESS = 0.1  # share of the rows that a stage has tried; a run below it deserves a look
TOP_REASONS = 5
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
    Raises ClipDataError when all units are done and no row has succeeded; their commit records stay. Warns on stderr
    when few have.
    """
    dataset.open_stage(stage, config)
    pending = dataset.pending(stage)
    waiting = {unit.name for unit in pending}
    records = read_records(dataset, stage, [unit for unit in dataset.units if unit.name not in waiting])
    done = sum(record["rows"] for record in records)
    good = merge_counts(records)[SUCCESS]
    bar = progress_bar(
        total=sum(unit.rows for unit in dataset.units),
        initial=done,
        desc=label or stage,
        unit=" samples",
        unit_scale=True,
        show=progress,
    )
    with bar:
        for unit, record in executor.run(task, pending):
            assert record["rows"] == unit.rows == sum(record["counts"].values()), f"record of unit {unit.name}"
            records.append(record)
            done += unit.rows
            good += record["counts"].get(SUCCESS, 0)
            bar.set_postfix_str(f"{good / done:.1%} success", refresh=False)
            bar.update(unit.rows)
    counts = merge_counts(records)
    if warning := warn_of(stage, counts):
        if not counts[SUCCESS]:
            cause = "acquire" if counts.keys() == {SUCCESS, UPSTREAM} else stage
            records_of = f"{dataset.store.url}/commits/{cause}"
            raise ClipDataError(
                f"{warning}; to try these rows again, remove {records_of} (for other settings {records_of}.json too) "
                f"and run {cause} again"
            )
        warn(warning)
    return counts


def warn_of(stage: str, counts: Mapping[str, int]) -> str:
    """What is wrong with the outcome of a stage in one line: hardly any row has succeeded, or none; else ""."""
    rows = sum(counts.values())
    if counts[SUCCESS] and counts[SUCCESS] >= LOW_SUCCESS * (rows - counts.get(UPSTREAM, 0)):
        return ""
    reasons = [f"{code} {count:,}" for code, count in counts.items() if code != SUCCESS and count]
    more = f" and {len(reasons) - TOP_REASONS} more reasons" if len(reasons) > TOP_REASONS else ""
    good = f"only {counts[SUCCESS]:,}" if counts[SUCCESS] else "none"
    return f"{stage}: {good} of {rows:,} rows succeeded: {', '.join(reasons[:TOP_REASONS])}{more}"


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
