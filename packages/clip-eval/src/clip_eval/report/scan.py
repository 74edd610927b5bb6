"""Rows of a dataset for the report. Of a large dataset at most SCANNED units are read, evenly spread."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from clip_data.dataset import SUCCESS, Dataset, Unit
from clip_data.tables import read_table

SCANNED = 32
COLUMNS = ["uid", "key", "url", "caption", "status", "error", "width", "height"]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Columns of some units, one after the other."""

    dataset: Dataset
    """The dataset."""
    units: list[Unit]
    """The units that were read."""
    of: int
    """Finished units of the dataset."""
    rows: dict[str, list[Any]]
    """COLUMNS: one entry per attempted row."""
    scores: dict[str, np.ndarray]
    """Numeric columns of the scorers, "set: column" → float64 [stored samples with a value]."""

    @property
    def part(self) -> str:
        """Words for a page that shows a part of the units."""
        return f", from {len(self.units)} of {self.of} units, evenly spread" if len(self.units) < self.of else ""

    def stored(self) -> list[int]:
        return [i for i, status in enumerate(self.rows["status"]) if status == SUCCESS]

    def kept(self, selection: str) -> set[int]:
        """Returns the rows of the scan that a selection keeps."""
        kept, start = set(), 0
        for unit in self.units:
            rows = read_table(self.dataset.store, unit.selection_name(selection), ["row"])["row"].to_pylist()
            kept |= {start + row for row in rows}
            start += unit.rows
        return kept

    def by_uid(self, rows: Any, count: int) -> list[int]:
        """Returns the `count` rows with the smallest uids: an arbitrary sample that is the same in every run."""
        return sorted(rows, key=self.rows["uid"].__getitem__)[:count]


def scan(dataset: Dataset) -> Scan | None:
    """Reads at most SCANNED finished units. Returns None if there is none."""
    done = dataset.committed("acquire")
    finished = [unit for unit in dataset.units if unit.name in done]
    if not finished:
        return None
    units = [finished[i] for i in np.unique(np.linspace(0, len(finished) - 1, SCANNED).astype(int))]
    rows = pa.concat_tables([dataset.sidecar(unit, COLUMNS) for unit in units]).to_pydict()
    scores = {}
    for owner in dataset.column_sets():
        files = [file for unit in units if dataset.store.exists(file := unit.column_name(owner))]
        tables = [read_table(dataset.store, file) for file in files]
        for field in tables[0].schema if tables else ():
            is_number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
            if is_number and not field.name.endswith("hash"):
                values = [table[field.name].drop_null().to_numpy().astype(np.float64) for table in tables]
                scores[f"{owner}: {field.name}"] = np.concatenate(values)
    return Scan(dataset=dataset, units=units, of=len(finished), rows=rows, scores=scores)
