"""Histograms of a dataset's columns, and samples that were kept and rejected.

Large datasets are read in part: at most SCANNED units, evenly spread, and the page says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clip_data.dataset import SUCCESS, Dataset, Unit, column_name, selection_name
from clip_data.tables import read_table
from clip_eval.report.funnel import meaning
from clip_eval.report.html import Html, count, figure, fill, foreign, grid, join, note, section, table
from clip_eval.report.images import Images
from clip_eval.report.svg import histogram

SCANNED = 32
ACCEPTED = 28
PER_REASON = 4
PER_CODE = 3
BINS = 30


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Columns of some units, one after the other."""

    units: list[Unit]
    """The units that were read."""
    of: int
    """Finished units of the dataset."""
    rows: dict[str, list[Any]]
    """uid, key, url, caption, status, error, width, height: one entry per attempted row."""
    scores: dict[str, np.ndarray]
    """Numeric columns of the scorers, "set: column" → float64 [stored samples with a value]."""


def scan(dataset: Dataset) -> Scan:
    done = dataset.committed("acquire")
    finished = [unit for unit in dataset.units if unit.name in done]
    units = [finished[i] for i in np.unique(np.linspace(0, len(finished) - 1, SCANNED).astype(int))] if finished else []
    names = ["uid", "key", "url", "caption", "status", "error", "width", "height"]
    rows: dict[str, list[Any]] = {name: [] for name in names}
    scores: dict[str, list[np.ndarray]] = {}
    for unit in units:
        sidecar = dataset.sidecar(unit, names)
        for name in names:
            rows[name] += sidecar[name].to_pylist()
        for owner in dataset.column_sets():
            file = column_name(owner, unit)
            if dataset.store.exists(file):
                for name, values in _numeric(read_table(dataset.store, file)):
                    scores.setdefault(f"{owner}: {name}", []).append(values)
    return Scan(units=units, of=len(finished), rows=rows, scores={n: np.concatenate(v) for n, v in scores.items()})


def _numeric(columns: Any) -> list[tuple[str, np.ndarray]]:
    """Integers and floats of a table without its nulls; hashes are no quantity."""
    import pyarrow as pa

    return [
        (field.name, columns[field.name].drop_null().to_numpy().astype(np.float64))
        for field in columns.schema
        if (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)) and not field.name.endswith("hash")
    ]


def histograms_section(found: Scan) -> Html:
    stored = [i for i, status in enumerate(found.rows["status"]) if status == SUCCESS]
    columns = {
        name: np.asarray([found.rows[name][i] for i in stored if found.rows[name][i] is not None], float)
        for name in ("width", "height")
    }
    if not any(name.endswith(": words") for name in found.scores):
        columns["words"] = np.asarray([len((found.rows["caption"][i] or "").split()) for i in stored], float)
    columns |= found.scores
    charts = []
    for name, values in columns.items():
        values = values[np.isfinite(values)]
        if len(values):
            edges, counts = _bins(values)
            some = f" ({count(len(values))} samples with a value)" if len(values) < len(stored) else ""
            charts.append(figure(name + some, histogram(name, edges, counts, open_end=values.max() > edges[-1])))
    remark = note("{} stored samples{}.", count(len(stored)), _part(found))
    return section("columns", "What the samples are like", remark, grid(charts))


def _bins(values: np.ndarray) -> tuple[list[float], list[int]]:
    """Bins up to the 99.5th percentile, the last one with all above; one per integer where few integers occur."""
    low, high = float(values.min()), float(np.quantile(values, 0.995))
    if (values == np.rint(values)).all() and high - low < BINS:
        edges = np.arange(low - 0.5, high + 1.5)
    else:
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = np.histogram(np.minimum(values, edges[-1]), edges)[0]
    return edges.tolist(), counts.tolist()


def _part(found: Scan) -> str:
    return f", from {len(found.units)} of {found.of} units, evenly spread" if len(found.units) < found.of else ""


def samples_section(dataset: Dataset, found: Scan, selections: Sequence[str], images: Images) -> Html:
    existing = [name for name in selections if name in dataset.selections()]
    kept, why = set(range(len(found.rows["uid"]))), ""
    if existing:
        kept, why = _kept(dataset, found.units, existing[0]), f" by {existing[0]}"
    else:
        gone = dataset.taken_down()
        kept = {i for i in kept if found.rows["status"][i] == SUCCESS and found.rows["uid"][i] not in gone}
    chosen = sorted(kept, key=lambda i: found.rows["uid"][i])[:ACCEPTED]
    parts = [
        figure(
            f"Kept{why}: {len(chosen)} of {count(len(kept))} samples, drawn by uid{_part(found)}",
            grid((images.card(found.rows["key"][i]) for i in chosen), "cards"),
            kind="wide",
        )
    ]
    for name in existing:
        cards = [
            images.card(found.rows["key"][i], fill("<code>{}</code>", foreign(reason, 80)), tone="bad")
            for reason, rows in _dropped(dataset, found, name).items()
            for i in sorted(rows, key=lambda i: found.rows["uid"][i])[:PER_REASON]
        ]
        if cards:
            parts.append(
                figure(f"Dropped by {name}: up to {PER_REASON} for each reason", grid(cards, "cards"), kind="wide")
            )
    if rejected := _rejected(dataset, found):
        parts.append(
            figure(
                f"Rejected before an image was stored: up to {PER_CODE} for each code",
                table(("reason", "URLs, with their captions"), rejected),
                kind="wide",
            )
        )
    return section("samples", "Samples", *parts)


def _kept(dataset: Dataset, units: Sequence[Unit], name: str) -> set[int]:
    """Rows of the scan that a selection keeps."""
    kept, start = set(), 0
    for unit in units:
        rows = read_table(dataset.store, selection_name(name, unit), ["row"])["row"].to_pylist()
        kept |= {start + row for row in rows}
        start += unit.rows
    return kept


def _dropped(dataset: Dataset, found: Scan, name: str) -> dict[str, list[int]]:
    """Rows of the scan that a selection dropped, by the first reason that holds, in its order.

    A selection with a parent divides what was kept: it is a split and not a judgement, and gives none.
    """
    from clip_data.select import parse_where
    from clip_data.select.columns import read_catalog, read_columns

    description = dataset.selection(name)
    config = description["config"]
    if config["parent"]:
        return {}
    # Which of two hashes was the one is not written down per row; often only one of them dropped anything.
    hashes = [reason.removeprefix("duplicate ") for reason, n in description["counts"] if n and "duplicate " in reason]
    clauses = parse_where(config["where"], read_catalog(dataset))
    needed = {column for clause in clauses for column in clause.columns}
    kept, gone = _kept(dataset, found.units, name), dataset.taken_down()
    dropped: dict[str, list[int]] = {}
    start = 0
    for unit in found.units:
        columns = read_columns(dataset, unit, needed)
        fails = [(clause.text, ~clause.keeps(columns, unit.rows)) for clause in clauses]
        for row in range(unit.rows):
            i = start + row
            if i in kept or found.rows["status"][i] != SUCCESS:
                continue
            first = next((text for text, is_out in fails if is_out[row]), f"duplicate {' or '.join(hashes)}")
            reason = "taken down" if found.rows["uid"][i] in gone else first
            if reason != "taken down":  # an image that was taken down is not shown
                dropped.setdefault(reason, []).append(i)
        start += unit.rows
    return dropped


def _rejected(dataset: Dataset, found: Scan) -> list[tuple[Any, ...]]:
    """Rows without a stored image, a few per code, by uid."""
    by_code: dict[str, list[int]] = {}
    gone = dataset.taken_down()
    for i, error in enumerate(found.rows["error"]):
        if found.rows["status"][i] != SUCCESS and found.rows["uid"][i] not in gone:
            by_code.setdefault(error or "", []).append(i)
    rows = []
    for code in sorted(by_code, key=lambda code: (-len(by_code[code]), code)):
        examples = [
            fill(
                "<div>{} <small>{}</small></div>",
                foreign(found.rows["url"][i] or "no URL", 110),
                foreign(found.rows["caption"][i] or "", 80),
            )
            for i in sorted(by_code[code], key=lambda i: found.rows["uid"][i])[:PER_CODE]
        ]
        rows.append((fill("<code>{}</code><br><small>{}</small>", code, meaning(code)), join(examples)))
    return rows
