"""The manifest: which samples of which datasets a stream draws from, with a fingerprint of that choice."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_core.config import fingerprint
from clip_data.dataset import Dataset, Unit
from clip_data.errors import ClipDataError
from clip_data.select import Selection, load_selection
from clip_data.stream import order
from clip_data.stream.mixing import pattern
from clip_data.stream.source import Source


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source of a manifest: a few numbers per unit."""

    source: Source
    selection: Selection
    units: list[Unit]
    """units with at least one kept sample, in the order of their ordinals"""
    counts: np.ndarray
    """int64 [units]: kept samples, without those taken down"""
    removed: dict[str, np.ndarray]
    """unit name → sidecar rows (int32, ascending) that tombstones remove from the selection"""
    fingerprint: str

    @property
    def samples(self) -> int:
        return int(self.counts.sum())

    def rows(self, unit: Unit) -> np.ndarray:
        """Returns int32 [kept]: the sidecar rows of a unit that the stream draws from, ascending."""
        rows = self.selection.rows(unit)
        removed = self.removed.get(unit.name)
        return rows if removed is None else np.setdiff1d(rows, removed, assume_unique=True)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The samples of a stream. The fingerprint does not depend on where the datasets are."""

    parts: list[Part]

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over datasets, selections, tombstones, weights and the version of the order."""
        sources = [{"samples": part.fingerprint, "weight": part.source.weight} for part in self.parts]
        return fingerprint({"order": order.VERSION, "sources": sources})

    @property
    def samples(self) -> int:
        """Kept samples of all sources."""
        return sum(part.samples for part in self.parts)

    def __len__(self) -> int:
        return self.samples


def build_manifest(sources: Sequence[Source]) -> Manifest:
    """Reads the plans, selections and tombstones of sources, but no samples.

    Raises ClipDataError for a dataset or selection that does not exist, a weight that is not positive, or a source
    that keeps no sample.
    """
    if not sources:
        raise ClipDataError("a manifest needs at least one source: Source(dataset=…)")
    pattern([source.weight for source in sources])
    return Manifest(parts=[_part(source) for source in sources])


def _part(source: Source) -> Part:
    dataset = Dataset.open(source.dataset)
    selection = load_selection(dataset, source.selection)
    units = [unit for unit in dataset.units if selection.units.get(unit.name)]
    tombstones = dataset.taken_down()
    removed = _removed(dataset, selection, units, tombstones) if tombstones else {}
    counts = {unit.name: selection.units[unit.name] - len(removed.get(unit.name, ())) for unit in units}
    units = [unit for unit in units if counts[unit.name]]
    if not units:
        chosen = f"selection {source.selection!r}" if source.selection else "the whole dataset"
        raise ClipDataError(f"{source.dataset}: {chosen} keeps no sample, so there is nothing to stream")
    digest = hashlib.blake2b(digest_size=16)
    for unit in units:
        digest.update(f"{unit.name} {counts[unit.name]}\n".encode())
        digest.update(removed.get(unit.name, np.empty(0, np.int32)).astype("<i4").tobytes())
    return Part(
        source=source,
        selection=selection,
        units=units,
        counts=np.array([counts[unit.name] for unit in units], np.int64),
        removed=removed,
        fingerprint=fingerprint([dataset.description["fingerprint"], selection.fingerprint, digest.hexdigest()]),
    )


def _removed(
    dataset: Dataset, selection: Selection, units: Sequence[Unit], tombstones: set[bytes]
) -> dict[str, np.ndarray]:
    """Returns the kept rows of each unit that tombstones name. It reads the uids of all units."""
    wanted = pa.array(sorted(tombstones), pa.binary(16))

    def hit(unit: Unit) -> np.ndarray:
        rows = selection.rows(unit)
        uids = dataset.sidecar(unit, ["uid"])["uid"].take(rows)
        removed: np.ndarray = rows[pc.is_in(uids, wanted).to_numpy()]
        return removed

    with ThreadPoolExecutor(8) as threads:
        hits = zip(units, threads.map(hit, units), strict=True)
        return {unit.name: rows for unit, rows in hits if len(rows)}
