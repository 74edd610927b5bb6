"""Progress, rejections and selections of a dataset folder, which is only read."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from clip_data.dataset import SUCCESS, Dataset, Unit, record_name
from clip_data.stage import TOP_REASONS, low_success, merge_counts

RATE_WINDOW = 32  # latest commit records that the rate is estimated from


def status(url: str) -> dict[str, Any]:
    """Returns the state of the dataset at a URL, in JSON types. Raises ClipDataError if there is none.

    stages: for each, units and rows done and in total, the share of successes, the most frequent rejections, the
    recent rate in samples per second (None before the second unit) and the seconds left at that rate. selections: for
    each, the rows attempted and kept, and the counts of the others by reason.
    """
    dataset = Dataset.open(url)
    return {
        "dataset": url,
        "sources": len(dataset.description["sources"]),
        "units": len(dataset.units),
        "rows": sum(unit.rows for unit in dataset.units),
        "stages": {stage: _stage(dataset, stage) for stage in dataset.stages()},
        "selections": {name: _selection(dataset, name) for name in dataset.selections()},
        "taken_down": len(dataset.taken_down()),
    }


def _stage(dataset: Dataset, stage: str) -> dict[str, Any]:
    committed = dataset.committed(stage)
    units = [unit for unit in dataset.units if unit.name in committed]
    counts = merge_counts(dataset.records(stage, units))
    rows, left = sum(unit.rows for unit in units), sum(u.rows for u in dataset.units if u.name not in committed)
    rate = _rate(dataset, stage, units)
    return {
        "units": len(units),
        "units_total": len(dataset.units),
        "rows": rows,
        "rows_total": rows + left,
        "counts": counts,
        "success_share": counts[SUCCESS] / rows if rows else None,
        "top_rejections": {code: n for code, n in list(counts.items())[1 : TOP_REASONS + 1]},
        "samples_per_second": rate,
        "seconds_left": left / rate if rate else None,
    }


def _selection(dataset: Dataset, name: str) -> dict[str, Any]:
    found = dataset.selection(name)
    return {"attempted": found["attempted"], "kept": found["kept"], "counts": dict(found["counts"])}


def _rate(dataset: Dataset, stage: str, units: Sequence[Unit]) -> float | None:
    """Returns the samples per second of the latest commits, by their times in the store."""
    fs, full = dataset.store.fs, dataset.store.full
    times: list[tuple[datetime, int]] = sorted(
        (fs.modified(full(record_name(stage, unit.name))), unit.rows) for unit in units[-RATE_WINDOW:]
    )
    if len(times) < 2:
        return None
    seconds = (times[-1][0] - times[0][0]).total_seconds()
    return sum(rows for _, rows in times[1:]) / seconds if seconds > 0 else None


def format_status(state: Mapping[str, Any]) -> str:
    """Returns the state as a table of text."""
    lines = [f"{state['dataset']}: {state['rows']:,} rows of {state['sources']} source(s) in {state['units']:,} units"]
    if state["stages"]:
        lines.append(f"{'stage':<16}{'units':>13}{'rows':>15}{'success':>9}{'samples/s':>11}{'left':>9}  rejections")
    for name, stage in state["stages"].items():
        units = f"{stage['units']:,}/{stage['units_total']:,}"
        share = "-" if stage["success_share"] is None else f"{stage['success_share']:.1%}"
        rate = "-" if stage["samples_per_second"] is None else f"{stage['samples_per_second']:,.0f}"
        left = "-" if stage["seconds_left"] is None else _duration(stage["seconds_left"])
        why = ", ".join(f"{code} {count:,}" for code, count in stage["top_rejections"].items())
        lines.append(f"{name:<16}{units:>13}{stage['rows']:>15,}{share:>9}{rate:>11}{left:>9}  {why or '-'}")
    warnings = (low_success(name, stage["counts"]) for name, stage in state["stages"].items() if stage["rows"])
    lines += [f"warning: {warning}" for warning in warnings if warning]
    for name, selection in state["selections"].items():
        lines.append(f"selection {name}: {format_selection(selection)}")
    if state["taken_down"]:
        lines.append(f"taken down: {state['taken_down']:,} samples")
    return "\n".join(lines)


def format_selection(selection: Mapping[str, Any]) -> str:
    """Returns one line: the kept rows, and the counts of the others by reason."""
    counts = dict(selection["counts"])
    why = ", ".join(f"{reason} {count:,}" for reason, count in counts.items() if count)
    return f"{selection['kept']:,} of {selection['attempted']:,} rows" + (f"; {why}" if why else "")


def _duration(seconds: float) -> str:
    minutes = round(seconds) // 60
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{round(seconds) % 60:02d}s"
