"""The dataset folder: units, shards, sidecars, columns, commit records, selections, tombstones.

Every package reads and writes datasets through this module; the layout is written down in the package's README.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from clip_core.config import difference, fingerprint
from clip_core.store import Store, is_claimed
from clip_data.errors import ClipDataError
from clip_data.tables import read_table, write_table

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
SUCCESS = "success"
UPSTREAM = "rejected_upstream"  # a row that an earlier stage has rejected already
MAX_ROWS_PER_UNIT = 100_000  # a row's place in its unit has 5 digits in the key


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A piece of work: some rows of one row group of one source file. Its ordinal names its files."""

    ordinal: int
    source: str
    row_group: int
    row_start: int
    """first row, counted within the row group"""
    rows: int

    @property
    def name(self) -> str:
        return f"{self.ordinal:08d}"

    def key(self, row: int) -> str:
        """The sample key of a row of this unit: 8 digits of the unit, 5 of the row."""
        return f"{self.ordinal:08d}{row:05d}"


def shard_name(unit: Unit) -> str:
    return f"shards/{unit.name}.tar"


def sidecar_name(unit: Unit) -> str:
    return f"shards/{unit.name}.parquet"


def column_name(columns: str, unit: Unit) -> str:
    return f"columns/{columns}/{unit.name}.parquet"


class Dataset:
    """An existing dataset folder."""

    def __init__(self, root: str, store: Store, description: Mapping[str, Any]) -> None:
        self.root = root
        self.store = store
        self.description = dict(description)

    @classmethod
    def open(cls, root: str) -> Dataset:
        """Opens the dataset at an fsspec URL; ClipDataError when there is none."""
        store = Store(root)
        if not store.exists("dataset.json"):
            raise ClipDataError(f"{root} holds no dataset (no dataset.json): plan one with 'clip-data plan'")
        description = store.read_json("dataset.json")
        if description.get("format") != FORMAT:
            raise ClipDataError(f"{root} has dataset format {description.get('format')!r}; this version reads {FORMAT}")
        return cls(root, store, description)

    @classmethod
    def create(cls, root: str, units: Sequence[Unit], description: Mapping[str, Any]) -> Dataset:
        """Writes a new dataset's plan, or opens the one that is there if it is the same plan.

        `description` (sources with fingerprints, options of the plan) is kept in dataset.json; a folder whose
        description differs holds another dataset and is refused (ConfigError).
        """
        import pyarrow as pa

        store = Store(root)
        wanted = {"format": FORMAT, **description}
        wanted["fingerprint"] = fingerprint(wanted)
        if is_planned(store, wanted):
            return cls.open(root)
        write_table(store, "units.parquet", pa.Table.from_pylist([dataclasses.asdict(unit) for unit in units]))
        store.write_json("dataset.json", wanted)  # last: the folder is a dataset from here on
        return cls(root, store, wanted)

    @cached_property
    def units(self) -> list[Unit]:
        """All units in the order of their ordinals."""
        return [Unit(**row) for row in read_table(self.store, "units.parquet").to_pylist()]

    # -- the ledger ------------------------------------------------------------------------------------------------

    def commit(self, stage: str, unit: Unit, record: Mapping[str, Any]) -> None:
        """Writes the commit record, the last act of a unit's stage: from here on the unit is done."""
        self.store.write_json(f"commits/{stage}/{unit.name}.json", record)

    def drop_scores(self, unit: Unit) -> None:
        """Removes the commit records of a unit's scores: they are of a shard that is about to be replaced."""
        for folder in self.store.list("commits"):
            if folder.startswith("commits/score-") and not folder.endswith(".json"):
                self.store.remove(f"{folder}/{unit.name}.json")

    def committed(self, stage: str) -> set[str]:
        """Names of the units whose stage has a commit record: one listing, no reads."""
        return {name.rsplit("/", 1)[-1].removesuffix(".json") for name in self.store.list(f"commits/{stage}")}

    def record(self, stage: str, unit: Unit) -> dict[str, Any]:
        return self.store.read_json(f"commits/{stage}/{unit.name}.json")

    def open_stage(self, stage: str, config: Any) -> str:
        """Fixes a stage's config at its first use and returns its fingerprint; another config later is refused."""
        name = f"commits/{stage}.json"
        wanted = {"stage": stage, "config": config, "fingerprint": fingerprint(config)}
        if self.store.exists(name):
            found = self.store.read_json(name)
            if found["fingerprint"] != wanted["fingerprint"]:
                raise ClipDataError(
                    f"{self.root} already holds {stage} results of other settings: "
                    f"{difference(found['config'], wanted['config'])}; use the same settings or another folder"
                )
        else:
            self.store.write_json(name, wanted)
        return wanted["fingerprint"]

    def pending(self, stage: str) -> list[Unit]:
        """Units without a commit record of the stage, in order."""
        done = self.committed(stage)
        return [unit for unit in self.units if unit.name not in done]

    # -- rows ------------------------------------------------------------------------------------------------------

    def sidecar(self, unit: Unit, columns: Sequence[str] | None = None) -> pa.Table:
        """One row per attempted URL of the unit, in source order."""
        return read_table(self.store, sidecar_name(unit), columns)

    def column_sets(self) -> list[str]:
        """Names of the scorers whose columns stand beside the shards."""
        return [name.removeprefix("columns/") for name in self.store.list("columns")]

    def selections(self) -> list[str]:
        return [
            name.removeprefix("selections/")
            for name in self.store.list("selections")
            if self.store.exists(f"{name}/selection.json")
        ]

    # -- takedown --------------------------------------------------------------------------------------------------

    def take_down(self, uids: Iterable[str], reason: str) -> str:
        """Appends a tombstone file for samples (uids of 32 hex digits); returns its name. No shard is touched."""
        import pyarrow as pa

        names = sorted(set(uids))
        wrong = [uid for uid in names if not re.fullmatch("[0-9a-f]{32}", uid)]
        if wrong or not names:
            raise ClipDataError(f"a takedown needs uids of 32 hex digits, not {wrong[0] if wrong else 'none'!r}")
        rows = [{"uid": bytes.fromhex(uid), "reason": reason} for uid in names]
        name = f"tombstones/{len(self.store.list('tombstones')):08d}.parquet"
        schema = pa.schema([("uid", pa.binary(16)), ("reason", pa.string())])
        write_table(self.store, name, pa.Table.from_pylist(rows, schema=schema))
        return name

    def taken_down(self) -> set[bytes]:
        """The 16-byte uids of all tombstones."""
        names = self.store.list("tombstones")
        return {uid for name in names for uid in read_table(self.store, name, ["uid"])["uid"].to_pylist()}


def is_planned(store: Store, description: Mapping[str, Any]) -> bool:
    """Whether this very dataset is planned there. Raises ConfigError for another one, or files of something else."""
    # A plan that was killed has left some of its own files.
    return is_claimed(store, description, "dataset.json", what="dataset", own=("units.parquet", "sources"))
