"""Checks by uid whether held-out samples are among the training samples."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from clip_core.console import progress_bar
from clip_data.dataset import Unit
from clip_data.errors import ClipDataError
from clip_data.stream.manifest import Manifest, Part
from clip_data.tables import read_table

THREADS = 8
SHOWN = 3


def refuse_overlap(training: Manifest, held_out: Manifest, *, name: str, option: str) -> None:
    """Raises ClipDataError, with the count, if samples of `held_out` are also in `training`.

    The message calls the held-out samples `name`, and the config key that allows the overlap `option`. Reads the uids
    of both; memory grows with the held-out samples only.
    """
    wanted = np.concatenate(list(_each_unit(held_out, f"read the uids of {name}", lambda uids: uids)))
    distinct = np.unique(wanted)

    def shared(uids: np.ndarray) -> np.ndarray:
        found: np.ndarray = uids[distinct[np.searchsorted(distinct, uids).clip(max=len(distinct) - 1)] == uids]
        return found

    both = np.unique(np.concatenate(list(_each_unit(training, f"compare the training samples with {name}", shared))))
    if not len(both):
        return
    shown = ", ".join(uid.ljust(16, b"\0").hex() for uid in both[:SHOWN].tolist())
    shown += ", …" if len(both) > SHOWN else ""
    raise ClipDataError(
        f"{np.isin(wanted, both).sum():,} of the {len(wanted):,} samples of {name} are training samples too "
        f"(uid {shown}): choose selections without a common sample, for example by uid_fraction, or allow it with "
        f"{option}"
    )


def _each_unit(manifest: Manifest, what: str, use: Callable[[np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
    """Yields `use(uids)` of each unit of the manifest; uids are S16 [kept]."""

    def read(pair: tuple[Part, Unit]) -> np.ndarray:
        part, unit = pair
        table = read_table(part.selection.store, unit.sidecar_name, ["uid"])
        uids = table["uid"].take(pa.array(part.rows(unit))).combine_chunks()
        # Items of an S16 array lose zeros at their end, all of them alike: equal items are equal uids.
        return use(np.frombuffer(uids.buffers()[1], "S16", len(uids), 16 * uids.offset))

    pairs = [(part, unit) for part in manifest.parts for unit in part.units]
    with ThreadPoolExecutor(THREADS) as threads:
        yield from progress_bar(threads.map(read, pairs), total=len(pairs), desc=what, unit="unit", leave=False)
