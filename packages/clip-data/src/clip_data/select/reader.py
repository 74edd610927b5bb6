"""Reading a selection: what the stream, a report or a child selection sees of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from clip_core.config import fingerprint
from clip_core.store import Store
from clip_data.dataset import SUCCESS, Dataset, Unit, sidecar_name
from clip_data.errors import ClipDataError
from clip_data.run import read_records
from clip_data.tables import read_table

FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The kept rows of a dataset. Picklable, and small: the rows of a unit are read when asked for."""

    store: Store
    name: str
    """"" is the selection of every successful row"""
    fingerprint: str
    units: Mapping[str, int]
    """kept rows of each unit by its name, in the order of the units, zeros included"""

    def rows(self, unit: Unit) -> np.ndarray:
        """int32 [kept]: the rows kept of a unit, ascending."""
        if self.name:
            file = selection_file(self.name, unit)
            rows = read_table(self.store, file, ["row"])["row"].to_numpy().astype(np.int32)
        else:
            file = sidecar_name(unit)
            status = read_table(self.store, file, ["status"])["status"]
            rows = np.flatnonzero(pc.equal(status, SUCCESS).to_numpy()).astype(np.int32)
        if len(rows) != self.units[unit.name] or (len(rows) and (rows[-1] >= unit.rows or (np.diff(rows) <= 0).any())):
            raise ClipDataError(
                f"{self.store.url}/{file} is damaged: it does not hold the {self.units[unit.name]} rows that are "
                "written down for the unit"
            )
        return rows


def selection_file(name: str, unit: Unit) -> str:
    return f"selections/{name}/{unit.name}.parquet"


def description_file(name: str) -> str:
    return f"selections/{name}/selection.json"


def load_selection(dataset: Dataset, name: str = "") -> Selection:
    """The selection of that name; "" stands for every successful row of a dataset that is wholly acquired."""
    if not name:
        records = stage_records(dataset, "acquire")
        units = {record["unit"]: int(record["counts"].get(SUCCESS, 0)) for record in records}
        return Selection(store=dataset.store, name="", fingerprint=data_fingerprint(records), units=units)
    if not dataset.store.exists(description_file(name)):
        known = ", ".join(dataset.selections()) or "none"
        raise ClipDataError(f"{dataset.root} has no selection {name!r}; it has {known}")
    found = dataset.store.read_json(description_file(name))
    if found.get("format") != FORMAT:
        raise ClipDataError(f"selection {name!r} has format {found.get('format')!r}; this version reads {FORMAT}")
    if found["stages"]["acquire"] != data_fingerprint(stage_records(dataset, "acquire")):
        raise ClipDataError(
            f"selection {name!r} of {dataset.root} was made from other shards than are there now: "
            f"remove selections/{name} and select again"
        )
    return Selection(store=dataset.store, name=name, fingerprint=found["fingerprint"], units=found["units"])


def stage_records(dataset: Dataset, stage: str) -> list[dict[str, Any]]:
    """The commit records of all units, in order. ClipDataError when the stage is not finished."""
    pending = dataset.pending(stage)
    if pending:
        command = "acquire" if stage == "acquire" else f"score --scorers {stage.removeprefix('score-')}"
        raise ClipDataError(
            f"{dataset.root}: {len(pending)} of {len(dataset.units)} units have no {stage} results yet "
            f"(first {pending[0].name}): finish 'clip-data {command}' before selecting"
        )
    return read_records(dataset, stage, dataset.units)


def data_fingerprint(records: Sequence[Mapping[str, Any]]) -> str:
    """Names the data of a finished stage: its settings and the hash of every file it wrote."""
    return fingerprint([[record["unit"], record["fingerprint"], record["files"]] for record in records])
