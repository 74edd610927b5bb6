"""Reads selections, for the stream, the report and child selections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from clip_core.config import fingerprint
from clip_core.store import Store
from clip_data.dataset import ACQUIRE, SCORE, SUCCESS, Dataset, Unit, selection_folder
from clip_data.errors import ClipDataError
from clip_data.tables import read_table

FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The kept rows of a dataset. Picklable and small: the rows of a unit are read on demand."""

    store: Store
    name: str
    """"" is the selection of every successful row"""
    fingerprint: str
    units: Mapping[str, int]
    """kept rows of each unit by its name, in the order of the units, zeros included"""

    def rows(self, unit: Unit) -> np.ndarray:
        """Returns int32 [kept]: the rows kept of a unit, ascending."""
        if self.name:
            file = unit.selection_name(self.name)
            rows: np.ndarray = read_table(self.store, file, ["row"])["row"].to_numpy().astype(np.int32)
        else:
            file = unit.sidecar_name
            status = read_table(self.store, file, ["status"])["status"]
            rows = np.flatnonzero(pc.equal(status, SUCCESS).to_numpy()).astype(np.int32)
        if len(rows) != self.units[unit.name] or (len(rows) and (rows[-1] >= unit.rows or (np.diff(rows) <= 0).any())):
            kept = self.units[unit.name]
            raise ClipDataError(f"{self.store.url}/{file} is damaged: it does not hold the {kept} rows of the unit")
        return rows


def load_selection(dataset: Dataset, name: str = "") -> Selection:
    """Returns a selection; "" is every successful row of a dataset, which must be completely acquired."""
    if not name:
        records = stage_records(dataset, ACQUIRE)
        units = {record["unit"]: int(record["counts"].get(SUCCESS, 0)) for record in records}
        return Selection(store=dataset.store, name="", fingerprint=data_fingerprint(records), units=units)
    found = dataset.selection(name)
    if found.get("format") != FORMAT:
        raise ClipDataError(f"selection {name!r} has format {found.get('format')!r}; this version reads {FORMAT}")
    if found["stages"][ACQUIRE] != data_fingerprint(stage_records(dataset, ACQUIRE)):
        what = f"selection {name!r} of {dataset.url} was made from other shards than the present"
        raise ClipDataError(f"{what}: remove {selection_folder(name)} and select again")
    return Selection(store=dataset.store, name=name, fingerprint=found["fingerprint"], units=found["units"])


def stage_records(dataset: Dataset, stage: str) -> list[dict[str, Any]]:
    """Returns the commit records of all units, in order. Raises ClipDataError if the stage is not finished."""
    pending = dataset.pending(stage)
    if pending:
        command = ACQUIRE if stage == ACQUIRE else f"score --scorers {stage.removeprefix(SCORE)}"
        missing = f"{len(pending)} of {len(dataset.units)} units have no {stage} results yet (first {pending[0].name})"
        raise ClipDataError(f"{dataset.url}: {missing}: finish 'clip-data {command}' first")
    return dataset.records(stage, dataset.units)


def data_fingerprint(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns a fingerprint of the data of a finished stage: of its config and the hashes of its files."""
    return fingerprint([[record["unit"], record["fingerprint"], record["files"]] for record in records])
