"""The dataset folder: file names, sample keys, the schema of sidecars, commit records, selections, tombstones.

Every package reads and writes datasets through this module; no other module contains the names of its files. The
README of the package describes the layout.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import TYPE_CHECKING, Any

from clip_core.config import difference, fingerprint
from clip_core.store import Store, is_claimed
from clip_data.errors import ClipDataError
from clip_data.tables import read_table, write_table

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
SUCCESS = "success"
UPSTREAM = "rejected_upstream"  # a row that an earlier stage has rejected
ACQUIRE = "acquire"  # the stage that writes shards and sidecars
SCORE = "score-"  # the stage that writes a set of columns is named by this and the set
MAX_ROWS_PER_UNIT = 100_000  # a row's index in its unit has 5 digits in the key
RECORD_READERS = 16  # threads that read commit records: on an object store each is one round trip

DESCRIPTION, UNITS = "dataset.json", "units.parquet"
SOURCES, COMMITS, COLUMNS, SELECTIONS, TOMBSTONES = "sources", "commits", "columns", "selections", "tombstones"

_SIDECAR = (resources.files("clip_data") / "sidecar.toml").read_text(encoding="ascii")
SIDECAR_COLUMNS: Mapping[str, str | int] = tomllib.loads(_SIDECAR)
"""The sidecar's own columns: their Arrow types, or the bytes of a fixed-size binary. Extra columns follow them."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Rows of one row group of one source file, which are processed together. The ordinal names the files."""

    ordinal: int
    source: str
    row_group: int
    row_start: int
    """first row, counted within the row group"""
    rows: int

    @property
    def name(self) -> str:
        return f"{self.ordinal:08d}"

    @property
    def shard_name(self) -> str:
        return f"shards/{self.name}.tar"

    @property
    def sidecar_name(self) -> str:
        return f"shards/{self.name}.parquet"

    def column_name(self, columns: str) -> str:
        return f"{COLUMNS}/{columns}/{self.name}.parquet"

    def selection_name(self, selection: str) -> str:
        return f"{selection_folder(selection)}/{self.name}.parquet"

    def key(self, row: int) -> str:
        """Returns the sample key of a row: 8 digits for the unit, 5 for the row."""
        return f"{self.name}{row:05d}"


def parse_key(key: str) -> tuple[int, int] | None:
    """Returns the ordinal of the unit and the row of a sample key; None for any other text."""
    return (int(key[:8]), int(key[8:])) if re.fullmatch("[0-9]{13}", key) else None


def record_name(stage: str, unit: str) -> str:
    return f"{COMMITS}/{stage}/{unit}.json"


def selection_folder(selection: str) -> str:
    return f"{SELECTIONS}/{selection}"


def selection_description(selection: str) -> str:
    """Returns the name of the file that describes a selection; it is written last."""
    return f"{selection_folder(selection)}/selection.json"


def source_name(number: int) -> str:
    """Returns the name of the parquet file that a text source is converted to."""
    return f"{SOURCES}/{number:05d}.parquet"


def sidecar_schema() -> pa.Schema:
    """Returns the schema of the sidecar's own columns."""
    import pyarrow as pa

    types = SIDECAR_COLUMNS.items()
    return pa.schema([(name, pa.binary(t) if isinstance(t, int) else pa.type_for_alias(t)) for name, t in types])


def tar_members(row: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Returns (name, offset, length) of the members of a successful row of a sidecar, in the order of the tar."""
    parts = (("image", row["image_ext"]), ("text", "txt"), ("json", "json"))
    return [(f"{row['key']}.{ext}", row[f"{part}_offset"], row[f"{part}_length"]) for part, ext in parts]


class Dataset:
    """An existing dataset folder."""

    def __init__(self, store: Store, description: Mapping[str, Any]) -> None:
        self.store = store
        self.url = store.url
        self.description = dict(description)

    @classmethod
    def open(cls, url: str) -> Dataset:
        """Opens the dataset at an fsspec URL. Raises ClipDataError if there is none."""
        store = Store(url)
        if not is_dataset(store):
            raise ClipDataError(f"{url} holds no dataset (no {DESCRIPTION}): plan one with 'clip-data plan'")
        description = store.read_json(DESCRIPTION)
        if description.get("format") != FORMAT:
            raise ClipDataError(f"{url} has dataset format {description.get('format')!r}; this version reads {FORMAT}")
        return cls(store, description)

    @classmethod
    def create(cls, url: str, units: Sequence[Unit], description: Mapping[str, Any]) -> Dataset:
        """Writes the plan of a new dataset, or opens an existing dataset that has the same plan.

        `description` (sources with fingerprints, options of the plan) is kept in dataset.json. Raises ConfigError for a
        folder with another description.
        """
        import pyarrow as pa

        store = Store(url)
        wanted = {"format": FORMAT, **description}
        wanted["fingerprint"] = fingerprint(wanted)
        if is_planned(store, wanted):
            return cls.open(url)
        write_table(store, UNITS, pa.Table.from_pylist([dataclasses.asdict(unit) for unit in units]))
        store.write_json(DESCRIPTION, wanted)  # written last: it makes the folder a dataset
        return cls(store, wanted)

    @cached_property
    def units(self) -> list[Unit]:
        """All units in the order of their ordinals."""
        return [Unit(**row) for row in read_table(self.store, UNITS).to_pylist()]

    def commit(self, stage: str, unit: Unit, record: Mapping[str, Any]) -> None:
        """Writes the commit record, which is the last file of a stage for a unit: the unit is done."""
        self.store.write_json(record_name(stage, unit.name), record)

    def drop_scores(self, unit: Unit) -> None:
        """Removes the commit records of a unit's scores, before its shard is replaced."""
        for stage in self.stages():
            if stage.startswith(SCORE):
                self.store.remove(record_name(stage, unit.name))

    def stages(self) -> list[str]:
        """Returns the names of the stages that were started."""
        return self._names(COMMITS, ".json")

    def committed(self, stage: str) -> set[str]:
        """Returns the names of the units that have a commit record of the stage: one listing, no reads."""
        return set(self._names(f"{COMMITS}/{stage}", ".json"))

    def record(self, stage: str, unit: Unit) -> dict[str, Any]:
        record: dict[str, Any] = self.store.read_json(record_name(stage, unit.name))
        return record

    def records(self, stage: str, units: Iterable[Unit]) -> list[dict[str, Any]]:
        """Returns the commit records of some units, in their order."""
        with ThreadPoolExecutor(RECORD_READERS) as pool:
            return list(pool.map(lambda unit: self.record(stage, unit), units))

    def open_stage(self, stage: str, config: Any) -> str:
        """Fixes the config of a stage at its first use and returns its fingerprint.

        Raises ClipDataError if the stage was started with another config.
        """
        wanted = {"stage": stage, "config": config, "fingerprint": fingerprint(config)}
        if stage not in self.stages():
            self.store.write_json(f"{COMMITS}/{stage}.json", wanted)
        found = self.stage(stage)
        if found["fingerprint"] != wanted["fingerprint"]:
            change = difference(found["config"], config)
            raise ClipDataError(
                f"{self.url} already holds {stage} results of another config: {change}; use another folder"
            )
        return str(wanted["fingerprint"])

    def stage(self, stage: str) -> dict[str, Any]:
        """Returns the name, the config and the fingerprint of a stage that was started."""
        found: dict[str, Any] = self.store.read_json(f"{COMMITS}/{stage}.json")
        return found

    def pending(self, stage: str) -> list[Unit]:
        """Returns the units without a commit record of the stage, in order."""
        done = self.committed(stage)
        return [unit for unit in self.units if unit.name not in done]

    def sidecar(self, unit: Unit, columns: Sequence[str] | None = None) -> pa.Table:
        """Returns one row per attempted URL of the unit, in source order."""
        return read_table(self.store, unit.sidecar_name, columns, unit.rows)

    def column_sets(self) -> list[str]:
        """Returns the names of the scorers that have written columns."""
        return self._names(COLUMNS)

    def column_files(self, columns: str) -> list[str]:
        """Returns the names of the files of a set of columns, in the order of their units."""
        return self.store.list(f"{COLUMNS}/{columns}")

    def selections(self) -> list[str]:
        """Returns the names of the finished selections."""
        return [name for name in self._names(SELECTIONS) if self.store.exists(selection_description(name))]

    def selection(self, name: str) -> dict[str, Any]:
        """Returns the description of a selection. Raises ClipDataError if there is none of that name."""
        if not self.store.exists(selection_description(name)):
            known = ", ".join(self.selections()) or "none"
            raise ClipDataError(f"{self.url} has no selection {name!r}; it has {known}")
        found: dict[str, Any] = self.store.read_json(selection_description(name))
        return found

    def _names(self, folder: str, suffix: str = "") -> list[str]:
        found = self.store.list(folder)
        return [name.removeprefix(f"{folder}/").removesuffix(suffix) for name in found if name.endswith(suffix)]

    def take_down(self, uids: Iterable[str], reason: str) -> str:
        """Adds a tombstone file for samples (uids of 32 hex digits) and returns its name. No shard is changed.

        The name depends on the content: concurrent takedowns write different files, and a repeated one writes the same
        file.
        """
        import pyarrow as pa

        names = sorted(set(uids))
        wrong = [uid for uid in names if not re.fullmatch("[0-9a-f]{32}", uid)]
        if wrong or not names:
            raise ClipDataError(f"a takedown needs uids of 32 hex digits, not {wrong[0] if wrong else 'none'!r}")
        rows = [{"uid": bytes.fromhex(uid), "reason": reason} for uid in names]
        name = f"{TOMBSTONES}/{fingerprint([names, reason])}.parquet"
        schema = pa.schema([("uid", pa.binary(16)), ("reason", pa.string())])
        write_table(self.store, name, pa.Table.from_pylist(rows, schema=schema))
        return name

    def taken_down(self) -> set[bytes]:
        """Returns the 16-byte uids of all tombstones."""
        names = self.store.list(TOMBSTONES)
        return {uid for name in names for uid in read_table(self.store, name, ["uid"])["uid"].to_pylist()}


def is_dataset(store: Store) -> bool:
    """Returns whether a folder holds a dataset."""
    return store.exists(DESCRIPTION)


def is_planned(store: Store, description: Mapping[str, Any]) -> bool:
    """Returns whether a folder holds exactly this dataset. Raises ConfigError if it holds something else."""
    # A plan that was killed leaves some of these files.
    return is_claimed(store, description, DESCRIPTION, what="dataset", own=(UNITS, SOURCES))
