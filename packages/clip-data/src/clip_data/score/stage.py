"""The score stage: the columns of a scorer for one unit."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_core import ImageError
from clip_core.images import load_image
from clip_data.dataset import ACQUIRE, SCORE, SUCCESS, UPSTREAM, Dataset, Unit, record_name
from clip_data.errors import ClipDataError
from clip_data.score.scorer import Batch, Scorer, get_scorer
from clip_data.stage import UnitResult
from clip_data.tables import table_bytes
from clip_data.verify import file_problem

IMAGES_PER_BATCH = 64  # 50 MB of decoded images at 512 × 512
RESERVED = ("sidecar", "builtin")  # sets of columns that exist without a scorer


@dataclass(frozen=True)
class ScoreStage:
    """The stage `score-<name>` of the dataset at a URL: writes columns/<name>/<unit>.parquet.

    `scorer` is a name of SCORERS or a Scorer. The rows are those of the sidecar. A row has nulls where the sample was
    rejected earlier ("rejected_upstream") or its stored image does not decode ("decode_error"); a row for which the
    scorer returns only nulls and NaNs counts as "no_score". Raises ClipDataError for a shard that differs from its
    commit record.
    """

    dataset: str
    scorer: str | Scorer

    def __post_init__(self) -> None:
        name = self._resolved().name
        if not name.isidentifier() or name in RESERVED:
            raise ClipDataError(f"a scorer cannot be named {name!r}: choose an identifier other than {RESERVED}")

    @property
    def name(self) -> str:
        return SCORE + self._resolved().name

    @property
    def config(self) -> dict[str, Any]:
        scorer = self._resolved()
        return {"scorer": scorer.name, "version": scorer.version}

    def __call__(self, unit: Unit) -> UnitResult:
        dataset = Dataset.open(self.dataset)
        scorer = self._resolved()
        if not dataset.store.exists(record_name(ACQUIRE, unit.name)):
            raise ClipDataError(f"{dataset.url}: unit {unit.name} is not acquired yet: finish acquire before scoring")
        sidecar = dataset.sidecar(unit)
        accepted = np.flatnonzero(np.array(sidecar["status"].to_pylist()) == SUCCESS)
        tables, scored = [scorer.schema.empty_table()], []
        for rows, batch in _batches(dataset, unit, sidecar, accepted, scorer.needs_image):
            tables.append(_checked(scorer, batch))
            scored.append(rows)
        found = np.concatenate([np.empty(0, np.int64), *scored])
        places = np.full(unit.rows, -1)
        places[found] = np.arange(len(found))
        columns = pa.concat_tables(tables)
        void = np.logical_and.reduce([pc.is_null(column, nan_is_null=True) for column in columns.columns]).sum()
        columns = columns.take(pa.array(places, mask=places < 0))
        data = table_bytes(columns.combine_chunks())
        name = unit.column_name(scorer.name)
        dataset.store.write_bytes(name, data)
        counts = {
            SUCCESS: len(found) - int(void),
            UPSTREAM: unit.rows - len(accepted),
            "decode_error": len(accepted) - len(found),
            "no_score": int(void),
        }
        return UnitResult(counts=counts, files={name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}})

    def _resolved(self) -> Scorer:
        return get_scorer(self.scorer) if isinstance(self.scorer, str) else self.scorer


def _checked(scorer: Scorer, batch: Batch) -> pa.Table:
    table = scorer.score(batch)
    if not table.schema.equals(scorer.schema) or table.num_rows != batch.samples.num_rows:
        found, promised = (
            ", ".join(f"{field.name} {field.type}" for field in s) for s in (table.schema, scorer.schema)
        )
        raise ClipDataError(
            f"scorer {scorer.name!r} returned {table.num_rows} rows of ({found}) for {batch.samples.num_rows} samples; "
            f"its schema promises ({promised})"
        )
    return table


def _batches(
    dataset: Dataset, unit: Unit, sidecar: pa.Table, accepted: np.ndarray, needs_image: bool
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields (rows of the unit [n], the batch of those rows), without rows whose image does not decode."""
    if not needs_image:
        if len(accepted):
            yield accepted, Batch(samples=sidecar.take(accepted), images=())
        return
    _check_shard(dataset, unit, deep=False)
    is_intact = False
    offsets, lengths = (sidecar[name].to_pylist() for name in ("image_offset", "image_length"))
    with dataset.store.open(unit.shard_name) as file:
        for start in range(0, len(accepted), IMAGES_PER_BATCH):
            rows, images = [], []
            for row in accepted[start : start + IMAGES_PER_BATCH].tolist():
                file.seek(offsets[row])
                try:
                    images.append(load_image(file.read(lengths[row])))
                    rows.append(row)
                except ImageError:
                    if not is_intact:  # is only the image damaged, or the shard?
                        _check_shard(dataset, unit, deep=True)
                        is_intact = True
            if rows:
                yield np.array(rows), Batch(samples=sidecar.take(rows), images=images)


def _check_shard(dataset: Dataset, unit: Unit, *, deep: bool) -> None:
    """Raises ClipDataError if the shard differs from its commit record: in size, or if `deep` in its hash."""
    name = unit.shard_name
    if problem := file_problem(dataset.store, name, dataset.record(ACQUIRE, unit)["files"][name], deep):
        record = record_name(ACQUIRE, unit.name)
        raise ClipDataError(f"{dataset.url}/{name} is damaged: {problem}; remove {record} and run acquire again")
