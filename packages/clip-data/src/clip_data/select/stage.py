"""Makes a selection: filter every unit, drop duplicates over all of them, write the kept rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_core.config import fingerprint, to_dict
from clip_data.dataset import SUCCESS, Dataset, Unit
from clip_data.errors import ClipDataError
from clip_data.select.columns import SIDECAR, Catalog, Column, read_catalog, read_columns, resolve, stage_of
from clip_data.select.config import SelectConfig
from clip_data.select.dedup import HashBuckets, hash_keys
from clip_data.select.expression import Clause, parse_where
from clip_data.select.reader import (
    FORMAT,
    Selection,
    data_fingerprint,
    description_file,
    load_selection,
    selection_file,
    stage_records,
)
from clip_data.tables import write_table

Counts = dict[str, int]  # dropped rows by reason, in the order of the funnel


def select(dataset: Dataset, config: SelectConfig) -> dict[str, Any]:
    """Makes the selection `config.name` and returns its selection.json; one that is there already is only read.

    A row is dropped, and counted, for the first of these reasons that holds: not in the parent, rejected by acquire,
    taken down, each clause of `where` in its order, each hash of `dedup`. Equal rows keep the first of (unit, row).
    Memory: one byte per attempted row, one unit's columns, one bucket of hashes (see dedup.py).

    Raises ClipDataError when a stage that is needed is not finished, when the name holds another selection, and when
    no row is left.
    """
    found = None
    if dataset.store.exists(description_file(config.name)):
        found = dataset.store.read_json(description_file(config.name))
        _check_same_config(dataset, config, found)
    records = {"acquire": stage_records(dataset, "acquire")}  # before anything else: the catalog reads the first unit
    if not dataset.units:
        raise ClipDataError(f"{dataset.root} has no rows to select from")
    parent = load_selection(dataset, config.parent) if config.parent else None
    if found is None:
        catalog = read_catalog(dataset)
        clauses = parse_where(config.where, catalog)
        hashes = {name: _hash_column(catalog, name) for name in config.dedup}
        needed = {*hashes.values(), *(column for clause in clauses for column in clause.columns)}
        stages = sorted({"acquire", *map(stage_of, needed)})
    else:
        stages = found["stages"]
    records |= {name: stage_records(dataset, name) for name in stages if name not in records}
    identity = {
        "config": to_dict(config),
        "parent": parent.fingerprint if parent else "",
        "stages": {name: data_fingerprint(records[name]) for name in stages},
    }
    if found is not None:
        if found["fingerprint"] != fingerprint(identity):
            raise ClipDataError(
                f"selection {config.name!r} of {dataset.root} was made from other data than is there now: "
                f"choose another name, or remove selections/{config.name}"
            )
        return found

    alive, counts = _filter(dataset, parent, clauses)
    for name, column in hashes.items():
        counts[f"duplicate {name}"] = _drop_duplicates(dataset, column, alive)
    kept = int(alive.sum())
    if not kept:
        worst = max(counts, key=lambda reason: counts[reason])
        raise ClipDataError(
            f"selection {config.name!r} keeps none of {len(alive)} rows: most are dropped by "
            f"{worst!r} ({counts[worst]}); nothing was written"
        )
    units = _write(dataset, config.name, alive)
    description = {
        "format": FORMAT,
        "name": config.name,
        "config": to_dict(config),
        "parent": {"name": parent.name, "fingerprint": parent.fingerprint} if parent else None,
        "stages": identity["stages"],
        "fingerprint": fingerprint(identity),
        "units": units,
        "counts": [[reason, count] for reason, count in counts.items()],
        "attempted": len(alive),
        "successful": sum(record["counts"].get(SUCCESS, 0) for record in records["acquire"]),
        "kept": kept,
    }
    assert len(alive) == kept + sum(counts.values())
    dataset.store.write_json(description_file(config.name), description)  # last: the selection is there from here on
    return description


def _check_same_config(dataset: Dataset, config: SelectConfig, found: dict[str, Any]) -> None:
    wanted = to_dict(config)
    for key in wanted:
        if found["config"].get(key) != wanted[key]:
            raise ClipDataError(
                f"selection {config.name!r} of {dataset.root} exists with {key} = {found['config'].get(key)!r}, now it "
                f"is {wanted[key]!r}: choose another name, or remove selections/{config.name}"
            )


def _hash_column(catalog: Catalog, name: str) -> Column:
    if name == "sha256":
        return SIDECAR, "sha256"
    if "image" not in catalog:
        raise ClipDataError(
            f"dedup = {name!r} needs the image scorer's columns: run 'clip-data score --scorers image' first"
        )
    return resolve(catalog, name, "image")


def _filter(dataset: Dataset, parent: Selection | None, clauses: Sequence[Clause]) -> tuple[np.ndarray, Counts]:
    """(bool [attempted] rows that are left, in the order of the units; the rows dropped by each reason)."""
    taken_down = pa.array(sorted(dataset.taken_down()), pa.binary(16))
    needed = {(SIDECAR, "status"), (SIDECAR, "uid"), *(column for clause in clauses for column in clause.columns)}
    counts: Counts = {}
    alive = np.ones(sum(unit.rows for unit in dataset.units), bool)
    for unit, start in _starts(dataset.units):
        columns = read_columns(dataset, unit, needed)
        reasons: list[tuple[str, np.ndarray]] = []
        if parent is not None:
            in_parent = np.zeros(unit.rows, bool)
            in_parent[parent.rows(unit)] = True
            reasons.append((f"not in {parent.name}", in_parent))
        reasons.append(("rejected", pc.equal(columns[SIDECAR, "status"], SUCCESS).to_numpy()))
        reasons.append(("taken_down", ~pc.is_in(columns[SIDECAR, "uid"], value_set=taken_down).to_numpy()))
        reasons += [(f"where {clause.text}", clause.keeps(columns, unit.rows)) for clause in clauses]
        left = alive[start : start + unit.rows]  # a view
        for reason, keeps in reasons:
            counts[reason] = counts.get(reason, 0) + int((left & ~keeps).sum())
            left &= keeps
    return alive, counts


def _drop_duplicates(dataset: Dataset, column: Column, alive: np.ndarray) -> int:
    """Clears `alive` where a row's hash stood in an earlier row that is alive; returns how many it cleared."""
    before = int(alive.sum())
    with dataset.store.staging() as folder, HashBuckets(folder, before) as buckets:
        for unit, start in _starts(dataset.units):
            has_hash, keys = hash_keys(read_columns(dataset, unit, [column])[column])
            candidates = alive[start : start + unit.rows] & has_hash
            buckets.add(start + np.flatnonzero(candidates), keys[candidates[has_hash]])
        for rows in buckets.duplicates():
            alive[rows] = False
    return before - int(alive.sum())


def _write(dataset: Dataset, name: str, alive: np.ndarray) -> dict[str, int]:
    kept = {}
    for unit, start in _starts(dataset.units):
        rows = np.flatnonzero(alive[start : start + unit.rows]).astype(np.int32)
        write_table(dataset.store, selection_file(name, unit), pa.table({"row": rows}))
        kept[unit.name] = len(rows)
    return kept


def _starts(units: Sequence[Unit]) -> list[tuple[Unit, int]]:
    """Each unit with the number of rows before it."""
    starts = np.cumsum([0, *(unit.rows for unit in units)]).tolist()
    return list(zip(units, starts[:-1], strict=True))
