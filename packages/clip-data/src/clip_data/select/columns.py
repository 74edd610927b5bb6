"""The columns that a selection can name: those of the sidecar, of scorers, and built-in ones."""

import hashlib
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_core.suggest import did_you_mean
from clip_data.dataset import ACQUIRE, SCORE, Dataset, Unit
from clip_data.errors import ClipDataError
from clip_data.tables import read_table

Column = tuple[str, str]  # (name of the set, name of the column)
Catalog = Mapping[str, Mapping[str, pa.DataType]]  # columns of each set

SIDECAR, BUILTIN = "sidecar", "builtin"
UID_FRACTION = (BUILTIN, "uid_fraction")
FRACTION_SALT = b"uid_fraction"


def read_catalog(dataset: Dataset) -> Catalog:
    """Returns the columns of the dataset by its first unit, which must be acquired."""
    sets = {BUILTIN: {UID_FRACTION[1]: pa.float64()}, SIDECAR: _schema(dataset, dataset.units[0].sidecar_name)}
    for name in dataset.column_sets():
        files = dataset.column_files(name)
        if files:
            sets[name] = _schema(dataset, files[0])
    return sets


def _schema(dataset: Dataset, name: str) -> dict[str, pa.DataType]:
    with dataset.store.open(name) as file:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise ClipDataError(f"{dataset.url}/{name} is damaged: not a parquet file ({error})") from error
    return dict(zip(schema.names, schema.types, strict=True))


def resolve(catalog: Catalog, name: str, set_name: str = "") -> Column:
    """Returns the column `name`, or `set_name.name`. Raises ClipDataError if it is unknown or ambiguous."""
    sets = ", ".join(catalog)
    if set_name:
        if set_name not in catalog:
            raise ClipDataError(f"there is no column set {set_name!r} in {set_name}.{name}; there are {sets}")
        owners = [set_name] if name in catalog[set_name] else []
    else:
        owners = [owner for owner, columns in catalog.items() if name in columns]
    if len(owners) > 1:
        forms = " or ".join(f"{owner}.{name}" for owner in owners)
        raise ClipDataError(f"column {name!r} is in several sets: write {forms}")
    if not owners:
        known = catalog[set_name] if set_name else {column for columns in catalog.values() for column in columns}
        hint = did_you_mean(name, known, "see the schema of the sidecar and of each column set", cutoff=0.5, spell=repr)
        full = f"{set_name}.{name}" if set_name else name
        raise ClipDataError(f"there is no column {full!r} in the sets {sets}; {hint}")
    return owners[0], name


def stage_of(column: Column) -> str:
    """Returns the stage that writes the column."""
    return ACQUIRE if column[0] in (SIDECAR, BUILTIN) else SCORE + column[0]


def read_columns(dataset: Dataset, unit: Unit, columns: Collection[Column]) -> dict[Column, pa.ChunkedArray]:
    """Returns columns of a unit, with a value per attempted row; each file is opened once."""
    wanted = {(SIDECAR, "uid") if column == UID_FRACTION else column for column in columns}
    found: dict[Column, pa.ChunkedArray] = {}
    for owner in sorted({owner for owner, _ in wanted}):
        file = unit.sidecar_name if owner == SIDECAR else unit.column_name(owner)
        names = sorted(name for other, name in wanted if other == owner)
        table = read_table(dataset.store, file, names, unit.rows)
        found |= {(owner, name): table[name] for name in names}
    if UID_FRACTION in columns:
        found[UID_FRACTION] = pa.chunked_array([pa.array(uid_fraction(found[SIDECAR, "uid"].to_pylist()))])
    return found


def uid_fraction(uids: Iterable[bytes]) -> np.ndarray:
    """Returns a number in [0, 1) for each uid, uniform over uids: salted 64-bit BLAKE2b as a fraction of 53 bits.

    It depends on the uid only, so `uid_fraction < 0.1` is the same split when a dataset grows.
    """
    hashes = (hashlib.blake2b(uid, digest_size=8, salt=FRACTION_SALT).digest() for uid in uids)
    return np.array([int.from_bytes(digest, "big") >> 11 for digest in hashes], dtype=np.float64) / 2.0**53
