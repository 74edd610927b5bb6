"""Checks a dataset folder against its commit records: only sizes, or every byte, id and offset."""

import hashlib
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from clip_core import ClipError
from clip_core.console import progress_bar
from clip_core.store import Store
from clip_data.dataset import (
    ACQUIRE,
    SCORE,
    SUCCESS,
    Dataset,
    Unit,
    record_name,
    selection_description,
    selection_folder,
    tar_members,
)
from clip_data.tables import read_table
from clip_data.uid import uid

TAR_COLUMNS = [
    *("uid", "key", "url", "caption", "status", "image_ext", "image_offset", "image_length"),
    *("text_offset", "text_length", "json_offset", "json_length"),
]


@dataclass(frozen=True)
class Problem:
    """One problem: the file (its name in the dataset), what is wrong, and what to do."""

    file: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}; {self.remedy}"


def verify(url: str, deep: bool = False, *, progress: bool = False) -> list[Problem]:
    """Returns all problems of the dataset at a URL. Raises ClipDataError if there is none.

    The files of each committed unit must exist with the recorded sizes. `deep` reads every byte: hashes, tar members
    against the sidecar's offsets, recomputed uids, row counts of columns, rows of selections.
    """
    dataset = Dataset.open(url)
    units = {unit.name: unit for unit in dataset.units}
    problems: list[Problem] = []
    for stage in dataset.stages():
        fingerprint = dataset.stage(stage)["fingerprint"]
        committed = sorted(dataset.committed(stage))
        for unit_name in progress_bar(committed, desc=f"verify {stage}", unit=" units", show=progress):
            if unit_name in units:
                problems += _unit_problems(dataset, stage, units[unit_name], fingerprint, deep)
            else:
                record = record_name(stage, unit_name)
                problems.append(Problem(record, "the plan has no such unit", f"delete {record}"))
    for selection in dataset.selections():
        problems += _selection_problems(dataset, selection, units, deep)
    return problems


def _unit_problems(dataset: Dataset, stage: str, unit: Unit, fingerprint: str, deep: bool) -> Iterator[Problem]:
    name = record_name(stage, unit.name)
    command = "clip-data score" if stage.startswith(SCORE) else f"clip-data {stage}"
    remedy = f"delete {name} and run '{command}' again"
    try:
        record = dataset.record(stage, unit)
        counted, files = sum(record["counts"].values()), dict(record["files"])
        found = (record["unit"], record["stage"], record["fingerprint"], record["rows"], counted)
    except (ClipError, KeyError, TypeError, AttributeError) as error:
        yield Problem(name, f"damaged commit record ({error!r})", remedy)
        return
    if found != (unit.name, stage, fingerprint, unit.rows, unit.rows):
        yield Problem(name, "the record does not fit its unit or its stage", remedy)
    found_in_files = [(file, file_problem(dataset.store, file, promised, deep)) for file, promised in files.items()]
    damaged = [Problem(file, what, remedy) for file, what in found_in_files if what]
    yield from damaged
    if damaged or not deep:
        return
    try:
        if stage == ACQUIRE:
            yield from (Problem(file, what, remedy) for file, what in _shard_problems(dataset, unit, record["counts"]))
        elif stage.startswith(SCORE):
            file = unit.column_name(stage.removeprefix(SCORE))
            rows = read_table(dataset.store, file).num_rows
            if rows != unit.rows:
                yield Problem(file, f"{rows} rows instead of {unit.rows}", remedy)
    except ClipError as error:
        yield Problem(name, f"a file of this record cannot be read: {error}", remedy)


def file_problem(store: Store, file: str, promised: Mapping[str, Any], deep: bool) -> str | None:
    """Returns how a file differs from its entry in a commit record: in size, or if `deep` in its hash."""
    if not store.exists(file):
        return "the file is missing"
    size = store.size(file)
    if size != promised["bytes"]:
        return f"{size} bytes instead of {promised['bytes']}"
    if deep:
        with store.open(file) as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()  # type: ignore[arg-type]
        if digest != promised["sha256"]:
            return f"sha256 {digest[:12]}… instead of {promised['sha256'][:12]}…"
    return None


def _shard_problems(dataset: Dataset, unit: Unit, counts: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yields (file, what is wrong) of a unit's sidecar and tar, which are compared with each other."""
    rows = dataset.sidecar(unit, TAR_COLUMNS).to_pylist()
    for index, row in enumerate(rows):
        if row["key"] != unit.key(index):
            yield unit.sidecar_name, f"row {index} has key {row['key']!r} instead of {unit.key(index)!r}"
            return
        if row["uid"] != uid(row["url"], row["caption"]):
            yield unit.sidecar_name, f"row {index} (key {row['key']}): the uid is not that of its URL and caption"
            return
    successes = [row for row in rows if row["status"] == SUCCESS]
    if len(successes) != counts.get(SUCCESS, 0):
        yield unit.sidecar_name, f"{len(successes)} successes, {counts.get(SUCCESS, 0)} in the commit record"
    expected = [member for row in successes for member in tar_members(row)]
    try:
        with dataset.store.open(unit.shard_name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = [(member.name, member.offset_data, member.size) for member in tar]
    except tarfile.TarError as error:
        yield unit.shard_name, f"not a tar file: {error}"
        return
    for member, wanted in zip(members, expected, strict=False):
        if member != wanted:
            found, there = (f"{name} of {length} bytes at {offset}" for name, offset, length in (member, wanted))
            yield unit.shard_name, f"holds {found} where the sidecar has {there}"
            return
    if len(members) != len(expected):
        yield unit.shard_name, f"{len(members)} members, the sidecar has {len(expected)}"


def _selection_problems(dataset: Dataset, name: str, units: Mapping[str, Unit], deep: bool) -> Iterator[Problem]:
    folder, description = selection_folder(name), selection_description(name)
    remedy = f"delete {folder} and run 'clip-data select' for {name} again"
    try:
        kept = dict(dataset.selection(name)["units"])
    except (ClipError, KeyError, TypeError, ValueError) as error:
        yield Problem(description, f"damaged description ({error!r})", remedy)
        return
    present = {file.rsplit("/", 1)[-1] for file in dataset.store.list(folder) if file != description}
    for file in sorted({f"{unit}.parquet" for unit in kept} | present):
        unit = units.get(file.removesuffix(".parquet"))
        what = None
        if unit is None:
            what = "the plan has no such unit"
        elif unit.name not in kept or file not in present:
            what = "the file is missing" if unit.name in kept else f"{description} does not name it"
        elif deep:
            try:
                rows = read_table(dataset.store, f"{folder}/{file}", ["row"])["row"].to_pylist()
                what = _rows_problem(rows, kept[unit.name], dataset.sidecar(unit, ["status"])["status"].to_pylist())
            except ClipError as error:
                what = f"it or its sidecar cannot be read: {error}"
        if what:
            yield Problem(f"{folder}/{file}", what, remedy)


def _rows_problem(rows: list[int], kept: int, statuses: list[str]) -> str | None:
    if any(row is None for row in rows) or any(low >= high for low, high in pairwise(rows)):
        return "the rows are not in ascending order"
    for row in rows:
        if not 0 <= row < len(statuses):
            return f"row {row} does not exist: the unit has {len(statuses)}"
        if statuses[row] != SUCCESS:
            return f"row {row} is not a sample: it was rejected"
    return None if len(rows) == kept else f"{len(rows)} rows instead of {kept}"
