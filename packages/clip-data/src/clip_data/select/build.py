"""Makes a selection: filters every unit, removes duplicates over all units, and writes the kept rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_core.config import difference, fingerprint, to_dict
from clip_data.dataset import ACQUIRE, SUCCESS, Dataset, Unit, selection_description, selection_folder
from clip_data.errors import ClipDataError
from clip_data.select.columns import SIDECAR, Catalog, Column, read_catalog, read_columns, resolve, stage_of
from clip_data.select.config import SelectConfig
from clip_data.select.dedup import HashBuckets, hash_keys
from clip_data.select.expression import Clause, parse_where
from clip_data.select.selection import FORMAT, Selection, data_fingerprint, load_selection, stage_records
from clip_data.tables import write_table

Counts = dict[str, int]  # rows that are not kept, by reason, in the order of the checks


def select(dataset: Dataset, config: SelectConfig) -> dict[str, Any]:
    """Makes the selection `config.name` and returns its description; an existing one is only read.

    A row is left out, and counted, for the first reason that applies: not in the parent, rejected by acquire, taken
    down, each clause of `where` in its order, each hash of `dedup`. Of equal rows the first by (unit, row) is kept.
    Memory: one byte per attempted row, the columns of one unit, one bucket of hashes (see dedup.py).

    Raises ClipDataError if a required stage is not finished, if the name has another selection, and if no row is left.
    """
    found = None
    there = f"selection {config.name!r} of {dataset.url}"
    remedy = f"choose another name, or remove {selection_folder(config.name)}"
    if dataset.store.exists(selection_description(config.name)):
        found = dataset.selection(config.name)
        if found["config"] != to_dict(config):
            change = difference(found["config"], to_dict(config))
            raise ClipDataError(f"{there} exists with another config: {change}; {remedy}")
    records = {ACQUIRE: stage_records(dataset, ACQUIRE)}  # first of all: the catalog reads the first unit
    if not dataset.units:
        raise ClipDataError(f"{dataset.url} has no rows to select from")
    parent = load_selection(dataset, config.parent) if config.parent else None
    if found is None:
        catalog = read_catalog(dataset)
        clauses = parse_where(config.where, catalog)
        hashes = {name: _hash_column(catalog, name) for name in config.dedup}
        needed = {*hashes.values(), *(column for clause in clauses for column in clause.columns)}
        stages = sorted({ACQUIRE, *map(stage_of, needed)})
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
            raise ClipDataError(f"{there} was made from other data than the present: {remedy}")
        return found

    alive, counts = _filter(dataset, parent, clauses)
    for name, column in hashes.items():
        counts[f"duplicate {name}"] = _drop_duplicates(dataset, column, alive)
    kept = int(alive.sum())
    if not kept:
        worst = max(counts, key=lambda reason: counts[reason])
        raise ClipDataError(f"{there} keeps none of {len(alive)} rows: most fail {worst!r} ({counts[worst]})")
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
        "successful": sum(record["counts"].get(SUCCESS, 0) for record in records[ACQUIRE]),
        "kept": kept,
    }
    assert len(alive) == kept + sum(counts.values())
    # Written last: it makes the selection exist.
    dataset.store.write_json(selection_description(config.name), description)
    return description


def _hash_column(catalog: Catalog, name: str) -> Column:
    if name == "sha256":
        return SIDECAR, "sha256"
    if "image" not in catalog:
        raise ClipDataError(f"dedup = {name!r} requires image columns: run 'clip-data score --scorers image' first")
    return resolve(catalog, name, "image")


def _filter(dataset: Dataset, parent: Selection | None, clauses: Sequence[Clause]) -> tuple[np.ndarray, Counts]:
    """Returns (bool [attempted]: rows that are left, in the order of the units; counts of the others)."""
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
    """Clears `alive` where an earlier row that is alive has the same hash; returns the number of cleared rows."""
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
        write_table(dataset.store, unit.selection_name(name), pa.table({"row": rows}))
        kept[unit.name] = len(rows)
    return kept


def _starts(units: Sequence[Unit]) -> list[tuple[Unit, int]]:
    """Returns each unit with the number of rows before it."""
    starts = np.cumsum([0, *(unit.rows for unit in units)]).tolist()
    return list(zip(units, starts[:-1], strict=True))
